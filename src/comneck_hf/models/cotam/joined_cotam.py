"""Latents and the picture that they decode to in one tensor: both pass a LLaVA, which knows `pixel_values` only."""

import torch
from torch.nn import functional as F

from ..codec_vision_config import DOWNSAMPLING_FACTOR


PICTURE_CHANNELS = 3 * DOWNSAMPLING_FACTOR**2  # of the pixels that lie under one position of the latents


def join_picture(latents: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """Latents, and behind them as channels the pixels of the picture under each of their positions.

    Args:
        latents: Shape `(batch, latent_channels, height, width)`.
        pictures: Shape `(batch, 3, 16 * height, 16 * width)`, values in [0, 1].

    Returns:
        Shape `(batch, latent_channels + 768, height, width)` in the type of `latents`; `split_picture` is the inverse.
    """
    return torch.cat([latents, F.pixel_unshuffle(pictures, DOWNSAMPLING_FACTOR).to(latents)], dim=1)


def split_picture(joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents `(batch, latent_channels, height, width)` and pictures `(batch, 3, 16 * height, 16 * width)`.

    Args:
        joined: What `join_picture` returned.
    """
    latents, pixels = joined.tensor_split([-PICTURE_CHANNELS], dim=1)
    return latents, F.pixel_shuffle(pixels, DOWNSAMPLING_FACTOR)


__all__ = ["PICTURE_CHANNELS", "join_picture", "split_picture"]
