"""Importance maps to gain maps."""

import pytest
import torch

from comneck_hf.models.cotam.importance_cotam import gain_maps, pool_importance, quantize_importance


def random_map(height=24, width=24, count=3, seed=0):
    return torch.rand((count, 1, height, width), generator=torch.Generator().manual_seed(seed)) ** 4


def levels_of(maps):
    return torch.tensor([gain_map.gain_index for gain_map in maps])


@pytest.mark.parametrize("grid", [(8, 8), (4, 6), (1, 1), (24, 24)])
def test_pooling_is_adaptive_average_pooling_where_the_sides_divide(grid):
    values = random_map()
    expected = torch.nn.functional.adaptive_avg_pool2d(values.double(), grid)
    assert torch.allclose(pool_importance(values, grid), expected)


def test_pooling_is_exact_where_cells_cut_through_values():
    values = random_map(3, 5)
    fine = values.double().repeat_interleave(8, 2).repeat_interleave(4, 3)
    assert torch.allclose(pool_importance(values, (8, 4)), torch.nn.functional.adaptive_avg_pool2d(fine, (8, 4)))


def test_a_window_is_a_part_of_the_map():
    values = random_map()
    assert torch.allclose(
        pool_importance(values, (4, 2), window=(0.25, 0.5, 0.75, 1)), pool_importance(values[..., 6:18, 12:], (4, 2))
    )


def test_a_window_beyond_the_map_repeats_its_edges():
    values = random_map(6, 6)
    padded = torch.nn.functional.pad(values, (0, 2, 3, 0), mode="replicate")
    found = pool_importance(values, (9, 8), window=(-0.5, 0, 1, 8 / 6))
    assert torch.allclose(found, padded.double())


def test_levels_are_those_of_the_formula():
    values = random_map()
    cells = torch.nn.functional.adaptive_avg_pool2d(values.double(), (8, 8))[:, 0]
    mean, spread = cells.mean((1, 2), keepdim=True), cells.std((1, 2), correction=0, keepdim=True)
    expected = (cells > mean + 0.75 * spread).int() - (cells < mean - 0.75 * spread).int()
    maps = quantize_importance(values)
    assert torch.equal(levels_of(maps), expected)
    assert {-1, 0, 1} == set(expected.unique().tolist())
    assert all((gain_map.levels, gain_map.step) == (3, 2) for gain_map in maps)


def test_more_levels_begin_at_multiples_of_the_threshold():
    values = random_map()
    cells = torch.nn.functional.adaptive_avg_pool2d(values.double(), (8, 8))[:, 0]
    distance = (cells - cells.mean((1, 2), keepdim=True)) / cells.std((1, 2), correction=0, keepdim=True)
    expected = sum((distance > 0.5 * n).int() - (distance < -0.5 * n).int() for n in (1, 2, 3))
    maps = quantize_importance(values, threshold=0.5, levels=7, step=1)
    assert torch.equal(levels_of(maps), expected)
    assert expected.max() == 3
    assert maps[0].levels == 7 and maps[0].step == 1


def test_a_gaussian_gives_the_shares_that_its_tails_have():
    values = torch.randn((50, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    levels = levels_of(quantize_importance(values))
    assert (levels == 1).float().mean() == pytest.approx(0.227, abs=0.02)
    assert (levels == -1).float().mean() == pytest.approx(0.227, abs=0.02)


@pytest.mark.parametrize("scale, offset", [(1e-20, 0), (1e20, 0), (0.37, 5.0), (1, -2.0)])
def test_scale_and_offset_change_nothing(scale, offset):
    values = random_map()
    assert quantize_importance(values.double() * scale + offset) == quantize_importance(values)


@pytest.mark.parametrize("value", [0.0, 1 / 576, 3e-38, -1e30])
def test_constant_maps_are_all_zeros(value):
    values = torch.full((1, 1, 24, 24), value)
    assert levels_of(quantize_importance(values)).abs().max() == 0


def test_rounding_noise_is_no_importance():
    values = torch.full((1, 1, 24, 24), 1 / 576)
    noisy = values * (1 + 1e-6 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0)))
    assert levels_of(quantize_importance(noisy)).abs().max() == 0
    assert levels_of(quantize_importance(values * (1 + 1e3 * (noisy / values - 1)))).abs().max() == 1


def test_pictures_do_not_influence_each_other():
    values = random_map()
    values[1] *= 1000
    values[2] = 7
    together = quantize_importance(values)
    assert together == [quantize_importance(picture[None])[0] for picture in values]


def test_a_map_smaller_than_the_grid_keeps_its_size():
    (gain_map,) = quantize_importance(random_map(4, 30, count=1))
    assert (gain_map.rows, gain_map.columns) == (4, 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    values = random_map()
    values[1, 0, 3, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        quantize_importance(values)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"grid": (0, 8)}, "0x8"),
        ({"threshold": 0.0}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"levels": 4}, "levels"),
        ({"step": 0}, "step"),
        ({"window": (0, 0.5, 1, 0.5)}, "window"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        quantize_importance(random_map(), **wrong)


@pytest.mark.parametrize("shape", [(24, 24), (1, 24, 24), (2, 3, 24, 24), (1, 1, 0, 4)])
def test_wrong_shapes_are_named(shape):
    with pytest.raises(ValueError, match="batch, 1, height, width"):
        quantize_importance(torch.zeros(shape))


def test_known_levels_become_gain_maps():
    index = torch.tensor([[[0, 2, -1]], [[1, 1, 1]]])
    first, second = gain_maps(index, levels=5, step=3)
    assert first.gain_index == ((0, 2, -1),) and second.gain_index == ((1, 1, 1),)
    assert (first.levels, first.step) == (5, 3)
    with pytest.raises(ValueError, match="levels"):
        gain_maps(index)


def test_an_offset_hides_no_differences_and_noise_makes_none():
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).view(1, 1, 8, 8)
    expected = quantize_importance(ramp)
    assert {-1, 0, 1} == {level for row in expected[0].gain_index for level in row}
    assert quantize_importance(ramp + 1e6) == expected
    generator = torch.Generator().manual_seed(0)
    noise = 1 + 1e-7 * torch.randn(1, 1, 8, 8, generator=generator)  # float32 keeps a few roundings of it
    assert not any(level for row in quantize_importance(noise)[0].gain_index for level in row)
    assert (
        quantize_importance(ramp.bfloat16())[0].gain_index
        == quantize_importance(ramp.bfloat16().double())[0].gain_index
    )
