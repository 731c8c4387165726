"""Rate and distortion of coded pictures."""

import numpy as np
import torch
from PIL import Image


__all__ = ["bits_per_pixel", "ms_ssim", "picture_psnr", "psnr", "region_psnr"]

MS_SSIM_SIDE = 96  # the five scales need sides above this


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


def ms_ssim(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Multi-scale structural similarity (Wang et al., 2003), one value per picture.

    The window has 11 pixels, as is usual, and 7 where a side is at most 160 pixels: five scales of the usual one need
    more.

    Args:
        image: Shape `(batch, channels, height, width)`, sides above 96 pixels, values in [0, 1].
        reference: Same shape and range.

    Returns:
        `(batch,)`, 1 where the pictures are equal.

    Raises:
        ValueError: If the shapes differ or a side is too short.
    """
    from pytorch_msssim import ms_ssim as similarity

    side = min(image.shape[-2:])
    if image.shape != reference.shape or side <= MS_SSIM_SIDE:
        raise ValueError(
            f"MS-SSIM compares pictures of one shape with sides above {MS_SSIM_SIDE} pixels, got "
            f"{tuple(image.shape)} and {tuple(reference.shape)}."
        )
    return similarity(image, reference, data_range=1.0, size_average=False, win_size=11 if side > 160 else 7)


def region_psnr(image: torch.Tensor, reference: torch.Tensor, region: torch.Tensor) -> float:
    """PSNR in dB over the pixels of a region.

    Args:
        image, reference: Shape `(channels, height, width)`, values in [0, 1].
        region: bool `(height, width)`, not empty.
    """
    return psnr(*(picture[:, region][None, ..., None] for picture in (image, reference))).item()


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
