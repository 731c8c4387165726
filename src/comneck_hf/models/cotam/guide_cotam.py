"""Where the first layers of a vision encoder look: CoTAM's guide at the edge (paper, section 3)."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoConfig, CLIPVisionModel, SiglipVisionModel
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from ..clip_inputs import clip_inputs
from .configuration_cotam import GUIDE_SOURCES


_ENCODERS = {  # with mean and standard deviation of the colors that they were trained on
    "clip": (CLIPVisionModel, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "siglip": (SiglipVisionModel, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
}

# Queries whose attention is held at a time where it is averaged over all of them
_QUERIES_PER_CHUNK = 64


class ShallowAttentionGuide:
    """Importance maps from the attention of a vision encoder's first layers.

    pixel_values -> embeddings -> layers 0..k -> attention to the patches -> mean over heads and layers

    The encoder is used where it is and stays its owner's: this is no module and has no weights, so that neither
    `state_dict()` nor `.to()` of an owner sees them a second time. Of the last layer only the query and the keys are
    computed, and of none of `layers` the full attention.

    Args:
        vision_model: A `CLIPVisionModel` or another tower with CLIP's parts (`embeddings`, `encoder.layers`, and
            `pre_layrnorm` if it has one), such as SigLIP's; or a model that holds one as `vision_model`, such as
            `CLIPModel` and `CLIPVisionModelWithProjection`.
        layers: Which layers' attention is averaged; negative numbers count from the last layer. The paper takes the
            first three.
        source: `"cls"` for the attention that the class token pays, `"mean_query"` for the mean over the patches'
            queries, for encoders without a class token.
        mean: Mean of red, green and blue that the encoder expects to be subtracted; CLIP's by default.
        std: Standard deviation, likewise.

    Raises:
        ValueError: If the model has no such tower, a layer does not exist, or `source` does not fit the tower.
    """

    def __init__(
        self,
        vision_model: nn.Module,
        *,
        layers: Sequence[int] = (0, 1, 2),
        source: str = "cls",
        mean: Sequence[float] = OPENAI_CLIP_MEAN,
        std: Sequence[float] = OPENAI_CLIP_STD,
    ) -> None:
        self.vision_model = _vision_tower(vision_model)
        self.layers = _resolve_layers(layers, len(self.vision_model.encoder.layers))
        self.has_class_token = hasattr(self.vision_model.embeddings, "class_embedding")
        if source not in GUIDE_SOURCES:
            raise ValueError(f"`source` must be one of {GUIDE_SOURCES}, got {source!r}.")
        if source == "cls" and not self.has_class_token:
            raise ValueError(
                f"`source` is 'cls', but {type(self.vision_model).__name__} has no class token. Use 'mean_query'."
            )
        self.source = source
        self.mean, self.std = tuple(mean), tuple(std)

    @classmethod
    def from_pretrained(
        cls, name: str, *, layers: Sequence[int] = (0, 1, 2), source: str | None = None, **kwargs: object
    ) -> "ShallowAttentionGuide":
        """The guide alone, for an edge device: of an encoder only the layers that are needed are loaded.

        Args:
            name: Folder or Hub id of a CLIP or SigLIP, or of its vision tower.
            layers: As in the constructor.
            source: As in the constructor; by default `"cls"` for a CLIP, `"mean_query"` for a SigLIP.
            **kwargs: For the tower's `from_pretrained`, such as `dtype`.

        Raises:
            ValueError: If the model is neither, or a layer does not exist.
        """
        config = AutoConfig.from_pretrained(name)
        config = getattr(config, "vision_config", config)
        kind = config.model_type.removesuffix("_vision_model")
        if kind not in _ENCODERS:
            raise ValueError(f"{name!r} is a {config.model_type!r}; guides are made of {sorted(_ENCODERS)}.")
        encoder, mean, std = _ENCODERS[kind]
        chosen = _resolve_layers(layers, config.num_hidden_layers)
        config.num_hidden_layers = chosen[-1] + 1
        tower = encoder.from_pretrained(name, config=config, **kwargs).eval()
        source = source or ("cls" if kind == "clip" else "mean_query")
        return cls(tower, layers=chosen, source=source, mean=mean, std=std)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the importance maps: the encoder's patches."""
        side = self.vision_model.config.image_size // self.vision_model.config.patch_size
        return side, side

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Importance maps of pictures.

        Args:
            pixel_values: Shape `(batch, 3, height, width)`, values in [0, 1], any size: the encoder sees them resized
                to its own square, so that the map spans the whole picture.

        Returns:
            float32 `(batch, 1, rows, columns)` on the encoder's device: the share of the attention that each patch
            gets, at least 0. The shares of a picture add up to at most 1 (what the class token keeps is left out).

        Raises:
            ValueError: If `pixel_values` is no batch of pictures.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                f"`pixel_values` must be (batch, 3, height, width), got {tuple(pixel_values.shape)}. Stack pictures "
                "of one size, or give them one by one."
            )
        tower = self.vision_model
        weight = tower.embeddings.patch_embedding.weight
        pixels = clip_inputs(
            pixel_values.to(weight.device).float(), tower.config.image_size, mean=self.mean, std=self.std
        )
        hidden_states = tower.embeddings(pixels.to(weight.dtype))
        if hasattr(tower, "pre_layrnorm"):
            hidden_states = tower.pre_layrnorm(hidden_states)
        importance = 0.0
        for index in range(self.layers[-1] + 1):
            layer = tower.encoder.layers[index]
            if index in self.layers:
                importance = importance + self._attention_to_patches(layer, hidden_states)
            if index < self.layers[-1]:
                hidden_states = layer(hidden_states, None)
        return (importance / len(self.layers)).view(-1, 1, *self.grid)

    def _attention_to_patches(self, layer: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        """Attention of one layer, mean over heads and queries: float32 `(batch, patches)`."""
        attention, first_patch = layer.self_attn, int(self.has_class_token)
        hidden_states = layer.layer_norm1(hidden_states)
        askers = hidden_states[:, :1] if self.source == "cls" else hidden_states[:, first_patch:]
        batch, tokens, _ = hidden_states.shape
        keys = attention.k_proj(hidden_states).view(batch, tokens, -1, attention.head_dim).transpose(1, 2)
        queries = attention.q_proj(askers).view(batch, askers.shape[1], -1, attention.head_dim).transpose(1, 2)
        received = 0.0
        for chunk in queries.split(_QUERIES_PER_CHUNK, dim=2):
            weights = (attention.scale * chunk @ keys.transpose(-1, -2)).softmax(-1, dtype=torch.float32)
            received = received + weights.sum(dim=(1, 2))
        return received[:, first_patch:] / (queries.shape[1] * queries.shape[2])


def _vision_tower(model: nn.Module) -> nn.Module:
    tower = getattr(model, "vision_model", model)
    if not (hasattr(tower, "embeddings") and hasattr(getattr(tower, "encoder", None), "layers")):
        raise ValueError(
            f"{type(model).__name__} has no vision tower with `embeddings` and `encoder.layers`. Give a "
            "`CLIPVisionModel`, or a model that holds one; a ComNeck tower needs `keep_clip_stem=True`."
        )
    return tower


def _resolve_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Layer numbers from 0, ascending, each once."""
    if not layers:
        raise ValueError("`layers` must name at least one layer.")
    for layer in layers:
        if not -num_layers <= layer < num_layers:
            raise ValueError(f"`layers` must lie in [{-num_layers}, {num_layers}), got {layer}.")
    return tuple(sorted({layer % num_layers for layer in layers}))


__all__ = ["ShallowAttentionGuide"]
