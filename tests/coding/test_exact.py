"""Integer layers: they agree with the float layers they come from, and with themselves under every executor."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from comneck_hf.coding import exact
from comneck_hf.coding.exact import (
    EXECUTORS,
    SUM_LIMIT,
    WEIGHT_LIMIT,
    ActivationRange,
    ExactConv,
    ExactUpsample,
    exact_product,
    requantize,
    resolve_executor,
)
from comneck_hf.coding.gather import (
    checkerboard_rows,
    checkerboard_table,
    convolution_table,
    plain_rows,
    transposed_tables,
    transposed_taps,
)
from comneck_hf.models.elic.layers_elic import CheckerboardConv2d, checkerboard, upsample


HEIGHT, WIDTH, BATCH = 4, 6, 2


def quantized(channels: int, height: int = HEIGHT, width: int = WIDTH) -> tuple[torch.Tensor, ActivationRange]:
    """Random int8 activations `(batch, channels, height, width)` and their range."""
    torch.manual_seed(channels)
    bounds = ActivationRange.from_bounds(-torch.rand(channels) * 3, torch.rand(channels) * 5, torch.zeros(channels))
    return torch.randint(-128, 128, (BATCH, channels, height, width), dtype=torch.int8), bounds


def real(values: torch.Tensor, bounds: ActivationRange) -> torch.Tensor:
    """The float64 numbers that int8 activations stand for."""
    return bounds.scale[:, None, None] * (values.double() - bounds.zero_point[:, None, None])


def to_rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """NCHW to the row layout."""
    flat = values.permute(0, 2, 3, 1).flatten(0, 2)
    result = torch.empty_like(flat)
    result[rows.flatten()] = flat
    return result


def from_rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Row layout to NCHW."""
    return values[rows].permute(0, 3, 1, 2)


def wide_layer(module: nn.Module, by_tap: torch.Tensor, source: ActivationRange, unit: float = 1 / 256) -> ExactConv:
    """The integer twin of a float layer, with outputs in units of `unit`."""
    taps, in_channels, out_channels = by_tap.shape
    layer = ExactConv(in_channels, out_channels, taps, wide=True)
    target = ActivationRange.fixed_point(torch.full((out_channels,), unit).double())
    layer.derive(by_tap, module.bias.detach(), source, target)
    return layer


def assert_close_to(result: torch.Tensor, expected: torch.Tensor) -> None:
    """Root mean square error within what 7-bit weights can lose, relative to the spread of the output."""
    assert result.shape == expected.shape
    assert (result - expected).square().mean().sqrt() < 0.03 * expected.std()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_convolution_agrees_with_the_float_convolution(executor):
    values, bounds = quantized(5)
    module = nn.Conv2d(5, 7, 5, padding=2).double()
    layer = wide_layer(module, module.weight.detach().permute(2, 3, 1, 0).flatten(0, 1), bounds)
    rows = checkerboard_rows(BATCH, HEIGHT, WIDTH)
    table = convolution_table(rows, rows, 5)
    result = from_rows(layer(to_rows(values, rows), table, executor), rows) / 256
    assert_close_to(result, module(real(values, bounds)).detach())


def test_a_transposed_convolution_agrees_with_the_float_one():
    values, bounds = quantized(6)
    module = upsample(6, 4, 5).double()
    expected = module(real(values, bounds)).detach()
    target_range = ActivationRange.from_bounds(expected.amin((0, 2, 3)), expected.amax((0, 2, 3)), torch.zeros(4))
    layer = ExactUpsample(6, 4, 5)
    layer.derive(module.weight.detach(), module.bias.detach(), bounds, target_range)
    source, target = plain_rows(BATCH, HEIGHT, WIDTH), checkerboard_rows(BATCH, 2 * HEIGHT, 2 * WIDTH)
    result = layer(to_rows(values, source), transposed_tables(source, target, 5), "int8")
    assert_close_to(real(from_rows(result, target), target_range), expected)


def test_the_phases_of_a_transposed_convolution_share_out_the_kernel():
    taps = [(row, column) for phase in transposed_taps(5) for row, column, _, _ in phase]
    assert sorted(taps) == [(row, column) for row in range(5) for column in range(5)]


def test_rounded_weights_leave_the_average_output_in_place():
    torch.manual_seed(0)
    values = torch.randint(90, 128, (500, 1, 200), dtype=torch.int8)[:, 0]
    bounds = ActivationRange.from_bounds(torch.zeros(200), torch.ones(200), torch.zeros(200))
    real_values = bounds.scale * (values.double() - bounds.zero_point)
    module = nn.Linear(200, 3).double()
    expected = module(real_values).detach()
    errors = []
    for mean in (torch.zeros(200).double(), real_values.mean(0)):
        source = ActivationRange(bounds.scale, bounds.zero_point, mean)
        layer = wide_layer(module, module.weight.detach().T[None], source)
        errors.append((layer(values, None, "int8") / 256 - expected).mean(0).abs().max())
    assert errors[1] < 0.1 * errors[0]


def test_a_checkerboard_convolution_agrees_with_the_masked_float_one():
    values, bounds = quantized(8)
    module = CheckerboardConv2d(8, 6, 5).double()
    by_tap = module.weight.detach().permute(2, 3, 1, 0).flatten(0, 1)[~checkerboard(5, 5).flatten()]
    layer = wide_layer(module, by_tap, bounds)
    rows, anchors = checkerboard_rows(BATCH, HEIGHT, WIDTH), checkerboard(HEIGHT, WIDTH)
    half = rows.numel() // 2
    result = layer(to_rows(values, rows)[:half], checkerboard_table(rows, 5), "int8")
    padded = torch.cat([torch.zeros_like(result), result])
    expected = (module(real(values, bounds) * anchors) * ~anchors).detach()
    assert_close_to(from_rows(padded, rows) * ~anchors / 256, expected)


def test_every_executor_gives_the_same_integers():
    torch.manual_seed(0)
    inputs = torch.randint(-128, 128, (70, 400), dtype=torch.int8)
    weight = torch.randint(-WEIGHT_LIMIT, WEIGHT_LIMIT + 1, (400, 33), dtype=torch.int8)
    expected = inputs.long() @ weight.long()
    for executor in EXECUTORS:
        product = exact_product(inputs, exact.executor_weight(weight, executor), executor)
        assert torch.equal(product.long(), expected)


def test_bfloat16_products_rounded_to_bfloat16_would_not_be_exact():
    torch.manual_seed(0)
    inputs = torch.randint(-128, 128, (70, 400), dtype=torch.int8)
    weight = torch.randint(-WEIGHT_LIMIT, WEIGHT_LIMIT + 1, (400, 33), dtype=torch.int8)
    naive = (inputs.bfloat16() @ weight.bfloat16()).long()
    assert not torch.equal(naive, inputs.long() @ weight.long())


def test_sums_stay_below_what_float32_holds_even_for_filters_of_equal_weights():
    layer = ExactConv(320, 3, 25)
    unit = ActivationRange.from_bounds(torch.zeros(320), torch.ones(320), torch.zeros(320))
    target = ActivationRange.from_bounds(torch.full((3,), -1.0), torch.ones(3), torch.zeros(3))
    layer.derive(torch.ones(25, 320, 3), torch.zeros(3), unit, target)
    assert int(layer.weight.long().abs().sum(0).max()) * 128 < SUM_LIMIT
    assert int(layer.weight.max()) > 0, "the limit must coarsen the weights, not erase them"


@pytest.mark.parametrize("wide", [False, True])
def test_requantization_is_the_documented_formula(wide):
    torch.manual_seed(0)
    sums = torch.randint(-(2**23), 2**23, (50, 9), dtype=torch.int32)
    multiplier = torch.randint(2**14, 2**15, (9,), dtype=torch.int32)
    shift = torch.randint(12, 40, (9,))
    offset = torch.randint(-(2**40), 2**40, (9,))
    low, high = (-(2**22), 2**22) if wide else (-128, 127)
    result = requantize(sums, multiplier, offset, shift, wide=wide)
    integers = list(zip(multiplier.tolist(), offset.tolist(), shift.tolist(), strict=True))
    for row, outputs in zip(sums.tolist(), result.tolist(), strict=True):
        exact_row = [(value * m + o) >> s for value, (m, o, s) in zip(row, integers, strict=True)]
        assert outputs == [min(max(value, low), high) for value in exact_row]
    assert result.dtype == (torch.int32 if wide else torch.int8)


def test_derived_integers_round_to_the_nearest_activation():
    scale = torch.tensor([0.37, 1e-4, 2.5]).double()
    bias = torch.tensor([-3.2, 100.4, 0.0]).double()
    values = torch.arange(-40, 40, dtype=torch.int32)[:, None].expand(-1, 3).contiguous()
    multiplier, offset, shift = exact.scale_to_integers(scale, bias)
    result = requantize(values, multiplier, offset, shift, wide=True)
    exact_value = values.double() * scale + bias
    assert (result - exact_value).abs().max() <= 0.5 + 40 * 2.5 * 2**-14


def test_zero_is_always_an_exact_activation():
    for low, high in ((0.0, 4.0), (-3.0, -1.0), (2.0, 5.0), (0.0, 0.0)):
        bounds = ActivationRange.from_bounds(torch.tensor([low, -1.0]), torch.tensor([high, 1.0]), torch.zeros(2))
        assert torch.equal(bounds.zero_point, bounds.zero_point.round())
        assert bounds.zero_point.abs().max() <= 128


def test_large_inputs_are_multiplied_in_blocks_with_the_same_result(monkeypatch):
    values, bounds = quantized(5)
    module = nn.Conv2d(5, 7, 3, padding=1).double()
    layer = wide_layer(module, module.weight.detach().permute(2, 3, 1, 0).flatten(0, 1), bounds)
    rows = plain_rows(BATCH, HEIGHT, WIDTH)
    table, inputs = convolution_table(rows, rows, 3), to_rows(values, rows)
    whole = layer(inputs, table, "int8")
    monkeypatch.setattr(exact, "ROWS_PER_PRODUCT", 7)
    assert torch.equal(layer(inputs, table, "int8"), whole)


def test_the_executor_follows_the_machine_unless_told():
    cpu = torch.device("cpu")
    assert resolve_executor("float64", cpu) == "float64"
    assert resolve_executor(None, torch.device("cuda")) == "float32"
    with torch.backends.mkldnn.flags(enabled=False):
        assert resolve_executor(None, cpu) == "float32"
    with pytest.raises(ValueError, match="'int4'"):
        resolve_executor("int4", cpu)


def test_padding_stands_for_zero():
    values, bounds = quantized(3)
    module = nn.Conv2d(3, 2, 3, padding=1).double()
    nn.init.ones_(module.weight)
    nn.init.zeros_(module.bias)
    layer = wide_layer(module, module.weight.detach().permute(2, 3, 1, 0).flatten(0, 1), bounds)
    rows = plain_rows(BATCH, HEIGHT, WIDTH)
    result = from_rows(layer(to_rows(values, rows), convolution_table(rows, rows, 3), "float64"), rows) / 256
    expected = F.conv2d(real(values, bounds), module.weight.detach(), padding=1)
    assert (result - expected).abs().amax((0, 1))[0, 0] < 0.1, "corners see five padded positions"
