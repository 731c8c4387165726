"""CLIP's transformer layers, entered behind the ones that the neck replaces."""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder, CLIPEncoderLayer
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_comneck import ComNeckVisionConfig


class SkippedLayer(CLIPEncoderLayer):
    """Stands for a CLIP layer that the neck replaces: no weights, returns its input.

    transformers records hidden states per `CLIPEncoderLayer` that runs, so this one keeps CLIP's numbering.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any) -> torch.Tensor:
        """Returns `hidden_states`; takes what every CLIP layer takes."""
        return hidden_states


class ComNeckEncoder(CLIPEncoder):
    """CLIP's layers, entered behind the skipped ones. Weights keep CLIP's names (`layers.2...` and up)."""

    def __init__(self, config: ComNeckVisionConfig) -> None:
        nn.Module.__init__(self)
        self.config = config
        num_missing = 0 if config.keep_clip_stem else config.num_skipped_layers
        self.layers = nn.ModuleList(
            nn.Identity() if index < num_missing else CLIPEncoderLayer(config)
            for index in range(config.num_hidden_layers)
        )
        self.skipped_layer = SkippedLayer()
        self.gradient_checkpointing = False

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        num_skipped_layers: int = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Runs the layers from `num_skipped_layers` on `(batch, tokens, hidden_size)`."""
        hidden_states = inputs_embeds
        for index, layer in enumerate(self.layers):
            layer = self.skipped_layer if index < num_skipped_layers else layer
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


__all__ = ["ComNeckEncoder", "SkippedLayer"]
