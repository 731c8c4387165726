"""Which activation rows a convolution gathers under its window: row numbers of positions, and tables of windows.

Rows run over batch, height, width, or over the two halves of a checkerboard.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class GatherTable:
    """Which input rows each output row sees.

    Attributes:
        rows: int64 `(outputs, taps)`; the index one past the last input row means padding.
        targets: int64 `(outputs,)` output row of each entry, or `None` for 0, 1, 2, ...
    """

    rows: torch.Tensor
    targets: torch.Tensor | None = None


def plain_rows(batch: int, height: int, width: int) -> torch.Tensor:
    """Row number of every position when rows run over batch, height, width: int64 `(batch, height, width)`."""
    return torch.arange(batch * height * width).view(batch, height, width)


def checkerboard_rows(batch: int, height: int, width: int) -> torch.Tensor:
    """Row numbers when all anchors (row plus column even) of the batch come first, then all non-anchors."""
    parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    half = height * width // 2
    within = torch.empty(height, width, dtype=torch.int64)
    for value in (0, 1):
        within[parity == value] = torch.arange(half)
    return parity * batch * half + within + torch.arange(batch)[:, None, None] * half


def convolution_table(sources: torch.Tensor, targets: torch.Tensor, kernel_size: int) -> GatherTable:
    """Gather table of a stride-1 "same" convolution.

    Args:
        sources: Row numbers of the input positions, `(batch, height, width)`.
        targets: Row numbers of the output positions, same shape.
        kernel_size: Odd.
    """
    windows = _windows(sources, kernel_size)
    table = torch.empty_like(windows)
    table[targets.flatten()] = windows
    return GatherTable(table)


def checkerboard_table(sources: torch.Tensor, kernel_size: int) -> GatherTable:
    """Gather table of a convolution at the non-anchors that sees anchors only (taps with row plus column odd)."""
    batch, height, width = sources.shape
    taps = (torch.arange(kernel_size)[:, None] + torch.arange(kernel_size)) % 2 == 1
    windows = _windows(sources, kernel_size)[:, taps.flatten()]
    windows[windows == sources.numel()] = sources.numel() // 2  # the input has the rows of the anchors only
    odd = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 1
    return GatherTable(windows.view(batch, height * width, -1)[:, odd.flatten()].reshape(-1, windows.shape[1]))


def transposed_taps(kernel_size: int) -> list[list[tuple[int, int, int, int]]]:
    """Taps of a stride-2 transposed convolution (padding k // 2, output padding 1) for each of the 4 output phases.

    Output position `2 * i + phase` sees input `i + shift` through kernel entry `phase + k // 2 - 2 * shift`.

    Returns:
        For phases (0, 0), (0, 1), (1, 0), (1, 1): tuples (kernel row, kernel column, row shift, column shift).
    """
    half = kernel_size // 2
    sides = [
        [
            (phase + half - 2 * shift, shift)
            for shift in range(-half, half + 1)
            if 0 <= phase + half - 2 * shift < kernel_size
        ]
        for phase in (0, 1)
    ]
    return [[(r, c, dr, dc) for r, dr in sides[a] for c, dc in sides[b]] for a in (0, 1) for b in (0, 1)]


def transposed_tables(sources: torch.Tensor, targets: torch.Tensor, kernel_size: int) -> list[GatherTable]:
    """Gather tables, one per output phase, of a transposed convolution that doubles both sides.

    Args:
        sources: Row numbers of the input positions, `(batch, height, width)`.
        targets: Row numbers of the output positions, `(batch, 2 * height, 2 * width)`.
        kernel_size: Odd.
    """
    batch, height, width = sources.shape
    margin = kernel_size // 2
    padded = _pad(sources, margin)
    tables = []
    for phase, taps in enumerate(transposed_taps(kernel_size)):
        columns = [
            padded[:, margin + dr : margin + dr + height, margin + dc : margin + dc + width] for _, _, dr, dc in taps
        ]
        chosen = targets[:, phase // 2 :: 2, phase % 2 :: 2]
        tables.append(GatherTable(torch.stack(columns, -1).flatten(0, 2), chosen.flatten()))
    return tables


def _pad(sources: torch.Tensor, margin: int) -> torch.Tensor:
    return torch.nn.functional.pad(sources, (margin,) * 4, value=sources.numel())


def _windows(sources: torch.Tensor, kernel_size: int) -> torch.Tensor:
    padded = _pad(sources, kernel_size // 2)
    windows = padded.unfold(1, kernel_size, 1).unfold(2, kernel_size, 1)
    return windows.reshape(math.prod(sources.shape), kernel_size * kernel_size)


__all__ = [
    "GatherTable",
    "checkerboard_rows",
    "checkerboard_table",
    "convolution_table",
    "plain_rows",
    "transposed_tables",
    "transposed_taps",
]
