"""The quantizer of ELIC's latents: step 1 as trained, or finer and coarser steps by gain, in integers.

The latent gain of CompressAI's and JPEG AI's variable-rate codecs, and of CoTAM's guidance on a frozen codec:
`round((y - mean) * G) / G + mean`, with the scales of the entropy model times G.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from ...coding.gain_map import GAINS_PER_OCTAVE, MAX_GAIN, MIN_GAIN, STEP_UNIT, GainMap, quantizer_step


MEAN_UNIT = 64
_STEPS_PER_MEAN_UNIT = STEP_UNIT // MEAN_UNIT
_MAX_LATENT = 2**28  # in units of 1/64: bounds what crafted symbols times large steps give
_MAX_SCALE = 2**30


@dataclass(frozen=True)
class Quantizer:
    """Steps of the rows of one pass, or 1 everywhere.

    Attributes:
        steps: int64 `(rows, 1)` in units of 2**-16; `None` for 1.
    """

    steps: torch.Tensor | None = None

    def in_steps(self, differences: torch.Tensor) -> torch.Tensor:
        """Float differences to the means, `(rows, channels)`, in steps."""
        return differences if self.steps is None else differences * (STEP_UNIT / self.steps)

    def dequantize(self, symbols: torch.Tensor) -> torch.Tensor:
        """Differences to the means in units of 1/64 from symbols; both int32."""
        if self.steps is None:
            return symbols * MEAN_UNIT
        values = (symbols.to(torch.int64) * self.steps + _STEPS_PER_MEAN_UNIT // 2) // _STEPS_PER_MEAN_UNIT
        return values.clamp(-_MAX_LATENT, _MAX_LATENT).to(torch.int32)

    def relative(self, scales: torch.Tensor) -> torch.Tensor:
        """Scales in quantizer steps, where they came in units of y; both int32."""
        if self.steps is None:
            return scales
        return (scales.to(torch.int64) * STEP_UNIT // self.steps).clamp(-_MAX_SCALE, _MAX_SCALE).to(torch.int32)


def quantizers(gains: torch.Tensor | None, rows: torch.Tensor) -> tuple[Quantizer, Quantizer]:
    """Quantizers of the anchors and of the non-anchors.

    Args:
        gains: int64 `(batch, height, width)` in 1/64 octaves; `None` for 0 everywhere.
        rows: Row of every latent position, same shape: anchors in the first half.
    """
    if gains is None:
        return Quantizer(), Quantizer()
    steps = torch.empty(rows.numel(), 1, dtype=torch.int64, device=rows.device)
    steps[rows.flatten(), 0] = _step_table(rows.device)[gains.flatten() - MIN_GAIN]
    anchors, others = steps.chunk(2)
    return Quantizer(anchors), Quantizer(others)


@cache
def _step_table(device: torch.device) -> torch.Tensor:
    return torch.tensor([quantizer_step(gain) for gain in range(MIN_GAIN, MAX_GAIN + 1)], device=device)


def gain_grid(
    gains: Sequence[int], gain_maps: Sequence[GainMap | None], height: int, width: int, device: torch.device
) -> torch.Tensor | None:
    """Gain of every latent position of a batch, `(batch, height, width)`, in 1/64 octaves; `None` if all are 0."""
    if not any(gains) and all(gain_map is None for gain_map in gain_maps):
        return None
    grids = [
        torch.full((height, width), gain) if gain_map is None else torch.tensor(gain_map.gains(height, width, gain))
        for gain, gain_map in zip(gains, gain_maps, strict=True)
    ]
    return torch.stack(grids).to(device)


@dataclass(frozen=True)
class PictureGains:
    """Gains of the pictures of a batch, and their maps.

    Attributes:
        gains: In 1/64 octaves.
        gain_maps: One or `None` for each.
    """

    gains: Sequence[int]
    gain_maps: Sequence[GainMap | None]

    @classmethod
    def of(
        cls, gain: float | Sequence[float], gain_maps: GainMap | Sequence[GainMap | None] | None, count: int
    ) -> "PictureGains":
        """Of `count` pictures, from what `compress` takes; raises its `ValueError`."""
        return cls(integer_gains(gain, count), maps_of_pictures(gain_maps, count))

    def grid(self, height: int, width: int, device: torch.device) -> torch.Tensor | None:
        """As `gain_grid`."""
        return gain_grid(self.gains, self.gain_maps, height, width, device)

    def octaves(self, height: int, width: int, device: torch.device) -> torch.Tensor:
        """Gains in octaves: float32 `(batch, height, width)`, or `(batch, 1, 1)` where there is no map."""
        if all(gain_map is None for gain_map in self.gain_maps):
            height, width = 1, 1
        grid = self.grid(height, width, device)
        zeros = torch.zeros(len(self.gains), height, width, device=device)
        return zeros if grid is None else grid / GAINS_PER_OCTAVE


def integer_gains(gain: float | Sequence[float], count: int) -> list[int]:
    """Gains of pictures in 1/64 octaves.

    Args:
        gain: In octaves, for all pictures or one each; rounded to 1/64.
        count: Number of pictures.

    Raises:
        ValueError: If there are not as many as pictures, or one is beyond the limits or no number.
    """
    values = [gain] * count if isinstance(gain, int | float) else [float(value) for value in gain]
    if len(values) != count:
        raise ValueError(f"`gain` must be one number or one for each of the {count} pictures, got {len(values)}.")
    low, high = MIN_GAIN // GAINS_PER_OCTAVE, MAX_GAIN // GAINS_PER_OCTAVE
    for value in values:
        if not low <= value <= high:
            raise ValueError(f"`gain` must lie in [{low}, {high}] octaves, got {value}.")
    return [round(value * GAINS_PER_OCTAVE) for value in values]


def quality_gain(quality: float, own_quality: int | None) -> float:
    """Gain in octaves that brings a codec of one quality to another: half an octave for each, as lambda doubles.

    Raises:
        ValueError: If the codec's own quality is unknown, or too far from this one.
    """
    if own_quality is None:
        raise ValueError(
            f"`quality` {quality} means nothing to a codec whose own quality is unknown. Set `config.quality`, or "
            "pass `gain`, `target_bytes` or `target_bpp`."
        )
    low, high = (own_quality + 2 * bound // GAINS_PER_OCTAVE for bound in (MIN_GAIN, MAX_GAIN))
    if not low <= quality <= high:
        raise ValueError(
            f"`quality` must lie in [{low}, {high}] with a codec of quality {own_quality}, got {quality}."
        )
    return (quality - own_quality) / 2


def check_one_rate(gain: float | Sequence[float], **others: float | None) -> None:
    """Refuses more than one way to say the rate, and targets that are not positive."""
    given = {name: value for name, value in others.items() if value is not None}
    if len(given) > 1 or (given and gain != 0):
        raise ValueError(f"Give one of `gain`, `quality`, `target_bytes`, `target_bpp`; got {given}, `gain` {gain}.")
    for name in ("target_bytes", "target_bpp"):
        if name in given and not given[name] > 0:
            raise ValueError(f"`{name}` must be positive, got {given[name]}.")


def maps_of_pictures(gain_maps: GainMap | Sequence[GainMap | None] | None, count: int) -> list[GainMap | None]:
    """One map or `None` for each of `count` pictures.

    Raises:
        ValueError: If there are not as many as pictures, or one is no `GainMap`.
    """
    maps = list(gain_maps) if isinstance(gain_maps, Sequence) else [gain_maps] * count
    if len(maps) != count:
        raise ValueError(f"`gain_maps` must be one map or one for each of the {count} pictures, got {len(maps)}.")
    for gain_map in maps:
        if gain_map is not None and not isinstance(gain_map, GainMap):
            raise ValueError(f"`gain_maps` must be `GainMap` or `None`, got {type(gain_map).__name__}.")
    return maps


__all__ = [
    "MEAN_UNIT",
    "PictureGains",
    "Quantizer",
    "check_one_rate",
    "gain_grid",
    "integer_gains",
    "maps_of_pictures",
    "quality_gain",
    "quantizers",
]
