"""Integer tables of cumulative counts: the only probabilities that a coder ever sees.

Tables are derived once, when a model is made complete for saving, and travel in its checkpoint as integers. They are
never rebuilt at load time, because two machines may round a float differently.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


__all__ = [
    "ESCAPE_BITS",
    "MAX_VALUE",
    "PRECISION",
    "SCALE_TABLE",
    "CodingTables",
    "concatenate",
    "gaussian_tables",
    "ideal_bits",
    "tables_from_pmfs",
]

# Counts add up to 2**16, the most that 16-bit stream words allow. Most symbols have the smallest scale, where
# the floors of one count for -1, 1 and the escape then cost 7e-5 bits a symbol (14 bits: 3e-4).
PRECISION = 16
MAX_VALUE = 2**15 - 1  # largest value in a table, and that can be coded
ESCAPE_BITS = 5  # side and magnitude of an escaped value, before its lower bits

_LOG_MIN, _LOG_MAX, _LEVELS = math.log(0.11), math.log(256.0), 64
SCALE_TABLE = tuple(math.exp(_LOG_MIN + (_LOG_MAX - _LOG_MIN) * level / (_LEVELS - 1)) for level in range(_LEVELS))


@dataclass(frozen=True, eq=False)
class CodingTables:
    """A ragged set of tables; a symbol's table is chosen by its index.

    The last symbol of every table is the escape, which stands for all values outside the table.

    Args:
        cdfs: Shape `(sum(lengths + 1),)`, int32. Cumulative counts of all tables one after the other; each row starts
            with 0 and ends with `2**PRECISION`.
        lengths: Shape `(num_tables,)`, int32. Number of symbols, with the escape.
        offsets: Shape `(num_tables,)`, int32. Value of each table's first symbol.
    """

    cdfs: torch.Tensor
    lengths: torch.Tensor
    offsets: torch.Tensor

    def __len__(self) -> int:
        return self.lengths.numel()

    def validate(self) -> None:
        """Raises `ValueError`, naming the first bad row, unless a coder can use these tables safely."""
        for name in ("cdfs", "lengths", "offsets"):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int32 or tensor.dim() != 1 or tensor.device.type != "cpu":
                raise ValueError(
                    f"`{name}` must be a 1-D int32 tensor on the CPU, got {tensor.dim()}-D {tensor.dtype} on "
                    f"{tensor.device}."
                )
        if not self.cdfs.any():
            raise ValueError(
                "The model has no coding tables: all counts are zero. Load a checkpoint that was saved with "
                "`save_pretrained`, or derive them from the weights before coding."
            )
        if self.offsets.numel() != len(self):
            raise ValueError(f"{len(self)} tables need as many offsets, got {self.offsets.numel()}.")
        lengths = self.lengths.to(torch.int64)
        _refuse_first(lengths < 2, "has fewer than 2 symbols")
        _refuse_first(lengths > 2**PRECISION, f"has more than 2**{PRECISION} symbols")
        if int(lengths.sum()) + len(self) != self.cdfs.numel():
            raise ValueError(
                f"The table lengths need {int(lengths.sum()) + len(self)} cumulative counts, got {self.cdfs.numel()}."
            )
        lasts = self.offsets.to(torch.int64) + lengths - 2
        _refuse_first((self.offsets < -MAX_VALUE) | (lasts > MAX_VALUE), f"holds values beyond +-{MAX_VALUE}")
        ends = (lengths + 1).cumsum(0)
        starts = ends - lengths - 1
        _refuse_first(self.cdfs[starts] != 0, "does not start with 0")
        _refuse_first(self.cdfs[ends - 1] != 2**PRECISION, f"does not end with 2**{PRECISION}")
        flat = self.cdfs.diff() <= 0
        flat[ends[:-1] - 1] = False
        rows = torch.arange(len(self)).repeat_interleave(lengths + 1)[:-1]
        bad = torch.zeros(len(self), dtype=torch.bool)
        bad[rows[flat]] = True
        _refuse_first(bad, "is not strictly increasing")


def gaussian_tables(scale_table: Sequence[float] = SCALE_TABLE, *, tail_mass: float = 2**-13) -> CodingTables:
    """Tables of zero-mean Gaussians in integer bins, one per scale.

    Args:
        scale_table: Standard deviations, all positive.
        tail_mass: Probability, both tails together, that is left to the escape symbol. A table has at least the
            values -1, 0 and 1.

    Raises:
        ValueError: If a scale is not positive or too large for `MAX_VALUE`, or `tail_mass` is not in `(0, 1)`.
    """
    if not 0 < tail_mass < 1:
        raise ValueError(f"`tail_mass` must be in (0, 1), got {tail_mass}.")
    quantile = -torch.special.ndtri(torch.tensor(tail_mass / 2, dtype=torch.float64)).item()
    pmfs, offsets = [], []
    for scale in scale_table:
        if not 0 < scale * quantile < MAX_VALUE:
            raise ValueError(f"Scales must be in (0, {MAX_VALUE / quantile:.0f}), got {scale}.")
        half_width = max(1, math.ceil(scale * quantile - 0.5))
        # The upper half keeps its precision in the lower tail, so the positive side is mirrored from the negative.
        edges = torch.arange(-half_width, 1, dtype=torch.float64) - 0.5
        lower = torch.special.ndtr(edges / scale)
        side = lower.diff()
        pmfs.append(torch.cat([side, 1 - 2 * lower[-1:], side.flip(0), 2 * lower[:1]]))
        offsets.append(-half_width)
    return tables_from_pmfs(pmfs, offsets)


def tables_from_pmfs(pmfs: Sequence[torch.Tensor], offsets: Sequence[int]) -> CodingTables:
    """Turns probabilities into integer tables with the shortest expected code length.

    Args:
        pmfs: One 1-D float64 tensor per table; the last entry is the probability of the escape. Need not add up to 1.
        offsets: Value of each table's first symbol.

    Raises:
        ValueError: If a row is no probability mass function, or the tables cannot be used.
    """
    if len(pmfs) != len(offsets):
        raise ValueError(f"{len(pmfs)} tables need as many offsets, got {len(offsets)}.")
    cdfs = []
    for row, pmf in enumerate(pmfs):
        pmf = torch.as_tensor(pmf, dtype=torch.float64).detach().cpu()
        if pmf.dim() != 1 or not 2 <= pmf.numel() < 2**PRECISION:
            raise ValueError(f"Table {row} must be 1-D with 2 to 2**{PRECISION} - 1 entries, got {tuple(pmf.shape)}.")
        if not pmf.isfinite().all() or (pmf < 0).any() or pmf.sum() <= 0:
            raise ValueError(
                f"Table {row} is no probability mass function: entries must be finite and >= 0, not all 0."
            )
        counts = torch.tensor(_integer_counts((pmf / pmf.sum()).tolist()), dtype=torch.int32)
        cdfs.append(torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0)))
    tables = CodingTables(
        cdfs=torch.cat(cdfs),
        lengths=torch.tensor([cdf.numel() - 1 for cdf in cdfs], dtype=torch.int32),
        offsets=torch.tensor([int(offset) for offset in offsets], dtype=torch.int32),
    )
    tables.validate()
    return tables


def concatenate(parts: Sequence[CodingTables]) -> CodingTables:
    """One set with the tables of all parts, in order."""
    return CodingTables(
        cdfs=torch.cat([part.cdfs for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        offsets=torch.cat([part.offsets for part in parts]),
    )


def ideal_bits(symbols: np.ndarray, indexes: np.ndarray, tables: CodingTables) -> float:
    """Code length of the symbols under the tables, escapes included, in bits: what a perfect coder would need.

    Args:
        symbols: Integers, any shape.
        indexes: Same shape: each symbol's table.
        tables: Coding tables.
    """
    lengths = tables.lengths.numpy().astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]])
    index = np.asarray(indexes, np.int64).ravel()
    symbol = np.asarray(symbols, np.int64).ravel() - tables.offsets.numpy()[index]
    escape = lengths[index] - 1
    outside = (symbol < 0) | (symbol >= escape)
    entry = starts[index] + np.where(outside, escape, symbol)
    cdfs = tables.cdfs.numpy().astype(np.int64)
    bits = PRECISION * symbol.size - np.log2(cdfs[entry + 1] - cdfs[entry]).sum()
    distance = np.where(symbol < 0, -symbol, symbol - escape + 1)[outside]
    return float(bits + (ESCAPE_BITS + np.floor(np.log2(distance))).sum())


def _integer_counts(pmf: list[float]) -> list[int]:
    """Counts >= 1 that add up to `2**PRECISION` and minimise `sum(-pmf * log2(counts))`.

    Rounds, then moves one count at a time where it costs least or gains most; since the code length is convex in each
    count, this greedy walk ends at the optimum.
    """
    total = 2**PRECISION
    counts = [max(1, round(p * total)) for p in pmf]
    surplus = sum(counts) - total
    step = -1 if surplus > 0 else 1

    def change(symbol: int) -> float:
        if counts[symbol] + step == 0:
            return math.inf
        return -pmf[symbol] * math.log1p(step / counts[symbol])

    heap = [(change(symbol), symbol) for symbol in range(len(pmf))]
    heapq.heapify(heap)
    for _ in range(abs(surplus)):
        symbol = heap[0][1]
        counts[symbol] += step
        heapq.heapreplace(heap, (change(symbol), symbol))
    return counts


def _refuse_first(bad: torch.Tensor, complaint: str) -> None:
    if bad.any():
        raise ValueError(f"Coding table {int(bad.nonzero()[0])} {complaint}; the checkpoint is damaged.")
