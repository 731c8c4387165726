"""Transforms that follow the gain: channel vectors learned for several gains (CoTAM's variable-rate codec)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_elic import ElicConfig


if TYPE_CHECKING:
    from .modeling_elic import ElicModel


class GainTransform(nn.Sequential):
    """g_a or g_s with features that are multiplied by a vector per level of the gain: `f_l * g[l, r]` (CoTAM, 3.1).

    The vectors stand behind each of the four convolutions that halve the picture, and before each of the four that
    double it. They are kept as logarithms, so that they stay positive, and start at 1. A gain between two levels gets
    their geometric mean: as quantizer steps do, features then change by equal factors where gains change by equal
    octaves. A gain beyond all levels gets the nearest one's vectors.

    This deviates from the paper: its vectors alone carry the rate. Here the quantizer's step follows the gain, and
    vectors only adapt the transforms to it, so that latents keep their scale at every rate.

    Args:
        layers: The transform, in order.
        levels: How many gains have vectors of their own, at least 2.
        level_range: Gains of the first and of the last level in octaves; the others lie evenly between.
    """

    def __init__(self, layers: Iterable[nn.Module], *, levels: int, level_range: tuple[float, float]) -> None:
        super().__init__(*layers)
        self.level_range = level_range
        self.widths = [
            layer.out_channels if isinstance(layer, nn.Conv2d) else layer.in_channels
            for layer in self
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        ]
        self.log_vectors = nn.Parameter(torch.zeros(levels, sum(self.widths)))

    def forward(self, features: torch.Tensor, gains: torch.Tensor | None = None) -> torch.Tensor:
        """Runs the transform.

        Args:
            features: What the first layer takes.
            gains: In octaves, float `(batch, rows, columns)`, stretched over all features: the grid of the latents,
                or 1x1. 0 by default.
        """
        vectors = iter(self.vectors(features.new_zeros(1, 1, 1) if gains is None else gains))
        for layer in self:
            if isinstance(layer, nn.ConvTranspose2d):
                features = _scaled(features, next(vectors))
            features = layer(features)
            if isinstance(layer, nn.Conv2d):
                features = _scaled(features, next(vectors))
        return features

    def vectors(self, gains: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Vectors of gains in octaves, `(batch, rows, columns)`: `(batch, channels, rows, columns)` for each depth."""
        (low, high), last = self.level_range, len(self.log_vectors) - 1
        position = ((gains.float() - low) * (last / (high - low))).clamp(0, last)
        below = position.long().clamp(max=last - 1)
        share = (position - below).to(self.log_vectors.dtype)[..., None]
        logarithms = torch.lerp(self.log_vectors[below], self.log_vectors[below + 1], share)
        return logarithms.exp2().permute(0, 3, 1, 2).split(self.widths, 1)


def with_gain_vectors(transform: nn.Sequential, config: ElicConfig) -> nn.Sequential:
    """The transform with fresh vectors, under which it does what it did; as it is where there are no levels."""
    if not config.gain_levels:
        return transform
    return GainTransform(transform, levels=config.gain_levels, level_range=tuple(config.gain_level_range))


def add_gain_vectors(codec: ElicModel, *, levels: int, level_range: Sequence[float]) -> ElicModel:
    """A codec of the same weights and integers that has vectors, and codes to the same bytes until they are trained.

    Args:
        codec: Without vectors; not changed.
        levels, level_range: As in [`GainTransform`].

    Raises:
        ValueError: If the codec has vectors, or no transforms can have these.
    """
    if codec.config.gain_levels:
        raise ValueError(
            f"This codec has vectors of {codec.config.gain_levels} gains in {list(codec.config.gain_level_range)} "
            "octaves. Train them on without `gain_levels`, or start from a codec without vectors."
        )
    codec.update_tables()
    fields = {**codec.config.to_diff_dict(), "gain_levels": levels, "gain_level_range": list(level_range)}
    richer = type(codec)(type(codec.config)(**fields)).to(codec.device, codec.dtype)
    missing = richer.load_state_dict(codec.state_dict(), strict=False).missing_keys
    assert all(name.endswith(".log_vectors") for name in missing), missing
    return richer.train(codec.training)


def _scaled(features: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    if vectors.shape[2:] != (1, 1):
        vectors = F.interpolate(vectors, features.shape[2:], mode="nearest")
    return features * vectors.to(features.dtype)


__all__ = ["GainTransform", "add_gain_vectors", "with_gain_vectors"]
