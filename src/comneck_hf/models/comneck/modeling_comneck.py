"""CLIP vision tower fed by codec latents, and the model that joins it with a codec."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..codec_vision import CodecVisionModel, ComNeckModelOutput, LatentVisionModel, sort_inputs
from .configuration_comneck import ComNeckConfig, ComNeckVisionConfig
from .encoder_comneck import ComNeckEncoder
from .neck_comneck import TransformNeck


class ComNeckVisionModel(LatentVisionModel):
    """CLIP vision tower that takes codec latents in place of a picture.

    latents -----> neck ------------------------------+
                                                      v
    pixel_values -> embeddings -> layers 0..k-1 -> layers k.. -> post_layernorm (class token)

    k is `num_skipped_layers`. The lower path exists with `keep_clip_stem=True` only and then equals `CLIPVisionModel`.
    """

    config: ComNeckVisionConfig
    reader = "neck"

    def __init__(self, config: ComNeckVisionConfig) -> None:
        PreTrainedModel.__init__(self, config)
        if config.keep_clip_stem:
            self.embeddings = CLIPVisionEmbeddings(config)
            self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        else:
            missing_layers = "|".join(str(index) for index in range(config.num_skipped_layers))
            self._keys_to_ignore_on_load_unexpected = [
                *self._keys_to_ignore_on_load_unexpected,
                r"(^|\.)embeddings\.(class|patch|position)_embedding",
                r"(^|\.)pre_layrnorm\.",
                *([rf"(^|\.)encoder\.layers\.({missing_layers})\."] if missing_layers else []),
            ]
        self.neck = TransformNeck(config)
        self.encoder = ComNeckEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The first layer that sees the input: CLIP's patch embedding, or the neck's projection."""
        return self.embeddings.patch_embedding if self.config.keep_clip_stem else self.neck.projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces what `get_input_embeddings` returns."""
        if self.config.keep_clip_stem:
            self.embeddings.patch_embedding = value
        else:
            self.neck.projection = value

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Features from latents, or from pictures where the CLIP stem was kept. Exactly one of the two.

        Args:
            pixel_values: Shape `(batch, 3, image_size, image_size)`, normalized as for CLIP. With `latent_channels`
                channels instead of 3 they **are** latents, so that LLaVA can pass them on.
            latents: Shape `(batch, latent_channels, height, width)`.
            interpolate_pos_encoding: Accept other sizes, with positions interpolated.
            kwargs: `output_hidden_states` (also an index or a list of indices), `output_attentions`, `return_dict`.

        Returns:
            `last_hidden_state` of shape `(batch, tokens, hidden_size)`, `pooler_output` `(batch, hidden_size)`;
            `hidden_states` numbered as CLIP's, `attentions` of the layers that ran.

        Raises:
            ValueError: If none or both inputs are given, or their shape fits neither path.
        """
        pixel_values, latents = sort_inputs(pixel_values, latents, self.config)
        if latents is not None:
            hidden_states = self.neck(latents, interpolate_pos_encoding=bool(interpolate_pos_encoding))
            num_skipped_layers = self.config.num_skipped_layers
        elif self.config.keep_clip_stem:
            embeddings = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
            hidden_states = self.pre_layrnorm(embeddings)
            num_skipped_layers = 0
        else:
            raise ValueError(
                f"`pixel_values` of shape {tuple(pixel_values.shape)} are a picture, but this tower was built without "
                "CLIP's patch embedding. Pass `latents`, or load it with `keep_clip_stem=True`."
            )
        return self._features(hidden_states, num_skipped_layers=num_skipped_layers, **kwargs)


class ComNeckModel(CodecVisionModel):
    """Bytes in, CLIP features out: codec, transform-neck, CLIP layers, projection.

    edge    pixel_values -> compress -> bitstreams
    server  bitstreams -> decompress -> latents -> vision_model -> visual_projection -> image_embeds
                                           +-----> reconstruct -> picture, if a person wants to look

    It fits into LLaVA as `vision_tower`.
    """

    config: ComNeckConfig
    config_class = ComNeckConfig
    base_model_prefix = "comneck"

    def _build_tower(self, config: ComNeckConfig) -> ComNeckVisionModel:
        return ComNeckVisionModel._from_config(config.vision_config)


__all__ = ["ComNeckModel", "ComNeckModelOutput", "ComNeckVisionModel"]
