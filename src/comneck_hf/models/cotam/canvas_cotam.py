"""Importance of large pictures: a global look and one at each tile."""

import torch
from torch.nn import functional as F

from ...coding.gain_map import MAX_MAP_CELLS
from .guide_cotam import ShallowAttentionGuide


_TINY = 1e-12


def canvas_importance(
    guide: ShallowAttentionGuide, pixel_values: torch.Tensor, *, tile: int | tuple[int, int]
) -> torch.Tensor:
    """Importance of a picture of several tiles: the guide's map of each tile plus its map of the whole picture.

    The attention of every map adds up to about 1, so that maps of different tiles are not comparable by themselves.
    Each is divided by its own mean, and the global map, stretched over the canvas, tells tiles apart. For levels,
    `quantize_importance` takes the statistics over the whole canvas:

        importance_map = canvas_importance(guide, pixel_values, tile=384)
        gain_maps = quantize_importance(importance_map, grid=canvas_grid((8, 8), rows=2, columns=3))

    For tiles of other sizes than multiples of 64 pixels it takes the codec's padding as `window=padded_window(...)`.

    Args:
        guide: Runs once on the whole picture and once on all of its tiles.
        pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1].
        tile: Side, or height and width, of a tile in pixels.

    Returns:
        float32 `(batch, 1, rows * guide rows, columns * guide columns)` for a canvas of rows x columns tiles; mean 2.

    Raises:
        ValueError: If the picture is not made of whole tiles.
    """
    tile_height, tile_width = (tile, tile) if isinstance(tile, int) else tile
    batch, channels, height, width = pixel_values.shape
    if min(tile_height, tile_width) < 1 or height % tile_height or width % tile_width:
        raise ValueError(
            f"The picture of {height}x{width} pixels is not made of tiles of {tile_height}x{tile_width}. Resize or "
            "pad it to whole tiles, as an any-resolution image processor does."
        )
    rows, columns = height // tile_height, width // tile_width
    grid_rows, grid_columns = guide.grid
    overview = _divided_by_mean(guide(pixel_values))
    overview = F.interpolate(overview, (rows * grid_rows, columns * grid_columns), mode="bilinear")
    tiles = pixel_values.view(batch, channels, rows, tile_height, columns, tile_width).permute(0, 2, 4, 1, 3, 5)
    local = _divided_by_mean(guide(tiles.flatten(0, 2)))
    local = local.view(batch, rows, columns, grid_rows, grid_columns).transpose(2, 3)
    return overview + local.reshape(overview.shape)


def _divided_by_mean(importance_map: torch.Tensor) -> torch.Tensor:
    return importance_map / importance_map.mean(dim=(1, 2, 3), keepdim=True).clamp(min=_TINY)


def canvas_grid(grid: tuple[int, int], *, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of the gain map of a canvas: as many cells per tile as one picture has.

    Fewer, in the same proportion, where a gain map would not hold them (`MAX_MAP_CELLS`).

    Args:
        grid: Of one picture.
        rows: Tiles from top to bottom.
        columns: Tiles from left to right.
    """
    scale = min(1.0, (MAX_MAP_CELLS / (rows * columns * grid[0] * grid[1])) ** 0.5)
    return rows * max(1, int(scale * grid[0])), columns * max(1, int(scale * grid[1]))


__all__ = ["canvas_grid", "canvas_importance"]
