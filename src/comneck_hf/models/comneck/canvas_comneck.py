"""A picture on a canvas of tiles, as LLaVA-NeXT cuts it: where it lies, its tiles, and the view of the whole."""

import math

import torch
from torch.nn import functional as F

from ..codec_vision_config import DOWNSAMPLING_FACTOR
from ..cotam.importance_cotam import pool_importance


def picture_window(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """Which part of a canvas a picture fills: resized to fit, with black on both sides of one of its axes.

    Args:
        size: Height and width of the original picture in pixels.
        canvas: Height and width of the canvas in pixels.

    Returns:
        Top, left, bottom and right in pixels, the last two exclusive: where transformers puts it.
    """
    scale_height, scale_width = canvas[0] / size[0], canvas[1] / size[1]
    if scale_width < scale_height:
        height, width = min(math.ceil(size[0] * scale_width), canvas[0]), canvas[1]
    else:
        height, width = canvas[0], min(math.ceil(size[1] * scale_height), canvas[1])
    top, left = (canvas[0] - height) // 2, (canvas[1] - width) // 2
    return top, left, top + height, left + width


def join_tiles(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A canvas of its tiles, row by row.

    Args:
        tiles: Shape `(rows * columns, channels, height, width)`.
        rows: Tiles from top to bottom.
        columns: Tiles from left to right.

    Returns:
        Shape `(channels, rows * height, columns * width)`.
    """
    return tiles.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def cut_tiles(canvas: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The tiles of a canvas, pictures or latents: the inverse of `join_tiles`."""
    return canvas.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)


def pool_latents(latents: torch.Tensor, grid: tuple[int, int], *, size: tuple[int, int]) -> torch.Tensor:
    """Latents of the whole picture at the size of one tile: averages of the canvas's (CoTAM, section 3).

    Adaptive average pooling of the part that shows the picture, which need not begin at a latent's border.

    Args:
        latents: Of the canvas, `(latent_channels, height, width)`.
        grid: Rows and columns of the result.
        size: Height and width of the original picture.

    Returns:
        float32 `(latent_channels, *grid)`.
    """
    height, width = latents.shape[1:]
    canvas = (height * DOWNSAMPLING_FACTOR, width * DOWNSAMPLING_FACTOR)
    top, left, bottom, right = picture_window(size, canvas)
    window = (top / canvas[0], left / canvas[1], bottom / canvas[0], right / canvas[1])
    return pool_importance(latents[:, None], grid, window=window)[:, 0].float()


def resize_picture(canvas: torch.Tensor, target: tuple[int, int], *, size: tuple[int, int]) -> torch.Tensor:
    """The picture on a canvas without what is beside it, at another size.

    Args:
        canvas: Shape `(3, height, width)`, values in [0, 1].
        target: Height and width of the result.
        size: Height and width of the original picture.

    Returns:
        Shape `(3, *target)`, values in [0, 1].
    """
    top, left, bottom, right = picture_window(size, tuple(canvas.shape[1:]))
    picture = canvas[None, :, top:bottom, left:right]
    return F.interpolate(picture, target, mode="bicubic", antialias=True)[0].clamp(0, 1)


__all__ = ["cut_tiles", "join_tiles", "picture_window", "pool_latents", "resize_picture"]
