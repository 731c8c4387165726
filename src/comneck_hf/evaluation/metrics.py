"""Rate and distortion of coded pictures."""

import numpy as np
import torch
from PIL import Image


__all__ = ["bits_per_pixel", "picture_psnr", "psnr"]


def psnr(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, one value per picture.

    Args:
        image: Shape `(batch, channels, height, width)`, values in [0, 1]. Not clamped and not rounded here.
        reference: Same shape and range.

    Returns:
        float64 `(batch,)`. Infinite where the pictures are equal.

    Raises:
        ValueError: If the shapes differ or are not 4-D.
    """
    if image.shape != reference.shape or image.dim() != 4:
        raise ValueError(
            f"`image` and `reference` must have the same shape (batch, channels, height, width), got "
            f"{tuple(image.shape)} and {tuple(reference.shape)}. Crop the decoded picture to the original size."
        )
    error = (image.double() - reference.double()).square().mean(dim=(1, 2, 3))
    return -10 * error.log10()


def picture_psnr(picture: Image.Image, reference: Image.Image) -> float:
    """PSNR in dB of two 8-bit RGB pictures of one size."""
    batches = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double() for image in (picture, reference)]
    return psnr(batches[0] / 255, batches[1] / 255).item()


def bits_per_pixel(num_bytes: int, *, height: int, width: int) -> float:
    """Bits per pixel of the original picture, everything in the file counted.

    Args:
        num_bytes: Size of the coded picture in bytes, container included.
        height: Height of the original picture in pixels, before padding.
        width: Width, likewise.

    Raises:
        ValueError: If a side is not positive or `num_bytes` is negative.
    """
    if height < 1 or width < 1 or num_bytes < 0:
        raise ValueError(
            f"Sides must be positive and `num_bytes` not negative, got {height}x{width} pixels and {num_bytes} bytes."
        )
    return 8 * num_bytes / (height * width)
