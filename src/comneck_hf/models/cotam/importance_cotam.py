"""Importance maps to gain maps: pooled to a small grid and cut into levels (CoTAM, section 3)."""

import torch

from ...coding.gain_map import GainMap


# A spread below this share of a map's largest value, or this many of its roundings, is noise of its computation and no
# difference of importance
_SMALLEST_SPREAD, _ROUNDINGS = 1e-5, 100

WHOLE = (0.0, 0.0, 1.0, 1.0)


def padded_window(height: int, width: int, *, divisor: int) -> tuple[float, float, float, float]:
    """What part of a picture its latents span, as `window` of `pool_importance`: beyond 1 where the codec pads.

    Args:
        height, width: Of the picture in pixels.
        divisor: The codec pads both sides to multiples of this (`config.size_divisor`).
    """
    return 0.0, 0.0, (height + -height % divisor) / height, (width + -width % divisor) / width


def pool_importance(
    importance_map: torch.Tensor,
    grid: tuple[int, int],
    *,
    window: tuple[float, float, float, float] = WHOLE,
) -> torch.Tensor:
    """Mean of an importance map over each cell of a grid.

    Exact for cells of any size, as if the map were made of tiles of one value; where the sides of the map are
    multiples of the grid's it is average pooling.

    Args:
        importance_map: Shape `(batch, 1, height, width)`.
        grid: Rows and columns of the result.
        window: What part of the map the grid spans: top, left, bottom and right as shares of its height and width.
            Beyond the map its edge values continue, as the codec pads pictures.

    Returns:
        float64 `(batch, 1, rows, columns)`.

    Raises:
        ValueError: If the shape is another, the map is not finite, or grid or window are empty.
    """
    _check_shape(importance_map)
    if min(grid) < 1:
        raise ValueError(f"`grid` must be at least one row and one column, got {grid[0]}x{grid[1]}.")
    top, left, bottom, right = window
    if not (top < bottom and left < right):
        raise ValueError(f"`window` must have top < bottom and left < right, got {window}.")
    values = importance_map.to(torch.float64)
    if not values.isfinite().all():
        raise ValueError("`importance_map` holds NaN or infinity. Look for overflow in what made it.")
    rows = _averaging_weights(values.shape[2], grid[0], top, bottom).to(values.device)
    columns = _averaging_weights(values.shape[3], grid[1], left, right).to(values.device)
    return rows @ values @ columns.T


def _check_shape(importance_map: torch.Tensor) -> None:
    if importance_map.ndim != 4 or importance_map.shape[1] != 1 or 0 in importance_map.shape:
        raise ValueError(f"`importance_map` must be (batch, 1, height, width), got {tuple(importance_map.shape)}.")


def _averaging_weights(size: int, cells: int, start: float, stop: float) -> torch.Tensor:
    """Share that each of `size` values has in the mean of each cell: float64 `(cells, size)`, rows add up to 1."""
    bounds = size * (start + (stop - start) * torch.arange(cells + 1, dtype=torch.float64) / cells)
    first, last = bounds[:-1, None], bounds[1:, None]
    values = torch.arange(size, dtype=torch.float64)
    lower, upper = values.clone(), values + 1
    lower[0], upper[-1] = -torch.inf, torch.inf  # edge values continue
    overlap = (upper.minimum(last) - lower.maximum(first)).clamp(min=0)
    return overlap / (last - first)


def quantize_importance(
    importance_map: torch.Tensor,
    *,
    grid: tuple[int, int] = (8, 8),
    threshold: float = 0.75,
    levels: int = 3,
    step: int = 2,
    window: tuple[float, float, float, float] = WHOLE,
) -> list[GainMap]:
    """Levels by how far a cell is from the mean of its picture (CoTAM, section 3).

    With mean mu and standard deviation sigma over the cells of a picture, level +1 is above `mu + threshold * sigma`
    and -1 below `mu - threshold * sigma`; with more than three levels, +-2 begins at twice that distance, and so on.
    A map's scale and offset change nothing. A picture whose cells are all alike gets zeros.

    Args:
        importance_map: Shape `(batch, 1, height, width)`, any scale.
        grid: Rows and columns of the gain maps; the importance map's own where those are fewer.
        threshold: In standard deviations; 0.75 in the paper.
        levels: How many levels there are, odd; 3 in the paper.
        step: Quarter octaves of gain per level.
        window: What part of the map the coded picture shows, as in `pool_importance`.

    Returns:
        One map per picture.

    Raises:
        ValueError: If the map is not finite, or a value is out of its range.
    """
    if not threshold > 0:
        raise ValueError(f"`threshold` must be above 0 standard deviations, got {threshold}.")
    _check_shape(importance_map)
    height, width = importance_map.shape[-2:]
    values = importance_map.to(torch.float64)
    values = values - values.mean(dim=(2, 3), keepdim=True)  # large offsets would hide small differences
    cells = pool_importance(values, (min(grid[0], height), min(grid[1], width)), window=window)
    noise = _smallest_spread(importance_map)
    spread = cells.std(dim=(1, 2, 3), correction=0, keepdim=True)
    deviation = (cells - cells.mean(dim=(1, 2, 3), keepdim=True)) / (threshold * spread)
    distance = (deviation.abs().ceil() - 1).clamp(0, levels // 2)
    index = torch.where(spread > noise, deviation.sign() * distance, 0)
    return gain_maps(index[:, 0], levels=levels, step=step)


def _smallest_spread(importance_map: torch.Tensor) -> torch.Tensor:
    """Below this the spread of a map is noise: float64 `(batch, 1, 1, 1)`."""
    rounding = torch.finfo(importance_map.dtype).eps if importance_map.is_floating_point() else 0.0
    largest = importance_map.abs().amax(dim=(1, 2, 3), keepdim=True).to(torch.float64)
    return min(_SMALLEST_SPREAD, _ROUNDINGS * rounding) * largest


def gain_maps(gain_index: torch.Tensor, *, levels: int = 3, step: int = 2) -> list[GainMap]:
    """Gain maps of levels that are known already.

    Args:
        gain_index: Whole numbers `(batch, rows, columns)` in `[-(levels // 2), levels // 2]`.
        levels: How many levels there are, odd.
        step: Quarter octaves of gain per level.

    Raises:
        ValueError: If a value is out of its range.
    """
    return [GainMap(rows, step=step, levels=levels) for rows in gain_index.to("cpu", torch.int64).tolist()]


__all__ = ["gain_maps", "padded_window", "pool_importance", "quantize_importance"]
