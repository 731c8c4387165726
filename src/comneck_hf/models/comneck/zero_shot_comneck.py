"""ComNeck with CLIP's text tower: zero-shot classification from latents."""

import copy
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ..codec_vision import CodecVisionModel
from ..hub_code import HubCode


@strict
class ComNeckForZeroShotConfig(HubCode, PreTrainedConfig):
    r"""Configuration of [`ComNeckForZeroShotImageClassification`].

    comneck_config (`dict` or `PreTrainedConfig`, *optional*, defaults to ComNeck):
        Codec and image tower, ComNeck's or CoTAM's, resolved by its `model_type` through `AutoConfig`.
    text_config (`dict` or `CLIPTextConfig`, *optional*):
        CLIP's text tower.
    logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
        Logarithm of the factor between similarities and logits.
    """

    model_type = "comneck_zero_shot"
    sub_configs_defaults = {
        "comneck_config": SubConfigSpec(config_class=AutoConfig, model_type="comneck"),
        "text_config": CLIPTextConfig,
    }

    comneck_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    logit_scale_init_value: float = 2.6592


class ComNeckForZeroShotImageClassification(PreTrainedModel):
    """`CLIPModel` that takes latents: for `pipeline("zero-shot-image-classification")` and contrastive scores.

    latents or pixel_values -> ComNeck -> image_embeds --+
                                                         +--> logits
    input_ids -> text_model -> text_projection ----------+
    """

    config: ComNeckForZeroShotConfig
    base_model_prefix = "comneck"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: ComNeckForZeroShotConfig) -> None:
        super().__init__(config)
        projection_dim = config.comneck_config.projection_dim
        self.comneck = AutoModel.from_config(config.comneck_config)
        self.text_model = CLIPTextModel._from_config(config.text_config)
        self.text_projection = nn.Linear(config.text_config.hidden_size, projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, self.config.logit_scale_init_value)
        if module is self.text_projection:
            init.normal_(module.weight, std=self.config.text_config.hidden_size**-0.5)

    @classmethod
    def from_comneck_and_clip(
        cls, comneck: CodecVisionModel, clip: CLIPModel
    ) -> "ComNeckForZeroShotImageClassification":
        """Joins a ComNeck or CoTAM with the text tower of the CLIP it was made from. The weights are copied.

        Raises:
            ValueError: If their embeddings have different widths.
        """
        if comneck.config.projection_dim != clip.config.projection_dim:
            raise ValueError(
                f"The embeddings have {comneck.config.projection_dim} and {clip.config.projection_dim} dimensions. "
                "Use the CLIP that the other model was made from."
            )
        configs = {"comneck_config": comneck.config, "text_config": clip.config.text_config}
        model = cls(ComNeckForZeroShotConfig(**copy.deepcopy(configs)))
        model.comneck.load_state_dict(comneck.state_dict())
        model.text_model.load_state_dict(clip.text_model.state_dict())
        model.text_projection.load_state_dict(clip.text_projection.state_dict())
        model.logit_scale.data.copy_(clip.logit_scale.data)
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's word embeddings."""
        return self.text_model.get_input_embeddings()

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As `CLIPModel.get_text_features`: `pooler_output` is projected."""
        outputs = self.text_model(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        outputs.pooler_output = self.text_projection(outputs.pooler_output)
        return outputs

    def get_image_features(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
        """As [`CodecVisionModel.get_image_features`]."""
        return self.comneck.get_image_features(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CLIPOutput:
        """Scores of all images against all texts, as `CLIPModel`.

        Args:
            input_ids, attention_mask, position_ids: Texts, `(texts, sequence)`.
            pixel_values, latents: Images, as in [`CodecVisionModel.forward`]; one of them.
        """
        image_outputs = self.get_image_features(pixel_values, latents, return_dict=True, **kwargs)
        text_outputs = self.get_text_features(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        image_embeds = nn.functional.normalize(image_outputs.pooler_output, dim=-1)
        text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1)
        logits_per_text = self.logit_scale.exp() * text_embeds @ image_embeds.T.to(text_embeds.device)
        return CLIPOutput(
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=image_outputs,
        )


__all__ = ["ComNeckForZeroShotConfig", "ComNeckForZeroShotImageClassification"]
