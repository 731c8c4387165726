"""The same weights in CompressAI's `elic2022-chandelier`: what speed, size and exactness are compared with."""

import struct
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..models.elic.configuration_elic import ElicConfig
from ..models.elic.layouts_elic import compressai_key
from ..models.elic.modeling_elic import ElicModel
from ..models.image_codec import CodecEncoderOutput


def to_compressai(codec: ElicModel) -> nn.Module:
    """CompressAI's `elic2022-chandelier` with the weights of `codec`, in eval mode and with its coding tables.

    Its constructor fixes the widths of the context and aggregation networks; where `codec` has others, those layers
    are replaced.

    Args:
        codec: The codec; not changed.

    Returns:
        The CompressAI model in float32 on the CPU. Pictures must have sides that are multiples of 64.

    Raises:
        ValueError: If the codec is no ELIC, if the kernel size is not 5, which is the only one that CompressAI builds,
            or if parts of the codec were not built, or it has gain vectors.
    """
    if codec.config.model_type != "elic":
        raise ValueError(f"Only ELIC's weights fit into other code bases; this codec is {codec.config.model_type!r}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.jit, which CompressAI's import uses
        from compressai.models import Elic2022Chandelier

    config = codec.config
    if config.gain_levels:
        raise ValueError(f"CompressAI's ELIC has no gain vectors, this codec has them for {config.gain_levels} gains.")
    if config.kernel_size != 5:
        raise ValueError(f"CompressAI's ELIC has `kernel_size` 5, this codec {config.kernel_size}.")
    for flag in ("build_analysis", "build_synthesis", "build_entropy_networks"):
        if not getattr(config, flag):
            raise ValueError(f"This codec has `{flag}=False`, but CompressAI's has all parts. Load one that has, too.")
    groups = list(config.group_channels)
    model = Elic2022Chandelier(N=config.hidden_channels, M=config.latent_channels, groups=groups)
    _set_widths(model, config)
    weights = {compressai_key(name): value.detach().float().cpu() for name, value in codec.named_parameters()}
    assert weights.keys() == dict(model.named_parameters()).keys(), "the key table names every parameter"
    model.load_state_dict({**model.state_dict(), **weights})
    model.eval().requires_grad_(False)
    model.update(force=True)
    return model


class CompressAICodec(nn.Module):
    """CompressAI's model behind the methods of [`ElicModel`] that take part in coding.

    A picture's eleven strings and the size of its hyper-latents are put together to one bitstream. CompressAI checks
    nothing: a bitstream that it cannot decode gives wrong latents, an exception, or ends the process.

    Args:
        model: What `to_compressai` returned.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def encode(self, pixel_values: torch.Tensor) -> CodecEncoderOutput:
        """Latents as the encoder has them; arguments as for [`ElicModel`]."""
        return CodecEncoderOutput(latents=self._compress(pixel_values)["y_hat"])

    def compress(self, pixel_values: torch.Tensor) -> list[bytes]:
        """One bitstream per picture; arguments as for [`ElicModel`], sides multiples of 64."""
        coded = self._compress(pixel_values)
        height, width = coded["shape"]["hyper"]
        header = struct.pack("<HH", height, width)
        return [
            header + b"".join(struct.pack("<I", len(string)) + string for string in strings)
            for strings in zip(*coded["strings"], strict=True)
        ]

    def decompress(self, bitstreams: Sequence[bytes]) -> torch.Tensor:
        """Latents `(batch, latent_channels, height / 16, width / 16)` of pictures of one size."""
        height, width = struct.unpack_from("<HH", bitstreams[0])
        shapes = [(channels, 4 * height, 4 * width) for channels in self.model.groups]
        strings = zip(*(_split_strings(bitstream) for bitstream in bitstreams), strict=True)
        coded = {"strings": [list(part) for part in strings], "shape": {"y": shapes, "hyper": (height, width)}}
        return self.model.latent_codec.decompress(**coded)["y_hat"]

    def _compress(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        return self.model.compress(pixel_values.to(next(self.model.parameters()).device))


def _split_strings(bitstream: bytes) -> list[bytes]:
    strings, position = [], 4
    while position < len(bitstream):
        (length,) = struct.unpack_from("<I", bitstream, position)
        strings.append(bitstream[position + 4 : position + 4 + length])
        position += 4 + length
    return strings


def _set_widths(model: nn.Module, config: ElicConfig) -> None:
    latent_codec = model.latent_codec["y"]
    for layers in latent_codec.channel_context.values():
        _replace_convolutions(layers, config.context_channels)
    for layers in latent_codec.latent_codec.values():
        _replace_convolutions(layers.entropy_parameters, config.aggregation_channels)


def _replace_convolutions(layers: nn.Sequential, hidden_widths: list[int] | tuple[int, ...]) -> None:
    """Gives a chain convolution, ReLU, convolution, ... these hidden widths."""
    widths = [layers[0].in_channels, *hidden_widths, layers[-1].out_channels]
    for index, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
        old = layers[2 * index]
        if (old.in_channels, old.out_channels) != (before, after):
            layers[2 * index] = nn.Conv2d(before, after, old.kernel_size, padding=old.padding)


__all__ = ["CompressAICodec", "to_compressai"]
