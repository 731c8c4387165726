"""The float path between ELIC's transforms: noise or rounding around predicted means, and likelihoods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..entropy_models import additive_noise, gaussian_likelihood, straight_through_round
from .layers_elic import checkerboard, support_groups


if TYPE_CHECKING:
    from .modeling_elic import ElicModel


def quantize_hyper(z: torch.Tensor, medians: torch.Tensor, quantization: str) -> torch.Tensor:
    """Hyper-latents with noise, or rounded around their `medians` `(channels,)`, with gradients."""
    if quantization == "noise":
        return additive_noise(z)
    medians = medians.to(z.dtype)[:, None, None]
    return straight_through_round(z - medians) + medians


def code_float(
    codec: ElicModel,
    y: torch.Tensor,
    hyper: torch.Tensor,
    quantization: str,
    octaves: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents for g_s and the likelihoods of y, with gradients.

    Args:
        codec: Its contexts and aggregations predict.
        y: Latents before quantization, `(batch, latent_channels, height, width)`.
        hyper: What h_s made of the hyper-latents.
        quantization: As in `ElicModel.forward`.
        octaves: Gains `(batch, rows, columns)` of the latent grid, or 1x1 for whole pictures. Then latents are rounded
            around the means under noise, too, as steps of several units make much of the difference.
    """
    resolution = 1.0 if octaves is None else octaves.exp2()[:, None].to(y.dtype)
    is_noisy = quantization == "noise"
    anchors = checkerboard(*y.shape[-2:], device=y.device)
    noisy = additive_noise(y * resolution) / resolution if is_noisy else y
    decoded: list[torch.Tensor] = []
    rounded: list[torch.Tensor] = []
    likelihoods = []
    groups = list(codec.config.group_channels)
    for k, (part, noisy_part) in enumerate(zip(y.split(groups, 1), noisy.split(groups, 1), strict=True)):
        shared = [hyper]
        if k:
            shared.insert(0, codec.channel_contexts[k - 1](torch.cat([decoded[i] for i in support_groups(k)], 1)))
        aggregate = codec.parameter_aggregations[k]
        values = noisy_part
        if not is_noisy:
            no_context = torch.zeros_like(part).repeat(1, 2, 1, 1)
            means = aggregate(torch.cat([no_context, *shared], 1)).chunk(2, 1)[0]
            values = _round_around(means, part, resolution)
        context = codec.spatial_contexts[k](values * anchors) * ~anchors
        means, scales = aggregate(torch.cat([context, *shared], 1)).chunk(2, 1)
        rounded.append(_round_around(means, part, resolution))
        decoded.append(noisy_part if is_noisy else rounded[-1])
        likelihoods.append(gaussian_likelihood(decoded[-1] * resolution, scales * resolution, means * resolution))
    is_plain = is_noisy and octaves is None
    y_hat = straight_through_round(y) if is_plain else torch.cat(rounded, 1)
    return y_hat, torch.cat(likelihoods, 1)


def _round_around(means: torch.Tensor, values: torch.Tensor, resolution: torch.Tensor | float) -> torch.Tensor:
    return straight_through_round((values - means) * resolution) / resolution + means


__all__ = ["code_float", "quantize_hyper"]
