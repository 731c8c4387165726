"""What all image codecs share: outputs, loading rules, and checks of what they are given."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ..coding.bitstream import Bitstream
from .codec_vision_config import DOWNSAMPLING_FACTOR


_OVERSHOOT = 0.25  # of values that were resampled


@dataclass
class CodecEncoderOutput(ModelOutput):
    r"""
    latents (`torch.FloatTensor` of shape `(batch_size, latent_channels, height / 16, width / 16)`):
        Quantized latents `y_hat`, equal to what `decompress` returns.
    likelihoods (`dict[str, torch.Tensor]`):
        Estimated probabilities of every element of `"y"` and, where there are hyper-latents, of `"z"`.
    """

    latents: torch.FloatTensor | None = None
    likelihoods: dict[str, torch.Tensor] | None = None


@dataclass
class CodecOutput(ModelOutput):
    r"""
    latents (`torch.Tensor` of shape `(batch_size, latent_channels, height / 16, width / 16)`):
        What goes into g_s in the float path: noisy or rounded latents.
    reconstruction (`torch.Tensor` of shape `(batch_size, 3, height, width)`):
        Decoded picture, not clamped, cropped to the input size.
    likelihoods (`dict[str, torch.Tensor]`):
        Probabilities of every element of `"y"` and, where there are hyper-latents, of `"z"`.
    """

    latents: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    likelihoods: dict[str, torch.Tensor] | None = None


def check_range(pixel_values: torch.Tensor) -> torch.Tensor:
    """The same pictures, if their values can be meant to lie in [0, 1]; resampling may leave that a little.

    Raises:
        ValueError: If they are integers, not finite, or below -0.25 or above 1.25.
    """
    if not pixel_values.is_floating_point():
        raise ValueError(f"`pixel_values` are {pixel_values.dtype}, and floats in [0, 1] are needed. Divide by 255.")
    low, high = (bound.item() for bound in pixel_values.aminmax()) if pixel_values.numel() else (0.0, 1.0)
    if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        raise ValueError(
            f"`pixel_values` reach from {low:.4g} to {high:.4g}, and [0, 1] is needed, not normalized. Divide 8-bit "
            "values by 255, or use `ComNeckImageProcessor`."
        )
    return pixel_values


def latent_size(height: int, width: int, *, divisor: int, factor: int = DOWNSAMPLING_FACTOR) -> tuple[int, int]:
    """Rows and columns of a picture's latents. A gain map with more would have cells that no latent reads.

    Args:
        height, width: Of the picture in pixels.
        divisor: The codec pads both sides to multiples of this (`config.size_divisor`).
        factor: Pixels per latent (`config.downsampling_factor`).
    """
    return (height + -height % divisor) // factor, (width + -width % divisor) // factor


def pad_to_multiple(pixel_values: torch.Tensor, divisor: int) -> torch.Tensor:
    """Repeats the last row and column until both sides are multiples of `divisor`."""
    height, width = pixel_values.shape[-2:]
    padding = (0, -width % divisor, 0, -height % divisor)
    return F.pad(pixel_values, padding, mode="replicate") if any(padding) else pixel_values


def batches_of_one_size(pixel_values: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Pictures as batches, all together where they have one size, else one by one; `check_range` sees them."""
    if isinstance(pixel_values, torch.Tensor):
        return [check_range(pixel_values)]
    pictures = [check_range(picture) for picture in pixel_values]
    if len({tuple(picture.shape) for picture in pictures}) == 1:
        return [torch.stack(pictures)]
    return [picture[None] for picture in pictures]


class ImageCodec(PreTrainedModel):
    """Base of the codecs: `encode`, `decode`, `compress`, `decompress` and `update_tables` are theirs."""

    base_model_prefix = "codec"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # What else lies in the folders a codec is loaded from: a ComNeck, the CLIP it shares its tower with, or a LLaVA.
    _keys_to_ignore_on_load_unexpected = [
        r"^(vision|text)_model\.",
        r"^(visual|text)_projection\.",
        r"^logit_scale$",
        r"^(model\.)?((vision|image|video)_tower|language_model|multi_modal_projector|image_newline|comneck)\b",
        r"^lm_head\.",
    ]

    @abstractmethod
    def update_tables(self) -> None:
        """Derives what coding needs where it is missing, or where the weights were trained since."""

    @property
    def needs_gains(self) -> bool:
        """Whether pictures can be decoded only with the gains that their latents were coded with."""
        return False

    def coded_gains(self, bitstreams: Sequence[bytes]) -> dict[str, Any]:
        """What `decode` takes beside the latents of these bitstreams; nothing where a codec has one rate only."""
        return {}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves a complete codec: what coding needs is derived first where it is missing."""
        self.update_tables()
        super().save_pretrained(save_directory, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Training mode, unless every parameter is frozen: a frozen codec keeps rounding."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        config = self.config
        return latent_size(height, width, divisor=config.size_divisor, factor=config.downsampling_factor)

    def _on_device(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Checked pictures in the codec's type."""
        if pixel_values.dim() != 4 or pixel_values.shape[1] != 3 or 0 in pixel_values.shape:
            raise ValueError(
                f"`pixel_values` must have shape (batch, 3, height, width), got {tuple(pixel_values.shape)}. "
                "Prepare pictures with `ComNeckImageProcessor`."
            )
        return pixel_values.to(self.device, self.dtype)

    def _check_latents(self, latents: torch.Tensor) -> None:
        if latents.dim() != 4 or latents.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"`latents` must have shape (batch, {self.config.latent_channels}, height, width), got "
                f"{tuple(latents.shape)}. They come from `encode(...).latents` or `decompress`."
            )

    def _check_size(self, height: int, width: int) -> None:
        if height * width > self.config.max_pixels:
            raise ValueError(
                f"A picture of {height}x{width} has more than `max_pixels` = {self.config.max_pixels} pixels, and "
                "no decoder of this model would accept it. Make it smaller or raise `config.max_pixels`."
            )

    def _parse(self, bitstreams: Sequence[bytes]) -> list[Bitstream]:
        """The containers of bitstreams."""
        if isinstance(bitstreams, bytes | bytearray | memoryview) or len(bitstreams) == 0:
            raise ValueError("`bitstreams` must be a non-empty list of bytes objects, one per picture.")
        return [Bitstream.parse(data, max_pixels=self.config.max_pixels) for data in bitstreams]


__all__ = [
    "CodecEncoderOutput",
    "CodecOutput",
    "ImageCodec",
    "batches_of_one_size",
    "check_range",
    "latent_size",
    "pad_to_multiple",
]
