"""Training of a guide that sees codec latents only: it learns what a vision encoder's first layers attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from comneck_hf.models.cotam.guide_cotam import ShallowAttentionGuide
from comneck_hf.models.cotam.importance_cotam import pool_importance
from comneck_hf.models.cotam.latent_guide_cotam import LatentGuide
from comneck_hf.models.elic.modeling_elic import ElicModel


__all__ = ["GuideExamples", "guide_examples", "map_correlation", "train_latent_guide"]

_TINY = 1e-8


@dataclass(frozen=True)
class GuideExamples:
    """What a latent guide learns from.

    Attributes:
        latents: The codec's y before quantization, float32 `(pictures, latent_channels, height, width)`.
        targets: The encoder's importance maps pooled to that grid, float32 `(pictures, 1, height, width)`.
    """

    latents: Tensor
    targets: Tensor


@torch.no_grad()
def guide_examples(
    codec: ElicModel, guide: ShallowAttentionGuide, images: Tensor, *, batch_size: int = 32
) -> GuideExamples:
    """Latents and importance maps of pictures.

    Args:
        codec: Its g_a makes the latents.
        guide: What is to be imitated.
        images: uint8 `(pictures, 3, height, width)`, sides multiples of 64.
        batch_size: Pictures at a time.
    """
    latents, targets = [], []
    for batch in images.split(batch_size):
        pixel_values = batch.to(codec.device, torch.float32) / 255
        y = codec.g_a(pixel_values).float()
        latents.append(y)
        targets.append(pool_importance(guide(pixel_values), tuple(y.shape[-2:])).float().to(y.device))
    return GuideExamples(torch.cat(latents), torch.cat(targets))


def map_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson correlation of two importance maps `(batch, 1, height, width)`, one value per picture: `(batch,)`."""
    first, second = (maps.flatten(1) - maps.flatten(1).mean(1, keepdim=True) for maps in (first, second))
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1)).clamp(min=_TINY**2)


def train_latent_guide(
    guide: LatentGuide,
    examples: GuideExamples,
    *,
    steps: int = 600,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    generator: torch.Generator,
) -> float:
    """Trains by 1 - correlation with AdamW and a cosine schedule.

    Levels ignore the scale and offset of a map, so the loss does.

    Args:
        guide: Changed in place; its channel scales are set first.
        examples: From `guide_examples`.
        steps: Optimizer steps.
        batch_size: Examples per step, drawn with replacement.
        learning_rate: At the start.
        generator: Source of the draws.

    Returns:
        Mean loss of the last tenth of the steps.
    """
    guide.calibrate(examples.latents)
    targets = examples.targets / examples.targets.mean(dim=(1, 2, 3), keepdim=True).clamp(min=_TINY)
    optimizer = torch.optim.AdamW(guide.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(targets), (batch_size,), generator=generator)
        loss = (1 - map_correlation(guide(examples.latents[rows]), targets[rows])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)
