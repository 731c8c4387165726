"""Gather tables of one latent size: which rows of the activations lie under each window of each layer."""

from dataclasses import dataclass

import torch

from ...coding.gather import (
    GatherTable,
    checkerboard_rows,
    checkerboard_table,
    convolution_table,
    plain_rows,
    transposed_tables,
)


@dataclass(frozen=True)
class GridTables:
    """Gather tables for pictures of one latent size.

    Attributes:
        rows: `(batch, height, width)`, the row of every position: the anchors of all pictures first.
        h_s: For the three layers of h_s.
        context: For the channel contexts.
        spatial: For the spatial contexts.
    """

    rows: torch.Tensor
    h_s: tuple[list[GatherTable], list[GatherTable], GatherTable]
    context: GatherTable
    spatial: GatherTable

    def to(self, device: torch.device) -> "GridTables":
        """The same tables on a device."""

        def move(table: GatherTable) -> GatherTable:
            return GatherTable(table.rows.to(device), None if table.targets is None else table.targets.to(device))

        first, second, third = self.h_s
        return GridTables(
            rows=self.rows.to(device),
            h_s=([move(table) for table in first], [move(table) for table in second], move(third)),
            context=move(self.context),
            spatial=move(self.spatial),
        )


def grid_tables(batch: int, height: int, width: int, kernel_size: int) -> GridTables:
    """Tables of a batch of latents, on the CPU.

    Args:
        batch: Number of pictures.
        height, width: Latent size, multiples of 4.
        kernel_size: Of the strided and of the context convolutions.
    """
    rows = checkerboard_rows(batch, height, width)
    quarter, half = (plain_rows(batch, height // n, width // n) for n in (4, 2))
    plain = plain_rows(batch, height, width)
    return GridTables(
        rows=rows,
        h_s=(
            transposed_tables(quarter, half, kernel_size),
            transposed_tables(half, plain, kernel_size),
            convolution_table(plain, rows, 3),
        ),
        context=convolution_table(rows, rows, kernel_size),
        spatial=checkerboard_table(rows, kernel_size),
    )


__all__ = ["GridTables", "grid_tables"]
