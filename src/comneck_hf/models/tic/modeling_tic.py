"""TIC image codec: Swin transforms around ELIC's exact entropy model."""

import torch
from torch import nn
from transformers import initialization as init

from ..elic.modeling_elic import ElicModel
from .configuration_tic import TicConfig
from .layers_tic import WindowAttention, analysis_transform, synthesis_transform


class TicModel(ElicModel):
    """TIC, "Transformer-based Image Compression" (Lu, Guo, Shi, Cao, Ma, DCC 2022), with ELIC's entropy model.

    pixel_values -> g_a -> y -> quantize -> y_hat -> g_s -> reconstruction

    `g_a` halves the picture four times by convolutions (5x5, then 3x3), each followed by a block of windowed
    self-attention; `g_s` is its mirror with transposed convolutions. Everything else, `h_a` and `h_s` included, is
    [`ElicModel`]'s.

    This deviates from the paper on purpose: TIC predicts each latent from those before it, one after the other, by
    causal attention in floating point, and has attention in its hyper transforms, too. Its bitstreams would decode
    only where every sum rounds as in the encoder, and in as many steps as there are positions. ELIC's model needs
    ten steps and is defined in integers, so that bitstreams decode to the same latents everywhere.

    `attn_implementation` is without effect: windows with position biases are this module's own.
    """

    config: TicConfig
    config_class = TicConfig
    _no_split_modules = ["TicModel"]

    def _build_g_a(self, config: TicConfig) -> nn.Sequential:
        return analysis_transform(config)

    def _build_g_s(self, config: TicConfig) -> nn.Sequential:
        return synthesis_transform(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, WindowAttention):
            init.trunc_normal_(module.position_bias, std=self.config.initializer_range)
        else:
            super()._init_weights(module)


__all__ = ["TicModel"]
