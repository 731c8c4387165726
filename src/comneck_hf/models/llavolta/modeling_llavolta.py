"""LLaVA and LLaVA-NeXT whose language model pools visual tokens (LLaVolta)."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    Cache,
    LlamaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaNextForConditionalGeneration,
    LlavaNextModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaPreTrainedModel
from transformers.models.llava_next.modeling_llava_next import LlavaNextPreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_llavolta import LlavoltaConfig, LlavoltaNextConfig, LlavoltaTextConfig
from .language_llavolta import LlavoltaTextModel
from .pooling_llavolta import TokenGroups, image_offsets, region_offsets, sequence_offsets


class _TellsVisualTokens:
    """Tells the language model which tokens of the sequence are to be pooled."""

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        past_key_values: Cache | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the class without pooling. `inputs_embeds` that already hold image features are not pooled.

        Raises:
            ValueError: If an image begins where the last one in the cache ended: a prompt that is read in chunks.
        """
        if self.config.text_config.pools_inside:
            if pixel_values is not None and mm_encoder_outputs is None:
                mm_encoder_outputs = self._encoder_outputs(pixel_values, kwargs)
                pixel_values = None
            features = (mm_encoder_outputs or {}).get("image")
            visual_tokens = self._visual_tokens(input_ids, inputs_embeds)
            if features is not None:
                images = [_offsets(self.config.text_config, len(image)) for image in features.pooler_output]
                kwargs["pooling_offsets"] = sequence_offsets(visual_tokens, images)
            if past_key_values is not None:
                # without features a placeholder is a word that the model generated
                _refuse_chunks(past_key_values, visual_tokens & (features is not None))
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )

    def _encoder_outputs(
        self, pixel_values: torch.Tensor, options: dict[str, Any], **more: Any
    ) -> dict[str, BaseModelOutputWithPooling]:
        """The features of images, with those of the options of `forward` that concern them."""
        names = ("image_sizes", "vision_feature_layer", "vision_feature_select_strategy")
        options = {name: options[name] for name in names if options.get(name) is not None}
        return {"image": self.get_image_features(pixel_values=pixel_values, return_dict=True, **options, **more)}

    def _visual_tokens(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Where the placeholders of images are, bool `(batch, sequence)`."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(token)).all(-1)


def _refuse_chunks(cache: Cache, visual_tokens: torch.Tensor) -> None:
    """Notes whether an image ends with these tokens, and refuses to go on with one."""
    if getattr(cache, "ends_with_image", False) and visual_tokens[:, 0].any() and cache.get_seq_length() > 0:
        raise ValueError(
            "An image goes on where the cache ends, and its pieces would be pooled apart. Leave out "
            "`prefill_chunk_size`, put text between images, or switch pooling off with `set_visual_pooling(layer, 1)`."
        )
    cache.ends_with_image = bool(visual_tokens[:, -1].any())


class LlavoltaModel(_TellsVisualTokens, LlavaModel):
    """`LlavaModel` that pools visual tokens, before or within the language model."""

    config: LlavoltaConfig

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        pool_strides: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the class without pooling.

        Args:
            pool_strides: Of `pixel_values`, as in `get_image_features`.
        """
        if pool_strides is not None and pixel_values is not None and mm_encoder_outputs is None:
            mm_encoder_outputs = self._encoder_outputs(pixel_values, kwargs, pool_strides=pool_strides)
            pixel_values = None
        return super().forward(
            input_ids=input_ids, pixel_values=pixel_values, mm_encoder_outputs=mm_encoder_outputs, **kwargs
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | list[int] | None = None,
        vision_feature_select_strategy: str | None = None,
        image_sizes: torch.Tensor | None = None,
        pool_strides: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As `LlavaModel`; with `pool_layer=0` each image's features, behind the projector, are pooled.

        Args:
            pool_strides: With `region_strides`, the stride at every token, `(images, height, width)`, as
                `ComNeckProcessor` returns them; by default all images are pooled by `pool_stride`.

        Raises:
            ValueError: If the model has no `region_strides`, or the shape is another.
        """
        options = {
            "vision_feature_layer": vision_feature_layer,
            "vision_feature_select_strategy": vision_feature_select_strategy,
            "image_sizes": image_sizes,
        }
        options = {name: value for name, value in options.items() if value is not None}
        outputs = super().get_image_features(pixel_values, **options, **{**kwargs, "return_dict": True})
        images, text_config = outputs.pooler_output, self.config.text_config
        if pool_strides is not None:
            _check_strides(pool_strides, text_config, count=len(images))
            offsets = [
                region_offsets(strides, length=len(image), pool=text_config.pool)
                for image, strides in zip(images, pool_strides, strict=True)
            ]
        elif text_config.pools_before:
            offsets = [_offsets(text_config, len(image)) for image in images]
        else:
            return outputs
        outputs.pooler_output = [_pooled(image, own) for image, own in zip(images, offsets, strict=True)]
        return outputs


class LlavoltaNextModel(_TellsVisualTokens, LlavaNextModel):
    """`LlavaNextModel` that pools visual tokens within the language model."""

    config: LlavoltaNextConfig


class _GeneratesPooled:
    """Generation with two masks, and pooling that can be changed on a loaded model."""

    def set_visual_pooling(
        self, pool_layer: int, pool_stride: int, *, region_strides: Sequence[int] | None = None
    ) -> None:
        """Changes where and how much is pooled, from the next forward pass on; `pool_visual_tokens` also changes how.

        A model with `pool_layer=0` then needs a processor with the same settings, from `ComNeckProcessor.for_llava`.

        Args:
            pool_layer, pool_stride, region_strides: As in [`LlavoltaTextConfig`].

        Raises:
            ValueError: If the layer does not exist, a stride is below 1, or regions are to be pooled inside.
        """
        strides = None if region_strides is None else list(region_strides)
        self._set_pooling({"pool_layer": pool_layer, "pool_stride": pool_stride, "region_strides": strides})

    def _set_pooling(self, settings: dict[str, Any]) -> None:
        """Sets options of the configuration that fit each other; otherwise raises and leaves them."""
        text_config = self.config.text_config
        before = {name: getattr(text_config, name) for name in settings}
        for name, value in settings.items():
            setattr(text_config, name, value)
        try:
            self.config.validate_pooling()
        except ValueError:
            for name, value in before.items():
                setattr(text_config, name, value)
            raise

    def create_masks_for_generate(
        self,
        *,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **_: Any,
    ) -> torch.Tensor | dict[str, torch.Tensor | None] | None:
        """Masks of one step for static caches. Of the first step, whose groups are not known here, the 2-D one.

        `generate` calls it, with more than is needed here.
        """
        if is_first_iteration:
            return attention_mask
        return self.model.language_model.causal_masks(inputs_embeds, attention_mask, past_key_values, position_ids)


class LlavoltaForConditionalGeneration(_GeneratesPooled, LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` that pools visual tokens. Weights and their names are LLaVA's.

    The index of a folder may name a CLIP's file for the tower, so that both keep one copy.
    """

    config: LlavoltaConfig
    # What else lies in a CLIP's file.
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^(text|visual)_projection\.", r"^logit_scale$"]

    def __init__(self, config: LlavoltaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = LlavoltaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "LlavoltaForConditionalGeneration":
        """As any model's; knows the tower by the names of CLIP's files, too."""
        kwargs.setdefault("key_mapping", {r"^vision_model\.": "model.vision_tower."})
        return super().from_pretrained(*args, **kwargs)

    def prepare_inputs_for_generation(
        self, *args: Any, pool_strides: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As any model's; the strides of regions go with the pictures."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if pool_strides is not None and inputs.get("pixel_values") is not None:
            inputs["pool_strides"] = pool_strides
        return inputs


class LlavoltaNextForConditionalGeneration(_GeneratesPooled, LlavaNextForConditionalGeneration):
    """`LlavaNextForConditionalGeneration` that pools visual tokens. Weights and their names are LLaVA-NeXT's."""

    config: LlavoltaNextConfig

    def __init__(self, config: LlavoltaNextConfig) -> None:
        LlavaNextPreTrainedModel.__init__(self, config)
        self.model = LlavoltaNextModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


_POOLED_CLASSES = {
    LlavaForConditionalGeneration: (LlavoltaForConditionalGeneration, LlavoltaModel, LlavoltaConfig),
    LlavaNextForConditionalGeneration: (LlavoltaNextForConditionalGeneration, LlavoltaNextModel, LlavoltaNextConfig),
}


def pool_visual_tokens(
    model: PreTrainedModel,
    *,
    pool_layer: int = 2,
    pool_stride: int = 8,
    pool: str = "avg1d",
    pool_grid: tuple[int, int] | None = None,
    region_strides: Sequence[int] | None = None,
) -> PreTrainedModel:
    """Makes a loaded LLaVA or LLaVA-NeXT pool its visual tokens. Its weights stay where they are.

    Args:
        model: With a Llama language model; changed in place, and so is its configuration. One that pools already gets
            the new settings.
        pool_layer, pool_stride, pool, pool_grid, region_strides: As in [`LlavoltaTextConfig`].

    Returns:
        `model`, now of one of the classes of this module; it saves and loads as such.

    Raises:
        ValueError: If the model is of another class, or a setting is not possible.
    """
    settings = {"pool_layer": pool_layer, "pool_stride": pool_stride, "pool": pool, "pool_grid": pool_grid}
    settings["region_strides"] = None if region_strides is None else list(region_strides)
    if isinstance(model, _GeneratesPooled):
        model._set_pooling(settings)
        return model
    if type(model) not in _POOLED_CLASSES or type(model.config.get_text_config()) is not LlamaConfig:
        raise ValueError(
            "Pooling needs a `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration` with a Llama "
            f"language model, got {type(model).__name__} with {type(model.config.get_text_config()).__name__}."
        )
    model_class, base_class, config_class = _POOLED_CLASSES[type(model)]
    _convert_config(copy.deepcopy(model.config), config_class, settings)  # raises before anything has changed
    _convert_config(model.config, config_class, settings)
    model.__class__, model.model.__class__ = model_class, base_class
    model.model.language_model.__class__ = LlavoltaTextModel
    return model


def _convert_config(config: PreTrainedConfig, config_class: type[PreTrainedConfig], settings: dict[str, Any]) -> None:
    """Changes the class of the objects: every layer of a model holds on to its configuration."""
    config.__class__, config.text_config.__class__ = config_class, LlavoltaTextConfig
    for name, value in settings.items():
        setattr(config.text_config, name, value)
    config.validate_pooling()


def _offsets(config: LlavoltaTextConfig, length: int) -> torch.Tensor:
    return image_offsets(length, stride=config.pool_stride, pool=config.pool, grid=config.pool_grid)


def _check_strides(pool_strides: torch.Tensor, config: LlavoltaTextConfig, *, count: int) -> None:
    if config.region_strides is None:
        raise ValueError(
            "This model pools no regions, but got `pool_strides`. Set `region_strides`, or make the processor anew "
            "with `ComNeckProcessor.for_llava`."
        )
    if pool_strides.dim() != 3 or len(pool_strides) != count:
        raise ValueError(
            f"`pool_strides` must be ({count} images, height, width), got {tuple(pool_strides.shape)}. Let the "
            "processor of this model make them."
        )


def _pooled(features: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Features of one image, `(tokens, width)`, averaged group by group."""
    return TokenGroups.from_offsets(offsets[None].to(features.device)).mean(features[None])[0]


__all__ = [
    "LlavoltaForConditionalGeneration",
    "LlavoltaModel",
    "LlavoltaNextForConditionalGeneration",
    "LlavoltaNextModel",
    "pool_visual_tokens",
]
