"""CompressAI's networks, with quantizers that tell what they quantized. The only file here that imports CompressAI."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of torch.jit, which CompressAI's import uses
    from compressai.entropy_models import EntropyBottleneck, GaussianConditional
    from compressai.models import CompressionModel, JointAutoregressiveHierarchicalPriors, ScaleHyperprior
    from compressai.zoo import image_models


# CompressAI's encoder never returns for symbols beyond 2^27, and floats hold all integers to 2^24
MAX_SYMBOL = 2**24

_TABLES = ("_offset", "_quantized_cdf", "_cdf_length")
_TOTAL_COUNT = 2**16  # each row of a table ends with it
_NOT_DECODING = ("g_a.", "h_a.", "g_s.")


@dataclass
class Pass:
    """What one pass through a network is to do, and what it quantized.

    Args:
        quantization: Of the network's `forward`: `"noise"` or `"ste"`.
        synthesize: Whether g_s is to run; otherwise it sees a single position, and its result means nothing.
    """

    quantization: str = "ste"
    synthesize: bool = False
    latents: torch.Tensor | None = None  # what went into g_s
    symbols: list[torch.Tensor] = field(default_factory=list)  # of y, in coding order
    values: list[torch.Tensor] = field(default_factory=list)  # the same with their means

    def coded(self, channels: int) -> tuple[bytes, torch.Tensor]:
        """Symbols of one picture as little endian int32, and latents, both `(channels, positions)` in raster order."""
        symbols, latents = (
            torch.cat([part.reshape(channels, -1) for part in parts], 1) for parts in (self.symbols, self.values)
        )
        return symbols.cpu().numpy().astype("<i4").tobytes(), latents


_current: ContextVar[Pass | None] = ContextVar("current_pass", default=None)  # each thread has its own


@contextmanager
def observe(current: Pass) -> Iterator[Pass]:
    """What networks do inside of this context goes by `current` and is noted there."""
    token = _current.set(current)
    try:
        yield current
    finally:
        _current.reset(token)


class _Observed:
    """An entropy model of CompressAI that obeys and fills the current `Pass`; outside of one it is CompressAI's."""

    codes_latents = False  # rather than hyper-latents

    def quantize(self, inputs: torch.Tensor, mode: str, means: torch.Tensor | None = None) -> torch.Tensor:
        """As CompressAI's, rounding as the pass says; symbols that are to be coded are noted."""
        current = _current.get()
        if current is None:
            return super().quantize(inputs, mode, means)
        if mode == "symbols":
            symbols = super().quantize(inputs, mode, means)
            if not (symbols.min() > -MAX_SYMBOL and symbols.max() < MAX_SYMBOL):
                raise ValueError(
                    f"The codec's latents are not finite or beyond +-{MAX_SYMBOL}, which cannot be coded. Check its "
                    "weights, and that pictures are in [0, 1]."
                )
            self._note(current, symbols, super().dequantize(symbols, means))
            return symbols
        if current.quantization == "noise":
            return super().quantize(inputs, "noise", means)
        rounded = super().quantize(inputs, "dequantize", means)
        # The sum would not always be exact.
        return inputs + (rounded - inputs).detach() if torch.is_grad_enabled() else rounded

    def dequantize(
        self, inputs: torch.Tensor, means: torch.Tensor | None = None, dtype: torch.dtype = torch.float
    ) -> torch.Tensor:
        """As CompressAI's; the symbols that were decoded are noted."""
        symbols = inputs.to(torch.int32)  # before CompressAI adds the means in place
        values = super().dequantize(inputs, means, dtype)
        current = _current.get()
        if current is not None:
            self._note(current, symbols, values)
        return values

    def _note(self, current: Pass, symbols: torch.Tensor, values: torch.Tensor) -> None:
        if self.codes_latents:
            current.symbols.append(symbols)
            current.values.append(values)


class ObservedBottleneck(_Observed, EntropyBottleneck):
    """CompressAI's factorized entropy model."""

    def forward(self, x: torch.Tensor, training: bool | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """As CompressAI's; the result's strides are those that decoding yields, so that convolutions take one path."""
        outputs, likelihoods = super().forward(x, training)
        return outputs.clone(memory_format=torch.contiguous_format), likelihoods


class ObservedGaussian(_Observed, GaussianConditional):
    """CompressAI's Gaussian entropy model."""


def build_network(
    architecture: str, quality: int, table_shapes: dict[str, list[int]] | None = None
) -> CompressionModel:
    """A network of CompressAI's zoo with random weights, in float32 on the default device.

    Args:
        architecture: CompressAI's name.
        quality: CompressAI's operating point.
        table_shapes: Shapes of its coding tables, as `table_shapes` tells them; without, it has none.

    Raises:
        ValueError: If `table_shapes` names something that is no table.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        # Some of CompressAI's layers cannot be built on the meta device.
        with torch.device("cpu"):
            network = image_models[architecture](quality, pretrained=False)
            has_hyperprior = isinstance(network, ScaleHyperprior)
            network.entropy_bottleneck = ObservedBottleneck(network.entropy_bottleneck.channels)
            if has_hyperprior:
                network.gaussian_conditional = ObservedGaussian(None)
            coder = network.gaussian_conditional if has_hyperprior else network.entropy_bottleneck
            coder.codes_latents = True
            network.g_s.register_forward_pre_hook(_observe_synthesis)
            if table_shapes is not None:
                allocate_tables(network, table_shapes)
    finally:
        torch.set_default_dtype(dtype)
    return network.to(device)


def _observe_synthesis(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
    current = _current.get()
    if current is None:
        return None
    current.latents = inputs[0]
    return None if current.synthesize else (inputs[0][..., :1, :1],)


def is_autoregressive(network: CompressionModel) -> bool:
    """Whether positions are coded one after the other, so that only coding tells the latents."""
    return isinstance(network, JointAutoregressiveHierarchicalPriors)


def encode_picture(network: CompressionModel, pixel_values: torch.Tensor) -> tuple[list[bytes], Pass]:
    """CompressAI's strings of one picture, and what was coded.

    Args:
        network: With coding tables.
        pixel_values: Shape `(1, 3, height, width)`, sides multiples of 64.
    """
    with observe(Pass()) as current:
        strings = network.compress(pixel_values)["strings"]
    return [string for (string,) in strings], current


def decode_picture(network: CompressionModel, strings: list[bytes], shape: tuple[int, int]) -> Pass:
    """What CompressAI decodes from the strings of one picture; `shape` is that of the smallest latents."""
    with observe(Pass()) as current:
        network.decompress([[string] for string in strings], shape)
    return current


# --- coding tables --------------------------------------------------------------------------------------------------


def _entropy_models(network: CompressionModel) -> dict[str, _Observed]:
    return {name: module for name, module in network.named_children() if isinstance(module, _Observed)}


def _tables(network: CompressionModel) -> dict[str, torch.Tensor]:
    names = (*_TABLES, "scale_table")
    return {
        f"{model_name}.{name}": buffer
        for model_name, model in _entropy_models(network).items()
        for name, buffer in model.named_buffers(recurse=False)
        if name in names
    }


def table_shapes(network: CompressionModel) -> dict[str, list[int]]:
    """Shapes of the coding tables, by name."""
    return {name: list(table.shape) for name, table in _tables(network).items()}


def has_tables(network: CompressionModel) -> bool:
    """Whether the coding tables have been derived or loaded."""
    return all(bool(model.quantized_cdf.any()) for model in _entropy_models(network).values())


def allocate_tables(network: CompressionModel, shapes: dict[str, list[int]]) -> None:
    """Gives the coding tables these shapes; those whose shape changes are filled with zeros.

    Raises:
        ValueError: If a name is no table.
    """
    tables = _tables(network)
    for name, shape in shapes.items():
        if name not in tables:
            raise ValueError(f"`coding_table_shapes` names {name!r}; this codec's tables are {sorted(tables)}.")
        if list(tables[name].shape) != list(shape):
            model_name, _, table = name.partition(".")
            setattr(network.get_submodule(model_name), table, tables[name].new_zeros(shape))


def check_tables(network: CompressionModel) -> None:
    """Raises `ValueError` unless CompressAI's coder can use the tables: it does not look at them itself."""
    for name, model in _entropy_models(network).items():
        offsets, cdfs, lengths = (getattr(model, table).cpu() for table in _TABLES)
        rows = model.channels if isinstance(model, EntropyBottleneck) else model.scale_table.numel()
        usable = cdfs.shape[:1] == lengths.shape == offsets.shape == (rows,) and cdfs.dim() == 2 and rows > 0
        usable = usable and bool(((lengths >= 2) & (lengths <= cdfs.shape[1])).all())
        if usable:
            last = lengths[:, None].long() - 1
            counts = cdfs.diff(dim=1) > 0
            counts |= torch.arange(cdfs.shape[1] - 1) >= last
            usable = bool(counts.all() and (cdfs[:, 0] == 0).all() and (cdfs.gather(1, last) == _TOTAL_COUNT).all())
        if not usable:
            raise ValueError(
                f"The coding tables of `{name}` are damaged: they are not rows of increasing counts from 0 to "
                f"{_TOTAL_COUNT}. Load the model again."
            )


def fingerprint(network: CompressionModel, architecture: str) -> int:
    """32-bit digest of everything that decoding depends on: tables, and weights except those of g_a, h_a and g_s."""
    state: dict[str, Any] = network.state_dict()
    if "context_prediction.mask" in state:  # CompressAI masks the weights at every use and sometimes for good
        state["context_prediction.weight"] = state["context_prediction.weight"] * state["context_prediction.mask"]
    digest = hashlib.blake2s(architecture.encode(), digest_size=4)
    for name, value in state.items():
        if not name.startswith(_NOT_DECODING):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")


__all__ = [
    "MAX_SYMBOL",
    "ObservedBottleneck",
    "ObservedGaussian",
    "Pass",
    "allocate_tables",
    "build_network",
    "check_tables",
    "decode_picture",
    "encode_picture",
    "fingerprint",
    "has_tables",
    "is_autoregressive",
    "observe",
    "table_shapes",
]
