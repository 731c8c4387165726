"""LLaVolta configurations: LLaVA with visual tokens pooled at the input of one layer."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlamaConfig, LlavaConfig, LlavaNextConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..hub_code import HubCode


@strict
class LlavoltaTextConfig(HubCode, LlamaConfig):
    r"""Configuration of [`LlavoltaTextModel`]: Llama, and where and how it pools visual tokens.

    All fields of `LlamaConfig` keep their meaning.

    pool_layer (`int`, *optional*, defaults to 2):
        Layer at whose input the visual tokens are pooled, counted from 0 (the paper's K). 0 pools before the language
        model, behind the projector; the processor then writes fewer placeholders (`ComNeckProcessor.pool_stride`).
    pool_stride (`int`, *optional*, defaults to 1):
        Tokens of one image that become one (the paper's S); with `pool="avg2d"` the side of the pooled square. 1 pools
        nothing.
    pool (`str`, *optional*, defaults to `"avg1d"`):
        `"avg1d"` averages runs of tokens in raster order, as the paper; `"avg2d"` squares of the image grid.
    pool_grid (`list[int]`, *optional*):
        Height and width of an image in tokens, for `"avg2d"`. A square by default.
    region_strides (`list[int]`, *optional*):
        Strides of the regions of an image whose bitstream has a gain map: where its levels are below, at and above 0.
        `[4, 2, 1]` keeps all tokens where the bits went. `pool_stride` is then for images without a map. Needs
        `pool_layer=0`. By default maps change nothing.
    """

    model_type = "llavolta_llama"
    base_config_key = "text_config"

    pool_layer: int = 2
    pool_stride: int = 1
    pool: Literal["avg1d", "avg2d"] = "avg1d"
    pool_grid: list[int] | tuple[int, int] | None = None
    region_strides: list[int] | tuple[int, int, int] | None = None

    def validate_pooling(self) -> None:
        """Refuses layers that do not exist, strides below 1, and impossible grids."""
        if self.pool_layer < 0 or self.pool_stride > 1 and self.pool_layer >= self.num_hidden_layers:
            raise ValueError(
                f"`pool_layer` must be in [0, {self.num_hidden_layers}), got {self.pool_layer}. 0 pools before the "
                "language model."
            )
        if self.pool_stride < 1:
            raise ValueError(f"`pool_stride` must be at least 1, which pools nothing; got {self.pool_stride}.")
        if self.pool_stride > 1 and self.attention_bias:
            raise ValueError("Tokens can only be pooled inside a Llama without `attention_bias`, this one has it.")
        if self.pool_grid is not None and (len(self.pool_grid) != 2 or min(self.pool_grid) < 1):
            raise ValueError(f"`pool_grid` must be a positive [height, width], got {list(self.pool_grid)}.")
        if self.region_strides is None:
            return
        if len(self.region_strides) != 3 or min(self.region_strides) < 1:
            raise ValueError(
                "`region_strides` must be three strides of at least 1, for levels below, at and above 0, got "
                f"{list(self.region_strides)}."
            )
        if self.pool_layer != 0:
            raise ValueError(
                f"Regions are pooled before the language model, but `pool_layer` is {self.pool_layer}. Set it to 0."
            )

    @property
    def pools_inside(self) -> bool:
        """Whether tokens are pooled between two layers of the language model."""
        return self.pool_stride > 1 and self.pool_layer > 0

    @property
    def pools_before(self) -> bool:
        """Whether tokens are pooled before the language model sees them."""
        return self.pool_layer == 0 and (self.pool_stride > 1 or self.region_strides is not None)


_TEXT_CONFIG = SubConfigSpec(config_class=AutoConfig, model_type=LlavoltaTextConfig.model_type)


class _PoolsVisualTokens:
    """Turns a plain Llama `text_config` into one that can pool."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = with_pooling(self.text_config)
        super().__post_init__(**kwargs)

    def validate_pooling(self) -> None:
        """Refuses settings that the language model cannot have."""
        self.text_config.validate_pooling()


@strict
class LlavoltaConfig(_PoolsVisualTokens, HubCode, LlavaConfig):
    r"""Configuration of [`LlavoltaForConditionalGeneration`]: `LlavaConfig` with a [`LlavoltaTextConfig`].

    text_config (`dict` or `PreTrainedConfig`, *optional*):
        Llama's; a plain `LlamaConfig` becomes a `LlavoltaTextConfig` that pools nothing.
    """

    model_type = "llavolta"
    sub_configs_defaults = {**LlavaConfig.sub_configs_defaults, "text_config": _TEXT_CONFIG}


@strict
class LlavoltaNextConfig(_PoolsVisualTokens, HubCode, LlavaNextConfig):
    r"""Configuration of [`LlavoltaNextForConditionalGeneration`]: `LlavaNextConfig` with a [`LlavoltaTextConfig`].

    text_config (`dict` or `PreTrainedConfig`, *optional*):
        Llama's; a plain `LlamaConfig` becomes a `LlavoltaTextConfig` that pools nothing.
    """

    model_type = "llavolta_next"
    sub_configs_defaults = {**LlavaNextConfig.sub_configs_defaults, "text_config": _TEXT_CONFIG}

    def validate_pooling(self) -> None:
        """Refuses also what any-resolution images, whose tokens are no rectangle, cannot have."""
        super().validate_pooling()
        if self.text_config.pools_before or self.text_config.pool_stride > 1 and self.text_config.pool != "avg1d":
            raise ValueError(
                f"LLaVA-NeXT pools with `pool_layer` of 1 or more and `pool='avg1d'`, got `pool_layer="
                f"{self.text_config.pool_layer}` and `pool={self.text_config.pool!r}`: its images have rows of "
                "different lengths."
            )


def with_pooling(text_config: dict | PreTrainedConfig | None) -> dict | PreTrainedConfig | None:
    """A Llama configuration as [`LlavoltaTextConfig`]; others are refused.

    Raises:
        ValueError: If the language model is not Llama.
    """
    if text_config is None or isinstance(text_config, LlavoltaTextConfig):
        return text_config
    values = dict(text_config) if isinstance(text_config, dict) else text_config.to_dict()
    model_type = values.pop("model_type", "llama")
    if model_type not in ("llama", LlavoltaTextConfig.model_type):
        raise ValueError(
            f"LLaVolta pools inside Llama language models (Vicuna among them), this one is {model_type!r}. Pool "
            "before the language model instead: pass fewer features in `mm_encoder_outputs`."
        )
    return LlavoltaTextConfig(**values)


__all__ = ["LlavoltaConfig", "LlavoltaNextConfig", "LlavoltaTextConfig", "with_pooling"]
