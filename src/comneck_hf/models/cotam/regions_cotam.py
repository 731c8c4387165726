"""Gain maps of regions that the user names: boxes, masks and heat maps."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ...coding.gain_map import GainMap
from .importance_cotam import WHOLE, gain_maps, pool_importance, quantize_importance


Box = tuple[float, float, float, float]


def gain_map_from_boxes(
    boxes: Sequence[Box],
    *,
    size: tuple[int, int],
    grid: tuple[int, int] = (8, 8),
    outside: int = 0,
    step: int = 2,
    window: tuple[float, float, float, float] = WHOLE,
) -> GainMap:
    """Level +1 inside boxes, another level outside.

    A cell is inside if a box covers at least half of its width and half of its height; a box that is narrower or lower
    than a cell need only lie half in it. So every box gets a cell, and cells that it hardly touches cost no bits.

    Args:
        boxes: In pixels: left, top, right, bottom, the last two exclusive. Parts beyond the picture are cut off.
        size: Height and width of the picture that the pixels are counted in.
        grid: Rows and columns of the map.
        outside: Level of all other cells, 0 or -1.
        step: Quarter octaves of gain per level.
        window: What part of that picture is coded: top, left, bottom and right as shares of its sides. The codec pads
            pictures whose sides are no multiples of 64; then `padded_window(height, width, divisor=64)`.

    Raises:
        ValueError: If there is no box, one is empty, or lies outside the picture or outside what is coded of it.
    """
    if not boxes:
        raise ValueError("`boxes` must hold at least one box.")
    if outside not in (0, -1):
        raise ValueError(f"`outside` must be 0 or -1, got {outside}.")
    height, width = size
    top, left, bottom, right = window
    index = torch.full(grid, outside)
    for box in boxes:
        x0, y0, x1, y1 = _inside_picture(box, height, width)
        rows = _covered(grid[0], (y0 / height - top) / (bottom - top), (y1 / height - top) / (bottom - top))
        columns = _covered(grid[1], (x0 / width - left) / (right - left), (x1 / width - left) / (right - left))
        if not (rows.any() and columns.any()):
            raise ValueError(
                f"The box {_text(box)} lies in a part of the picture that is cut off before coding. Choose one nearer "
                "to the middle, or code the whole picture (`do_resize=False, do_center_crop=False`; `comneck encode "
                "--no-crop`)."
            )
        index[rows[:, None] & columns] = 1
    return gain_maps(index[None], step=step)[0]


def _inside_picture(box: Box, height: int, width: int) -> Box:
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"The box {_text(box)} is empty; boxes are left, top, right, bottom.")
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        raise ValueError(f"The box {_text(box)} lies outside the picture of {width}x{height} pixels (width x height).")
    return max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)


def _covered(cells: int, start: float, stop: float) -> torch.Tensor:
    """Which cells the interval covers by half of the shorter of the two: bool `(cells,)`. The cells span 0 to 1."""
    start, stop = cells * max(start, 0), cells * min(stop, 1)
    if stop <= start:
        return torch.zeros(cells, dtype=torch.bool)
    first = torch.arange(cells, dtype=torch.float64)
    overlap = (first + 1).clamp(max=stop) - first.clamp(min=start)
    return overlap >= 0.5 * min(1.0, stop - start) - 1e-9


def _text(box: Box) -> str:
    return ",".join(f"{value:g}" for value in box)


def gain_map_from_picture(
    picture: Image.Image | np.ndarray | torch.Tensor,
    *,
    grid: tuple[int, int] = (8, 8),
    outside: int = 0,
    step: int = 2,
    window: tuple[float, float, float, float] = WHOLE,
) -> GainMap:
    """Gain map of a mask or heat map of any size; it is stretched over the whole picture.

    Two distinct values make a mask: level +1 where the larger covers half a cell (half of what the fullest cell has,
    if none is full), `outside` elsewhere. More values make a heat map: `quantize_importance`, where `outside` has no
    meaning.

    Args:
        picture: A picture, whose brightness counts, or numbers `(height, width)`.
        grid: Rows and columns of the map.
        outside: Level of the cells outside a mask, 0 or -1.
        step: Quarter octaves of gain per level.
        window: As in `gain_map_from_boxes`.

    Raises:
        ValueError: If the shape is another, all values are equal, one is not finite, or what a mask marks is not
            coded.
    """
    if outside not in (0, -1):
        raise ValueError(f"`outside` must be 0 or -1, got {outside}.")
    values = _brightness(picture)
    distinct = values.unique()
    if len(distinct) == 1:
        raise ValueError(
            f"The map of {tuple(values.shape)} has the value {distinct[0]:g} everywhere: it marks nothing."
        )
    if len(distinct) > 2:
        return quantize_importance(values[None, None], grid=grid, step=step, window=window)[0]
    covered = pool_importance((values == distinct[1])[None, None], grid, window=window)[:, 0]
    if covered.max() == 0:
        raise ValueError("All that the mask marks is cut off before coding. Code the whole picture.")
    index = torch.where(covered >= 0.5 * covered.max(), 1, outside)
    return gain_maps(index, step=step)[0]


def _brightness(picture: Image.Image | np.ndarray | torch.Tensor) -> torch.Tensor:
    """float64 `(height, width)`."""
    if isinstance(picture, Image.Image):
        has_numbers = picture.mode in ("1", "L", "F") or picture.mode.startswith("I")
        picture = np.array(picture if has_numbers else picture.convert("L"))
    values = torch.as_tensor(np.asarray(picture, dtype=np.float64))
    if values.ndim != 2 or values.numel() == 0:
        raise ValueError(f"A mask or heat map must be (height, width), got {tuple(values.shape)}.")
    if not values.isfinite().all():
        raise ValueError("The heat map holds NaN or infinity.")
    return values


__all__ = ["gain_map_from_boxes", "gain_map_from_picture"]
