"""Gains: how much finer or coarser than it was trained a codec quantizes, everywhere and by region.

Gains are integers of 1/64 octave: at gain g the quantizer's step is `2 ** (-g / 64)`. Standard library only.
"""

import math
from dataclasses import dataclass


__all__ = ["GAINS_PER_OCTAVE", "MAX_GAIN", "MAX_MAP_CELLS", "MIN_GAIN", "STEP_UNIT", "GainMap", "quantizer_step"]

GAINS_PER_OCTAVE = 64
MIN_GAIN, MAX_GAIN = -8 * GAINS_PER_OCTAVE, 5 * GAINS_PER_OCTAVE
STEP_UNIT = 2**16  # of `quantizer_step`
MAX_MAP_CELLS = 2**12
_MAX_STEP, _MAX_LEVELS = 15, 31


@dataclass(frozen=True)
class GainMap:
    """Gain levels of the regions of one picture (CoTAM, section 3: the guidance map with three levels).

    Args:
        gain_index: Rows of levels, each in `[-(levels // 2), levels // 2]`; all rows equally long. Higher levels get
            more bits, 0 keeps the bitstream's own gain.
        step: Quarter octaves of gain from one level to the next, 1 to 15.
        levels: How many levels there are, odd, 3 to 31.

    Raises:
        ValueError: If a field is out of its range.
    """

    gain_index: tuple[tuple[int, ...], ...]
    step: int = 2
    levels: int = 3

    def __post_init__(self) -> None:
        rows = tuple(tuple(_whole(level, "gain_index") for level in row) for row in self.gain_index)
        object.__setattr__(self, "gain_index", rows)
        for name in ("step", "levels"):
            object.__setattr__(self, name, _whole(getattr(self, name), name))
        if not 1 <= self.step <= _MAX_STEP:
            raise ValueError(f"`step` must be 1 to {_MAX_STEP} quarter octaves, got {self.step}.")
        if self.levels % 2 == 0 or not 3 <= self.levels <= _MAX_LEVELS:
            raise ValueError(f"`levels` must be odd and 3 to {_MAX_LEVELS}, got {self.levels}.")
        lengths = {len(row) for row in self.gain_index}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"`gain_index` must have rows of one length, at least one by one, got {sorted(lengths)}.")
        if self.rows * self.columns > MAX_MAP_CELLS:
            raise ValueError(
                f"`gain_index` may have {MAX_MAP_CELLS} cells at most, got {self.rows}x{self.columns}. Pool the map "
                "to a smaller grid."
            )
        limit = self.levels // 2
        outside = [level for row in self.gain_index for level in row if abs(level) > limit]
        if outside:
            raise ValueError(
                f"`gain_index` must lie in [{-limit}, {limit}] with {self.levels} levels, got {outside[0]}. Raise "
                "`levels`."
            )

    @property
    def rows(self) -> int:
        """Cells from top to bottom."""
        return len(self.gain_index)

    @property
    def columns(self) -> int:
        """Cells from left to right."""
        return len(self.gain_index[0])

    def gains(self, height: int, width: int, gain: int = 0) -> list[list[int]]:
        """Gain of every position of a latent grid, in 1/64 octaves.

        Args:
            height, width: Latent size.
            gain: Of the whole picture; the levels are added, within `[MIN_GAIN, MAX_GAIN]`.
        """
        per_level = self.step * GAINS_PER_OCTAVE // 4
        rows = self.levels_at(height, width)
        return [[min(max(gain + per_level * level, MIN_GAIN), MAX_GAIN) for level in row] for row in rows]

    def levels_at(self, height: int, width: int) -> list[list[int]]:
        """Level of every position of a latent grid.

        Args:
            height, width: Latent size. Position (r, c) takes cell (r * rows // height, c * columns // width).
        """
        columns = [column * self.columns // width for column in range(width)]
        rows = [self.gain_index[row * self.rows // height] for row in range(height)]
        return [[cells[column] for column in columns] for cells in rows]


def _whole(number: float, name: str) -> int:
    """A whole number as `int`; raises `ValueError` for another, which would be cut off silently."""
    if int(number) != number:
        raise ValueError(f"`{name}` must be whole, got {number}.")
    return int(number)


def quantizer_step(gain: int) -> int:
    """The quantizer's step at a gain of 1/64 octaves, in units of 2**-16: `2**16` at gain 0.

    Computed in integers, so that it is the same on every machine.

    Raises:
        ValueError: If the gain is beyond `[MIN_GAIN, MAX_GAIN]`.
    """
    if not MIN_GAIN <= gain <= MAX_GAIN:
        raise ValueError(
            f"Gains must lie in [{MIN_GAIN // GAINS_PER_OCTAVE}, {MAX_GAIN // GAINS_PER_OCTAVE}] octaves, got "
            f"{gain / GAINS_PER_OCTAVE:g}."
        )
    octaves, rest = divmod(-gain, GAINS_PER_OCTAVE)
    root = 1 << (32 * GAINS_PER_OCTAVE + rest)  # the floor of its 64th root is that of six square roots
    for _ in range(6):
        root = math.isqrt(root)
    shift = 16 - octaves  # root is 2 ** (32 + rest / 64)
    return (root + (1 << (shift - 1))) >> shift
