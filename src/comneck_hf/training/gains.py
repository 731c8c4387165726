"""Random gains: what is trained on them serves every rate and every gain map of one codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from comneck_hf.coding.gain_map import GAINS_PER_OCTAVE, GainMap
from comneck_hf.models.elic.gains_elic import PictureGains


__all__ = ["RandomGains", "distortion_weights", "gradient_levels", "patch_levels", "token_weights"]

_PATCH_CELLS = (1, 2, 4)


@dataclass(frozen=True)
class RandomGains:
    """Draws a gain, and for some pictures a gain map, for every picture of a batch.

    The maps are those of CoTAM's training: half of them the guide's, and of the others a third each uniform, of random
    patches and of gradients in one of four directions.

    Attributes:
        low, high: Of the gains of whole pictures, in octaves of the quantizer's resolution, uniform.
        guided_share: Share of the pictures with the guide's map.
        random_share: Share of the pictures whose map is drawn, uniform ones among them.
        grid, levels, step: Of the maps that are drawn, as in [`GainMap`].

    Raises:
        ValueError: If the range is empty or the shares are more than everything.
    """

    low: float = 0.0
    high: float = 0.0
    guided_share: float = 0.0
    random_share: float = 0.0
    grid: tuple[int, int] = (8, 8)
    levels: int = 3
    step: int = 2

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"The lowest gain must not be above the highest, got {self.low} and {self.high}.")
        if min(self.guided_share, self.random_share) < 0 or self.guided_share + self.random_share > 1:
            raise ValueError(
                f"The shares of guided and random maps must be in [0, 1], both together too, got {self.guided_share} "
                f"and {self.random_share}."
            )

    @property
    def is_constant(self) -> bool:
        """Whether every picture is coded as the codec was trained."""
        return self.low == self.high == 0 and self.guided_share == self.random_share == 0

    def draw(
        self, count: int, guided: Sequence[GainMap] | None = None, *, generator: torch.Generator
    ) -> tuple[list[float], list[GainMap | None]]:
        """Gains and gain maps of `count` pictures.

        Args:
            count: Pictures.
            guided: The guide's map of each; needed where there is a guided share.
            generator: Source of the random numbers.
        """
        rows = torch.rand((count, 3), generator=generator).tolist()
        gains = [self.low + (self.high - self.low) * share for share, _, _ in rows]
        maps: list[GainMap | None] = []
        for number, (_, choice, kind) in enumerate(rows):
            if choice < self.guided_share:
                maps.append(guided[number])
            elif choice < self.guided_share + self.random_share and kind > 1 / 3:
                draw = patch_levels if kind > 2 / 3 else gradient_levels
                levels = draw(self.grid, self.levels // 2, generator=generator)
                maps.append(GainMap(levels.tolist(), step=self.step, levels=self.levels))
            else:
                maps.append(None)
        return gains, maps


def patch_levels(grid: tuple[int, int], limit: int, *, generator: torch.Generator) -> Tensor:
    """Independent levels of square patches of 1, 2 or 4 cells a side: int64 of the grid, in `[-limit, limit]`."""
    rows, columns = grid
    side = _PATCH_CELLS[int(torch.randint(len(_PATCH_CELLS), (), generator=generator))]
    patches = torch.randint(-limit, limit + 1, (-(-rows // side), -(-columns // side)), generator=generator)
    return patches.repeat_interleave(side, 0).repeat_interleave(side, 1)[:rows, :columns]


def gradient_levels(grid: tuple[int, int], limit: int, *, generator: torch.Generator) -> Tensor:
    """Levels that rise from one side to the opposite one: int64 of the grid, in `[-limit, limit]`."""
    direction = int(torch.randint(4, (), generator=generator))
    size = grid[direction % 2]
    levels = ((torch.arange(size) + 0.5) / size * (2 * limit + 1)).long() - limit
    levels = levels.flip(0) if direction >= 2 else levels
    return (levels[None, :] if direction % 2 else levels[:, None]).expand(grid)


def distortion_weights(octaves: Sequence[float], maps: Sequence[GainMap | None], size: tuple[int, int]) -> Tensor:
    """Lambda of every pixel over the codec's own: `4 ** gain`, as lambda doubles with every half octave.

    Args:
        octaves: Gains of the pictures.
        maps: Their gain maps.
        size: Height and width of the pictures, which the codec pads to multiples of 64.

    Returns:
        float32 `(batch, 1, 1, 1)`, or `(batch, 1, height, width)` where there is a map.
    """
    rows, columns = (4 * -(-side // 64) for side in size)
    gains = PictureGains.of(octaves, maps, len(octaves))
    weights = (2 * gains.octaves(rows, columns, torch.device("cpu"))).exp2()[:, None]
    if weights.shape[2:] == (1, 1):
        return weights
    return F.interpolate(weights, scale_factor=16, mode="nearest")[..., : size[0], : size[1]]


def token_weights(gains: Sequence[float], maps: Sequence[GainMap | None], grid: tuple[int, int]) -> Tensor:
    """How finely the codec quantizes at every token, 1 where it does so most finely.

    CoTAM's released code weights by the resized index of the gain over its largest; gains have no index here, so their
    factors take its place.

    Args:
        gains: Of the pictures, in octaves.
        maps: Their gain maps.
        grid: Rows and columns of the tokens, which are those of the latents.

    Returns:
        float32 `(len(gains), 1 + rows * columns)`, in (0, 1]; 1 for the class token.
    """
    weights = torch.ones((len(gains), 1 + grid[0] * grid[1]))
    for row, gain_map in zip(weights, maps, strict=True):
        if gain_map is not None:
            octaves = torch.tensor(gain_map.gains(*grid)).flatten() / GAINS_PER_OCTAVE
            row[1:] = (octaves - octaves.max()).exp2()
    return weights
