"""What codecs return."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class ElicEncoderOutput(ModelOutput):
    r"""
    latents (`torch.FloatTensor` of shape `(batch_size, latent_channels, height / 16, width / 16)`):
        Quantized latents `y_hat`, bit-equal to what `decompress` returns.
    likelihoods (`dict[str, torch.Tensor]`):
        Estimated probabilities of every element of `"y"` and `"z"`.
    """

    latents: torch.FloatTensor | None = None
    likelihoods: dict[str, torch.Tensor] | None = None


@dataclass
class ElicOutput(ModelOutput):
    r"""
    latents (`torch.Tensor` of shape `(batch_size, latent_channels, height / 16, width / 16)`):
        Quantized latents `y_hat` of the float path.
    reconstruction (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
        Decoded picture, not clamped, cropped to the input size.
    likelihoods (`dict[str, torch.Tensor]`):
        Probabilities of every element of `"y"` and `"z"`.
    """

    latents: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    likelihoods: dict[str, torch.Tensor] | None = None


__all__ = ["ElicEncoderOutput", "ElicOutput"]
