"""Bytes on disk against what they should be: the float estimate, the tables' ideal, and the float networks."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

import torch
from tqdm.auto import tqdm

from ..coding.bitstream import Bitstream
from ..coding.tables import ideal_bits
from ..models.elic.exact_elic import SCALE_UNIT
from ..models.elic.modeling_elic import ElicModel


@dataclass(frozen=True)
class PictureSize:
    """One coded picture.

    Attributes:
        pixels: Height times width of the original.
        bytes: The whole `.cnk` container.
        payload_bits: Its entropy-coded part.
        estimate_bits: Code length under the float likelihoods of `forward`.
        integer_bits: Ideal code length of the coded symbols under the integer tables.
        float_bits: The same with the means and scales of the float networks: what integer networks would cost
            nothing against.
        zero_share: Share of `y` symbols that are zero.
        smallest_scale_share: Share of `y` symbols that are coded with the smallest scale.
    """

    pixels: int
    bytes: int
    payload_bits: int
    estimate_bits: float
    integer_bits: float
    float_bits: float
    zero_share: float
    smallest_scale_share: float


@torch.no_grad()
def picture_size(codec: ElicModel, picture: torch.Tensor) -> PictureSize:
    """Codes one picture and accounts for its bits.

    Args:
        codec: The codec, in eval mode, float32.
        picture: uint8 `(3, height, width)`.
    """
    captured: dict[object, torch.Tensor] = {}

    def keep(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        captured[module] = output  # of an aggregation the second pass stays, which is right at all positions

    modules = [codec.g_a, codec.h_a, *codec.parameter_aggregations]
    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        outputs = codec(picture[None].to(codec.device).float() / 255, quantization="ste")
    finally:
        for hook in hooks:
            hook.remove()
    y, z = captured[codec.g_a], captured[codec.h_a]
    parameters = [captured[module].chunk(2, 1) for module in codec.parameter_aggregations]
    means, scales = (torch.cat([pair[part] for pair in parameters], 1) for part in (0, 1))

    encoded = codec.exact.encode(y, (z - codec.entropy_bottleneck.medians[:, None, None]).round())
    (payload,) = codec.exact.pack(encoded)
    height, width = picture.shape[-2:]
    tables = codec.exact.tables.tables()
    z_symbols, z_indexes = (part[:, : z.numel()].numpy() for part in (encoded.symbols, encoded.indexes))
    symbols, indexes = (part[:, z.numel() :].numpy() for part in (encoded.symbols, encoded.indexes))
    float_symbols = (outputs.latents - means).round().to(torch.int64).cpu().numpy()
    float_indexes = torch.bucketize(scales.cpu(), codec.exact.thresholds.cpu() / SCALE_UNIT).numpy()
    z_bits = ideal_bits(z_symbols, z_indexes, tables)
    return PictureSize(
        pixels=height * width,
        bytes=len(Bitstream(codec.exact.fingerprint, height, width, payload).pack()),
        payload_bits=8 * len(payload),
        estimate_bits=-sum(float(part.double().log2().sum()) for part in outputs.likelihoods.values()),
        integer_bits=z_bits + ideal_bits(symbols, indexes, tables),
        float_bits=z_bits + ideal_bits(float_symbols, float_indexes, tables),
        zero_share=float((symbols == 0).mean()),
        smallest_scale_share=float((indexes == 0).mean()),
    )


def summarize_sizes(codec: ElicModel, pictures: Iterable[torch.Tensor], *, progress: bool = True) -> dict[str, float]:
    """Means over pictures, for results/benchmark.json.

    Args:
        codec: The codec, in eval mode.
        pictures: uint8 `(3, height, width)` each.
        progress: Show a bar.

    Returns:
        Bits per pixel, bytes, and relative differences in percent: container against estimate
        (`over_estimate_percent`; `over_estimate_bytes` in bytes), payload against the tables' ideal, and integer
        networks against float networks, both ideal under the same tables.
    """
    sizes = [picture_size(codec, picture) for picture in tqdm(pictures, desc="sizes", disable=not progress)]
    excess = [size.bytes - size.estimate_bits / 8 for size in sizes]
    return {
        "pictures": len(sizes),
        "bpp": mean(8 * size.bytes / size.pixels for size in sizes),
        "bytes": mean(size.bytes for size in sizes),
        "estimated_bytes": mean(size.estimate_bits / 8 for size in sizes),
        "over_estimate_bytes": mean(excess),
        "over_estimate_percent": 100 * mean(8 * e / size.estimate_bits for e, size in zip(excess, sizes, strict=True)),
        "payload_over_ideal_percent": 100 * (_total(sizes, "payload_bits") / _total(sizes, "integer_bits") - 1),
        "integer_networks_percent": 100 * (_total(sizes, "integer_bits") / _total(sizes, "float_bits") - 1),
        "integer_networks_worst_percent": 100 * max(size.integer_bits / size.float_bits - 1 for size in sizes),
        "zero_share": mean(size.zero_share for size in sizes),
        "smallest_scale_share": mean(size.smallest_scale_share for size in sizes),
    }


def _total(sizes: list[PictureSize], name: str) -> float:
    return sum(getattr(size, name) for size in sizes)


__all__ = ["PictureSize", "picture_size", "summarize_sizes"]
