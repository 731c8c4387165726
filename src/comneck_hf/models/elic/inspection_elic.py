"""What the bits of an ELIC bitstream are spent on."""

from dataclasses import dataclass

import numpy as np
import torch

from ...coding.bitstream import Bitstream, BitstreamError
from ...coding.tables import SCALE_TABLE, ideal_bits
from ..entropy_models import gaussian_likelihood
from .exact_elic import EncodedLatents
from .gains_elic import gain_grid
from .modeling_elic import ElicModel


__all__ = ["BitstreamReport", "Segment", "inspect_bitstream"]


@dataclass(frozen=True)
class Segment:
    """A part of a bitstream.

    Attributes:
        name: `"header"`, `"z"`, `"y group 1"` and so on, `"coder"`.
        symbols: Coded symbols.
        bits: Header and coder: bits in the file. Symbols: their code length under the integer tables.
        estimated_bits: What the float likelihoods say; 0 for header and coder.
    """

    name: str
    symbols: int
    bits: float
    estimated_bits: float


@dataclass(frozen=True)
class BitstreamReport:
    """A decoded bitstream and where its bits went.

    Attributes:
        container: The parsed container.
        latents: float32 `(1, latent_channels, height / 16, width / 16)`.
        encoded: The decisions behind the latents, as the encoder made them.
        segments: Their bits add up to those of the file. `"coder"` is what the file has beyond header and ideal code
            length: the coder's state and the check of the symbols.
    """

    container: Bitstream
    latents: torch.Tensor
    encoded: EncodedLatents
    segments: tuple[Segment, ...]


@torch.no_grad()
def inspect_bitstream(codec: ElicModel, data: bytes) -> BitstreamReport:
    """Decodes a bitstream, encodes its latents again, and counts bits by segment.

    Args:
        codec: The codec that wrote the bitstream.
        data: Content of a `.cnk` file.

    Raises:
        BitstreamError: If the bitstream cannot be decoded, or does not reproduce itself.
    """
    latents = codec.decompress([data])
    assert isinstance(latents, torch.Tensor), "one bitstream has one latent size"
    container = Bitstream.parse(data, max_pixels=codec.config.max_pixels)
    z_symbols = _decode_z(codec, container.payload, latents.shape[2] // 4, latents.shape[3] // 4)
    gains = gain_grid([container.gain], [container.gain_map], *latents.shape[2:], latents.device)
    encoded = codec.exact.encode(latents, z_symbols, gains)
    if not torch.equal(encoded.latents, latents) or codec.exact.pack(encoded) != [container.payload]:
        raise BitstreamError("The decoded latents do not encode to the same bytes. Encode the picture again.")
    segments = _symbol_segments(codec, encoded, z_symbols)
    header_bits = 8 * (len(data) - len(container.payload))
    coder_bits = 8 * len(container.payload) - sum(segment.bits for segment in segments)
    return BitstreamReport(
        container=container,
        latents=latents,
        encoded=encoded,
        segments=(Segment("header", 0, header_bits, 0.0), *segments, Segment("coder", 0, coder_bits, 0.0)),
    )


def _decode_z(codec: ElicModel, payload: bytes, height: int, width: int) -> torch.Tensor:
    """The hyper-latents' symbols: float32 `(1, hidden_channels, height, width)` on the codec's device."""
    from ...coding.rans import TableCoder

    channels = codec.config.hidden_channels
    indexes = np.tile(np.arange(channels) + len(SCALE_TABLE), height * width)[None]
    symbols = TableCoder(codec.exact.tables.tables()).decoder([payload]).decode(indexes)
    rows = torch.from_numpy(symbols).view(1, height, width, channels)
    return rows.permute(0, 3, 1, 2).to(codec.device, torch.float32)


def _symbol_segments(codec: ElicModel, encoded: EncodedLatents, z_symbols: torch.Tensor) -> list[Segment]:
    sizes = list(codec.config.group_channels)
    medians = codec.entropy_bottleneck.medians.float()[:, None, None]
    likelihoods = [codec.entropy_bottleneck.likelihood(z_symbols + medians)]
    zero = torch.zeros_like(encoded.scales)
    likelihoods += gaussian_likelihood(encoded.deviations.round(), encoded.scales, zero).split(sizes, 1)
    names = ["z", *(f"y group {number}" for number in range(1, len(sizes) + 1))]
    tables, segments, first = codec.exact.tables.tables(), [], 0
    for name, likelihood in zip(names, likelihoods, strict=True):
        last = first + likelihood.numel()
        bits = ideal_bits(encoded.symbols[:, first:last].numpy(), encoded.indexes[:, first:last].numpy(), tables)
        segments.append(Segment(name, last - first, bits, -likelihood.double().log2().sum().item()))
        first = last
    return segments
