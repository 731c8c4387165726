"""One picture with and without a region of interest, at equal bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import ComNeckImageProcessorPil, ElicModel
from ..coding.gain_map import GainMap
from ..evaluation.metrics import region_psnr
from ..evaluation.pictures import picture_tensor
from ..evaluation.plots import save_region_figure
from ..models.cotam.regions_cotam import Box
from ..models.image_codec import latent_size
from .files import to_image
from .maps import MapOptions, map_maker, prepare_picture
from .streams import check_gains


__all__ = ["RegionDemo", "run_region_demo"]

REGION_STEP = 4  # quarter octaves: an octave finer inside
MAX_PSNR = 100.0  # of pictures that are equal, for JSON


@dataclass(frozen=True)
class CodedRegion:
    """A coded picture.

    Attributes:
        picture: What comes back, 8 bits.
        num_bytes: Size of the bitstream.
        inside: PSNR in the region, in dB; at most 100.
        outside: PSNR in the rest, 0 where there is none.
    """

    picture: Image.Image
    num_bytes: int
    inside: float
    outside: float


@dataclass(frozen=True)
class RegionDemo:
    """What a region of interest does to a picture.

    Attributes:
        name: Name of the picture.
        original: What was coded: the picture after resize and crop, 8 bits.
        gain_map: The region's map.
        region: The pixels of the coded picture that get more bits, bool `(height, width)`.
        without: Coded without the region.
        with_region: Coded with it, at as nearly the same bytes as the rate control gets.
    """

    name: str
    original: Image.Image
    gain_map: GainMap
    region: np.ndarray
    without: CodedRegion
    with_region: CodedRegion

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        codings = {"without_region": self.without, "with_region": self.with_region}
        return {
            "picture": self.name,
            "height": self.original.height,
            "width": self.original.width,
            "region_share": float(self.region.mean()),
            "gain_map": self.gain_map.gain_index,
            **{
                name: {"bytes": coded.num_bytes, "psnr_inside": coded.inside, "psnr_outside": coded.outside}
                for name, coded in codings.items()
            },
        }

    def to_text(self) -> str:
        """The same as a table of a few lines."""
        share = f"the region is {100 * self.region.mean():.0f} % of it"
        lines = [f"{self.name}, {self.original.width}x{self.original.height} pixels coded; {share}", ""]
        lines.append(f"{'':<16}{'bytes':>7}{'PSNR inside':>14}{'outside':>12}")
        for title, coded in (("without region", self.without), ("with region", self.with_region)):
            lines.append(f"{title:<16}{coded.num_bytes:>7}{coded.inside:>11.2f} dB{coded.outside:>9.2f} dB")
        return "\n".join(lines)

    def save_figure(self, path: str | Path) -> None:
        """Draws the original and both decoded pictures, and below them the region enlarged."""
        panels = [("original", self.original)]
        for title, coded in (("without region", self.without), ("with region", self.with_region)):
            numbers = f"{coded.num_bytes} bytes; inside {coded.inside:.1f} dB, outside {coded.outside:.1f} dB"
            panels.append((f"{title}\n{numbers}", coded.picture))
        save_region_figure(
            path, pictures=panels, region=self.region, title=f"{self.name}: the same bytes, moved into the region"
        )


@torch.no_grad()
def run_region_demo(
    picture: Image.Image,
    boxes: Sequence[Box],
    *,
    name: str,
    codec: ElicModel,
    image_processor: ComNeckImageProcessorPil,
) -> RegionDemo:
    """Codes a picture as trained, and once more with more bits in the boxes and as many bytes.

    Args:
        picture: RGB, upright.
        boxes: Left, top, right and bottom in pixels of the picture.
        name: How to call the picture.
        codec: The codec.
        image_processor: The model's.

    Raises:
        ValueError: If a box lies outside the picture or what is coded of it, or the codec has no gains.
    """
    check_gains(codec)
    prepared = prepare_picture(picture, image_processor, size_divisor=codec.config.size_divisor)
    make_map = map_maker(MapOptions(boxes=tuple(boxes), step=REGION_STEP))
    assert make_map is not None, "there are boxes"
    gain_map = make_map(prepared)
    pixel_values = prepared.pixel_values[None].to(codec.device)
    region = _region(gain_map, codec, pixel_values)
    without = codec.compress(pixel_values)[0]
    with_region = codec.compress(pixel_values, gain_maps=gain_map, target_bytes=len(without))[0]
    original = to_image(pixel_values[0])
    return RegionDemo(
        name,
        original,
        gain_map,
        region,
        *(_decoded(codec, data, original, region) for data in (without, with_region)),
    )


def _region(gain_map: GainMap, codec: ElicModel, pixel_values: torch.Tensor) -> np.ndarray:
    """Pixels of the cells at level 1: the latents stand for squares of the padded picture."""
    height, width = pixel_values.shape[-2:]
    divisor, factor = codec.config.size_divisor, codec.config.downsampling_factor
    rows, columns = latent_size(height, width, divisor=divisor, factor=factor)
    index = np.array(gain_map.gain_index)
    cells = index[np.arange(rows) * gain_map.rows // rows][:, np.arange(columns) * gain_map.columns // columns]
    return (cells > 0).repeat(factor, 0).repeat(factor, 1)[:height, :width]


def _decoded(codec: ElicModel, data: bytes, original: Image.Image, region: np.ndarray) -> CodedRegion:
    latents, gains = codec.decompress([data]), codec.coded_gains([data])
    picture = to_image(codec.decode(latents, size=(original.height, original.width), **gains)[0])
    pixels = [picture_tensor(image) / 255 for image in (picture, original)]
    inside, outside = (
        min(region_psnr(*pixels, torch.from_numpy(part)), MAX_PSNR) if part.any() else 0.0
        for part in (region, ~region)
    )
    return CodedRegion(picture, len(data), inside, outside)
