"""How well one codec reaches wanted sizes, and what a region of interest gains at equal bytes."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..coding.gain_map import GainMap
from ..models.cotam.importance_cotam import padded_window
from ..models.cotam.regions_cotam import Box, gain_map_from_boxes
from ..models.elic.modeling_elic import ElicModel
from .metrics import bits_per_pixel, psnr, region_psnr


@dataclass(frozen=True)
class ReachedSize:
    """What became of one wanted size.

    Attributes:
        picture: Number of the picture.
        wanted_bpp: Bits per pixel that were asked for.
        bpp: Bits per pixel of the bitstream.
        psnr: Of the decoded picture in dB.
    """

    picture: int
    wanted_bpp: float
    bpp: float
    psnr: float


@dataclass(frozen=True)
class RegionPsnr:
    """One picture coded without and with a region of interest.

    Attributes:
        picture: Number of the picture.
        box: The region in pixels: left, top, right, bottom.
        plain_bytes, region_bytes: Sizes of the bitstreams.
        inside: PSNR inside the box without and with the region, in dB.
        outside: Likewise outside.
    """

    picture: int
    box: Box
    plain_bytes: int
    region_bytes: int
    inside: tuple[float, float]
    outside: tuple[float, float]


@torch.no_grad()
def reach_rates(codec: ElicModel, pictures: Sequence[torch.Tensor], rates: Sequence[float]) -> Iterator[ReachedSize]:
    """Codes every picture at every rate.

    Args:
        codec: The codec.
        pictures: uint8 `(3, height, width)`, of any sizes.
        rates: Bits per pixel.

    Yields:
        Picture by picture, the rates in their order.
    """
    for number, picture in enumerate(pictures):
        pixel_values = (picture[None] / 255).to(codec.device)
        height, width = picture.shape[-2:]
        for rate in rates:
            (data,) = codec.compress(pixel_values, target_bpp=rate)
            distortion = psnr(_decode(codec, data, (height, width))[None], picture[None] / 255).item()
            yield ReachedSize(number, rate, bits_per_pixel(len(data), height=height, width=width), distortion)


@torch.no_grad()
def region_gains(
    codec: ElicModel, pictures: Sequence[torch.Tensor], *, step: int, seed: int = 0
) -> Iterator[RegionPsnr]:
    """Codes every picture with a random box as its region of interest, at the bytes that it takes without.

    Args:
        codec: The codec.
        pictures: uint8 `(3, height, width)`, of any sizes.
        step: Quarter octaves of gain of the box over the rest.
        seed: Of the boxes: sides of a fifth to a half of the picture's.
    """
    source = random.Random(seed)
    for number, picture in enumerate(pictures):
        height, width = picture.shape[-2:]
        box = _random_box(source, height, width)
        pixel_values = (picture[None] / 255).to(codec.device)
        gain_map = _map_of(box, height, width, step, codec.config.size_divisor)
        (plain,) = codec.compress(pixel_values)
        (guided,) = codec.compress(pixel_values, gain_maps=gain_map, target_bytes=len(plain))
        inside = torch.zeros(height, width, dtype=torch.bool)
        inside[box[1] : box[3], box[0] : box[2]] = True
        decoded = [_decode(codec, data, (height, width)) for data in (plain, guided)]
        yield RegionPsnr(
            number,
            box,
            len(plain),
            len(guided),
            inside=tuple(region_psnr(pixels, picture / 255, inside) for pixels in decoded),
            outside=tuple(region_psnr(pixels, picture / 255, ~inside) for pixels in decoded),
        )


def _map_of(box: Box, height: int, width: int, step: int, divisor: int) -> GainMap:
    window = padded_window(height, width, divisor=divisor)
    grid = (-(-height // 32), -(-width // 32))
    return gain_map_from_boxes([box], size=(height, width), grid=grid, step=step, window=window)


def _random_box(source: random.Random, height: int, width: int) -> tuple[int, int, int, int]:
    box_height, box_width = (round(side * source.uniform(0.2, 0.5)) for side in (height, width))
    top, left = source.randint(0, height - box_height), source.randint(0, width - box_width)
    return left, top, left + box_width, top + box_height


def _decode(codec: ElicModel, data: bytes, size: tuple[int, int]) -> torch.Tensor:
    """8-bit picture, float `(3, height, width)` in [0, 1] on the CPU."""
    decoded = codec.decode(codec.decompress([data]), size=size, **codec.coded_gains([data]))
    return (decoded[0].cpu() * 255).round() / 255


__all__ = ["ReachedSize", "RegionPsnr", "reach_rates", "region_gains"]
