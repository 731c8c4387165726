"""Networks defined in integers: the part of a codec that decides probabilities.

A layer takes int8 activations, multiplies them with int8 weights, and requantizes the exact sums:

    output = clamp((sum(weight * input) * multiplier + offset) >> shift, -128, 127)

with integers per output channel, stored in the checkpoint. This definition is the semantics. Executors only differ in
how they obtain the sums, and all are exact: activations lie in [-128, 127], weights in [-63, 63], and the L1 norm of
every filter is limited when it is derived, so that each partial sum stays below 2**24. Hence float32 is exact in any
summation order, bfloat16 or TF32 products with float32 accumulation are exact, and int8 kernels that add pairs in 16
bits do not saturate (2 * 255 * 63 < 2**15).

Activations are rows of a matrix, one row per position, channels last. A convolution gathers the rows under its window
(`GatherTable`) and multiplies once, so that every layer is one matrix product.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from .gather import GatherTable, transposed_taps
from .scratch import Scratch


EXECUTORS = ("int8", "float32", "bfloat16", "float64")
WEIGHT_LIMIT = 63
SUM_LIMIT = 2**24
WIDE_LIMIT = 2**22
MULTIPLIER_BITS = 15
ROWS_PER_PRODUCT = 512  # gathered rows of the widest layer then fit a level-2 cache

_SCRATCH = Scratch()


@dataclass(frozen=True)
class ActivationRange:
    """Affine int8 quantization per channel: real = scale * (integer - zero_point). Zero is always representable.

    Attributes:
        scale: float64 `(channels,)`, positive.
        zero_point: float64 `(channels,)`, integers in [-128, 127].
        mean: float64 `(channels,)`, average of the real values, for the correction of biases.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    mean: torch.Tensor

    @classmethod
    def from_bounds(cls, low: torch.Tensor, high: torch.Tensor, mean: torch.Tensor) -> "ActivationRange":
        """The range that covers `[low, high]` and zero; all `(channels,)`."""
        low, high = low.double().clamp_max(0), high.double().clamp_min(0)
        width = high - low
        width = torch.maximum(width, (width.max() * 1e-3).clamp_min(1e-6))
        scale = width / 255
        return cls(scale, (-128 - low / scale).round().clamp(-128, 127), mean.double())

    @classmethod
    def fixed_point(cls, unit: torch.Tensor) -> "ActivationRange":
        """Wide outputs in multiples of `unit`, float64 `(channels,)`."""
        return cls(unit, torch.zeros_like(unit), torch.zeros_like(unit))

    @classmethod
    def concatenate(cls, ranges: list["ActivationRange"]) -> "ActivationRange":
        """Ranges of concatenated channels."""
        return cls(*(torch.cat([getattr(r, name) for r in ranges]) for name in ("scale", "zero_point", "mean")))

    def split(self, sizes: list[int]) -> list["ActivationRange"]:
        """Ranges of groups of channels."""
        parts = (self.scale.split(sizes), self.zero_point.split(sizes), self.mean.split(sizes))
        return [ActivationRange(*values) for values in zip(*parts, strict=True)]


def resolve_executor(executor: str | None, device: torch.device) -> str:
    """The executor to use on a device: the one asked for, else the fastest that is always exact there."""
    if executor is not None and executor not in EXECUTORS:
        raise ValueError(f"`executor` must be one of {EXECUTORS} or None, got {executor!r}.")
    if executor is not None:
        return executor
    if device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled:
        return "int8"
    return "float32"


def exact_product(
    inputs: torch.Tensor, weight: torch.Tensor, executor: str, *, scratch: Scratch | None = None
) -> torch.Tensor:
    """`inputs @ weight` of int8 matrices as exact int32, whatever the executor.

    Args:
        inputs: `(rows, channels)`, int8 or already in the dtype of `weight`.
        weight: `(channels, outputs)` in the executor's dtype (`executor_weight`).
        executor: One of `EXECUTORS`.
        scratch: On the CPU, memory for the result, which is then valid until the next call with the same scratch.

    Returns:
        int32 `(rows, outputs)`.
    """
    if inputs.device.type != "cpu":
        if executor == "int8":
            return torch._int_mm(inputs, weight)
        if executor == "bfloat16":
            return torch.mm(inputs.to(weight.dtype), weight, out_dtype=torch.float32).to(torch.int32)
        return (inputs.to(weight.dtype) @ weight).to(torch.int32)
    scratch = scratch or Scratch()
    shape = (len(inputs), weight.shape[1])
    sums = scratch.take("sums", shape, torch.int32)
    if executor == "int8":
        return torch._int_mm(inputs, weight, out=sums)
    products = scratch.take("products", shape, weight.dtype)
    with _bfloat16_products() if executor == "bfloat16" else nullcontext():
        torch.mm(inputs.to(weight.dtype), weight, out=products)
    return sums.copy_(products)


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    """Lets the CPU multiply float32 matrices as bfloat16 with float32 sums: exact where the factors are integers."""
    settings = torch.backends.mkldnn.matmul
    previous = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = previous


def executor_weight(weight: torch.Tensor, executor: str) -> torch.Tensor:
    """An int8 weight in the dtype that an executor multiplies with."""
    if executor == "bfloat16" and weight.device.type == "cpu":
        return weight.float()  # see `_bfloat16_products`
    return weight if executor == "int8" else weight.to(getattr(torch, executor))


def scale_to_integers(scale: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers with `(x * multiplier + offset) >> shift == round(x * scale + bias)` up to the multiplier's precision.

    Args:
        scale: float64 `(channels,)`, positive.
        bias: float64 `(channels,)`.

    Returns:
        `multiplier` int32 of 15 bits, `offset` int64, `shift` int64, each `(channels,)`.
    """
    exponent = torch.frexp(scale).exponent.to(torch.int64)
    shift = (MULTIPLIER_BITS - exponent).clamp(1, 46)
    multiplier = torch.ldexp(scale, shift).round().clamp(1, 2**MULTIPLIER_BITS)
    offset = torch.ldexp(bias + 0.5, shift).round().clamp(-(2.0**61), 2.0**61)
    return multiplier.to(torch.int32), offset.to(torch.int64), shift


def requantize(
    sums: torch.Tensor, multiplier: torch.Tensor, offset: torch.Tensor, shift: torch.Tensor, *, wide: bool = False
) -> torch.Tensor:
    """`clamp((sums * multiplier + offset) >> shift)` to int8, or to int32 within +-2**22 if `wide`.

    Args:
        sums: int32 `(rows, channels)`.
        multiplier, offset, shift: `(channels,)`, see `scale_to_integers`.
        wide: Keep more than eight bits.
    """
    if sums.device.type == "cpu":
        from .kernels import requantize_narrow, requantize_wide

        kernel, dtype = (requantize_wide, torch.int32) if wide else (requantize_narrow, torch.int8)
        outputs = torch.empty(sums.shape, dtype=dtype)
        kernel(sums.numpy(), multiplier.numpy(), offset.numpy(), shift.numpy(), outputs.numpy())
        return outputs
    values = (sums.long() * multiplier + offset) >> shift
    low, high, dtype = (-WIDE_LIMIT, WIDE_LIMIT, torch.int32) if wide else (-128, 127, torch.int8)
    return values.clamp_(low, high).to(dtype)


class Requantizer(nn.Module):
    """Affine map of integers to int8 activations, defined by integers per channel."""

    multiplier: torch.Tensor
    offset: torch.Tensor
    shift: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("multiplier", torch.zeros(channels, dtype=torch.int32))
        self.register_buffer("offset", torch.zeros(channels, dtype=torch.int64))
        self.register_buffer("shift", torch.zeros(channels, dtype=torch.int64))

    def derive(self, unit: torch.Tensor, bias: torch.Tensor, target: ActivationRange) -> None:
        """Sets the integers so that an input of `n` becomes the activation of `n * unit + bias` (float64 each)."""
        integers = scale_to_integers(unit / target.scale, bias / target.scale + target.zero_point)
        for buffer, value in zip((self.multiplier, self.offset, self.shift), integers, strict=True):
            buffer.copy_(value)

    def forward(self, sums: torch.Tensor, *, wide: bool = False) -> torch.Tensor:
        """int32 `(rows, channels)` to int8, or to int32 if `wide`."""
        return requantize(sums, self.multiplier, self.offset, self.shift, wide=wide)


class ExactConv(nn.Module):
    """Convolution in integers as gathered rows times one matrix.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        taps: Kernel positions that are not zero.
        wide: Output int32 instead of int8 activations.
    """

    weight: torch.Tensor
    padding: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int, taps: int, *, wide: bool = False) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.taps = taps
        self.wide = wide
        self.register_buffer("weight", torch.zeros(taps * in_channels, out_channels, dtype=torch.int8))
        self.register_buffer("padding", torch.zeros(in_channels, dtype=torch.int8))
        self.requantizer = Requantizer(out_channels)
        self._cached_weight: tuple[tuple[object, ...], torch.Tensor] | None = None

    def derive(
        self, weight: torch.Tensor, bias: torch.Tensor, source: ActivationRange, target: ActivationRange
    ) -> None:
        """Sets the integers from a float filter.

        Args:
            weight: float `(taps, in_channels, out_channels)`.
            bias: float `(out_channels,)`.
            source: Range of the input activations.
            target: Range of the output activations.
        """
        folded = (weight.double() * source.scale[None, :, None]).flatten(0, 1)
        unit = folded.abs().amax(0) / WEIGHT_LIMIT
        unit = torch.maximum(unit, folded.abs().sum(0) * 128 / (SUM_LIMIT - 2**20)).clamp_min(1e-12)
        integers = (folded / unit).round().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
        assert integers.abs().sum(0).max() * 128 < SUM_LIMIT, "the L1 norm is limited when the unit is chosen"
        self.weight.copy_(integers)
        self.padding.copy_(source.zero_point)
        zero_sum = (integers * source.zero_point.repeat(self.taps)[:, None]).sum(0)
        # Rounded weights shift the outputs by what they do to the average input (Nagel et al. 2019, section 4.2).
        rounding_error = folded - integers * unit
        correction = ((source.mean / source.scale).repeat(self.taps)[:, None] * rounding_error).sum(0)
        self.requantizer.derive(unit, bias.double() + correction, target)
        # the zero points' share of the sum is an integer: taken out exactly, with the integer multiplier
        self.requantizer.offset.sub_((zero_sum * self.requantizer.multiplier).to(torch.int64))

    def forward(self, inputs: torch.Tensor, table: GatherTable | None, executor: str) -> torch.Tensor:
        """Applies the layer.

        Args:
            inputs: int8 `(rows, in_channels)`.
            table: Gather table; `None` for a 1x1 convolution.
            executor: One of `EXECUTORS`.

        Returns:
            int8 (int32 if wide) `(output rows, out_channels)`.
        """
        weight = self._weight_for(executor)
        count = len(inputs) if table is None else len(table.rows)
        if table is not None:
            inputs = torch.cat([inputs, self.padding[None]]).to(weight.dtype)
        outputs = []
        for first in range(0, count, ROWS_PER_PRODUCT):
            chosen = slice(first, first + ROWS_PER_PRODUCT)
            gathered = inputs[chosen] if table is None else _gather(inputs, table.rows[chosen])
            sums = exact_product(gathered, weight, executor, scratch=_SCRATCH)
            outputs.append(self.requantizer(sums, wide=self.wide))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _weight_for(self, executor: str) -> torch.Tensor:
        key = (executor, self.weight.data_ptr(), self.weight._version, self.weight.device)
        if self._cached_weight is None or self._cached_weight[0] != key:
            self._cached_weight = (key, executor_weight(self.weight, executor))
        return self._cached_weight[1]


def _gather(inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The inputs under each window, one after the other: `(rows, taps * channels)`; scratch memory on the CPU."""
    if inputs.device.type != "cpu":
        return inputs.index_select(0, rows.flatten()).view(len(rows), -1)
    gathered = _SCRATCH.take("gathered", (rows.numel(), inputs.shape[1]), inputs.dtype)
    return torch.index_select(inputs, 0, rows.flatten(), out=gathered).view(len(rows), -1)


class ExactUpsample(nn.Module):
    """Transposed convolution that doubles both sides: one [`ExactConv`] for each of the four output phases.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Odd.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.phases = nn.ModuleList(
            ExactConv(in_channels, out_channels, len(taps)) for taps in transposed_taps(kernel_size)
        )

    def derive(
        self, weight: torch.Tensor, bias: torch.Tensor, source: ActivationRange, target: ActivationRange
    ) -> None:
        """As [`ExactConv.derive`], with `weight` as in `nn.ConvTranspose2d`: `(in, out, kernel, kernel)`."""
        for phase, taps in zip(self.phases, transposed_taps(self.kernel_size), strict=True):
            by_tap = torch.stack([weight[:, :, row, column] for row, column, _, _ in taps])
            phase.derive(by_tap, bias, source, target)

    def forward(self, inputs: torch.Tensor, tables: list[GatherTable], executor: str) -> torch.Tensor:
        """int8 `(rows, in_channels)` to int8 `(4 * rows, out_channels)`; one gather table per phase."""
        parts = [phase(inputs, table, executor) for phase, table in zip(self.phases, tables, strict=True)]
        outputs = torch.empty_like(torch.cat(parts))
        for part, table in zip(parts, tables, strict=True):
            outputs[table.targets] = part
        return outputs


__all__ = [
    "EXECUTORS",
    "ActivationRange",
    "ExactConv",
    "ExactUpsample",
    "Requantizer",
    "exact_product",
    "requantize",
    "resolve_executor",
]
