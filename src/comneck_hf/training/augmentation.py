"""Augmentation of batches of pictures on tensors; every random draw comes from a generator that the caller gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


__all__ = [
    "Augmentation",
    "center_crop",
    "center_crop_resize",
    "color_jitter",
    "random_crops",
    "random_erasing",
    "random_resized_crops",
]

_LUMA = (0.299, 0.587, 0.114)
CROPS = ("resized", "window", "center")


@dataclass(frozen=True)
class Augmentation:
    """What happens to a picture before a network sees it.

    Attributes:
        size: Side of the result in pixels.
        crop: `"resized"` cuts windows of random area and aspect ratio and resizes them; `"window"` cuts random
            windows of `size` pixels, which keeps the pixels as they are; `"center"` takes the middle.
        smallest_crop: Smallest share of the picture in a `"resized"` window.
        jitter: Largest relative change of brightness, contrast and saturation.

    Raises:
        ValueError: If a value is out of its range.
    """

    size: int
    crop: str = "resized"
    smallest_crop: float = 0.35
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"`crop` must be one of {CROPS}, got {self.crop!r}.")
        if self.size < 1 or not 0 < self.smallest_crop <= 1 or not 0 <= self.jitter <= 1:
            raise ValueError(
                f"`size` must be positive, `smallest_crop` in (0, 1] and `jitter` in [0, 1], got {self.size}, "
                f"{self.smallest_crop} and {self.jitter}."
            )

    def __call__(self, images: Tensor | Sequence[Tensor], *, generator: torch.Generator) -> Tensor:
        """Augments a batch.

        Args:
            images: uint8 `(batch, 3, height, width)`, or a sequence of `(3, height, width)` of any sizes.
            generator: Source of the random numbers.

        Returns:
            float32 `(batch, 3, size, size)` in [0, 1].
        """
        if self.crop == "center":
            return torch.cat(
                [center_crop_resize(image[None], self.size, crop_size=min(image.shape[1:])) for image in images]
            )
        if self.crop == "window":
            pixels = random_crops(images, self.size, generator=generator)
        else:
            pixels = random_resized_crops(images, self.size, generator=generator, scale=(self.smallest_crop, 1.0))
        return color_jitter(pixels, strength=self.jitter, generator=generator) if self.jitter else pixels


def random_crops(images: Tensor | Sequence[Tensor], size: int, *, generator: torch.Generator) -> Tensor:
    """Cuts one random `size` x `size` window out of every picture and mirrors half of them.

    Args:
        images: uint8 `(batch, 3, height, width)` or a sequence of `(3, height, width)`, each side at least `size`.
        size: side of the windows in pixels.
        generator: source of the positions and flips.

    Returns:
        float32 `(batch, 3, size, size)` in [0, 1].
    """
    draws = torch.rand((len(images), 3), generator=generator).tolist()
    crops = images[0].new_empty((len(images), 3, size, size))
    for crop, image, (down, right, flip) in zip(crops, images, draws, strict=True):
        height, width = image.shape[1:]
        if min(height, width) < size:
            raise ValueError(f"pictures are {height}x{width}; expected sides of at least the crop size {size}")
        top, left = int(down * (height - size + 1)), int(right * (width - size + 1))
        window = image[:, top : top + size, left : left + size]
        crop.copy_(window.flip(-1) if flip < 0.5 else window)
    return crops.float().div_(255)


def random_resized_crops(
    images: Tensor | Sequence[Tensor],
    size: int,
    *,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.35, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cuts windows of random area and aspect ratio, resizes them (antialiased bilinear) and mirrors half of them.

    Args:
        images: uint8 `(batch, 3, height, width)` or a sequence of `(3, height, width)` of any sizes.
        size: side of the results in pixels.
        generator: source of the random numbers.
        scale: range of the area of a window, as a fraction of the picture.
        ratio: range of width / height of a window, drawn uniformly in the logarithm.

    Returns:
        float32 `(batch, 3, size, size)` in [0, 1].
    """
    draws = torch.rand((len(images), 5), generator=generator)
    height, width = torch.tensor([image.shape[1:] for image in images], dtype=torch.float32).unbind(1)
    areas = (scale[0] + (scale[1] - scale[0]) * draws[:, 0]) * height * width
    ratios = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * draws[:, 1])
    heights = (areas / ratios).sqrt().round().clamp(min=1).minimum(height)
    widths = (areas * ratios).sqrt().round().clamp(min=1).minimum(width)
    tops = (draws[:, 2] * (height - heights + 1)).floor().minimum(height - 1)
    lefts = (draws[:, 3] * (width - widths + 1)).floor().minimum(width - 1)
    boxes = torch.stack([tops, lefts, heights, widths], dim=1).int().tolist()
    crops = images[0].new_empty((len(images), 3, size, size))
    for crop, image, (top, left, crop_height, crop_width) in zip(crops, images, boxes, strict=True):
        window = image[None, :, top : top + crop_height, left : left + crop_width]
        crop.copy_(F.interpolate(window, (size, size), mode="bilinear", antialias=True)[0])
    crops = torch.where((draws[:, 4] < 0.5).view(-1, 1, 1, 1), crops.flip(-1), crops)
    return crops.float().div_(255)


def center_crop(image: Tensor, side: int) -> Tensor:
    """The middle `(..., side, side)` of a picture `(..., height, width)`."""
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    return image[..., top : top + side, left : left + side]


def center_crop_resize(images: Tensor, size: int, *, crop_size: int | None = None) -> Tensor:
    """Cuts the central `crop_size` square and resizes it (antialiased bicubic) for validation.

    Args:
        images: uint8 `(batch, 3, height, width)`.
        size: side of the results in pixels.
        crop_size: side of the square before the resize; by default the whole picture is used.

    Returns:
        float32 `(batch, 3, size, size)` in [0, 1].
    """
    if crop_size is not None:
        height, width = images.shape[2:]
        if min(height, width) < crop_size:
            raise ValueError(f"pictures are {height}x{width}; expected sides of at least crop_size {crop_size}")
        images = center_crop(images, crop_size)
    resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    return resized.div_(255).clamp_(0, 1)


def color_jitter(images: Tensor, *, strength: float, generator: torch.Generator) -> Tensor:
    """Changes brightness, contrast and saturation of every picture by factors of 1 - strength to 1 + strength.

    Args:
        images: float `(batch, 3, height, width)` in [0, 1].
        strength: largest relative change, from 0 to 1.
        generator: source of the factors.

    Returns:
        float `(batch, 3, height, width)` in [0, 1].
    """
    factors = 1 + strength * (2 * torch.rand((3, images.shape[0], 1, 1, 1), generator=generator) - 1)
    brightness, contrast, saturation = factors.to(images)
    images = images * brightness
    gray = (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    mean = gray.mean((2, 3), keepdim=True)
    # Contrast blends with the mean gray, saturation with the gray picture; both are linear, so one pass does both.
    images = contrast * (saturation * images + (1 - saturation) * gray) + (1 - contrast) * mean
    return images.clamp_(0, 1)


def random_erasing(images: Tensor, *, probability: float, generator: torch.Generator, fill: float = 0.0) -> Tensor:
    """Fills one random rectangle (2 % to 20 % of the area) of some pictures, in place.

    Args:
        images: float `(batch, 3, height, width)`; changed in place.
        probability: share of the pictures that lose a rectangle.
        generator: source of the positions.
        fill: the value written.

    Returns:
        `images`.
    """
    batch, _, height, width = images.shape
    draws = torch.rand((batch, 5), generator=generator).tolist()
    for index, (chance, area, aspect, down, right) in enumerate(draws):
        if chance >= probability:
            continue
        area = (0.02 + 0.18 * area) * height * width
        aspect = math.exp(math.log(0.4) + math.log(2.5 / 0.4) * aspect)
        box_height, box_width = (
            min(height, round(math.sqrt(area / aspect))),
            min(width, round(math.sqrt(area * aspect))),
        )
        top, left = int(down * (height - box_height + 1)), int(right * (width - box_width + 1))
        images[index, :, top : top + box_height, left : left + box_width] = fill
    return images
