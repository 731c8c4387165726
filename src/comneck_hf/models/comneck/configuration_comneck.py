"""ComNeck configurations."""

import copy
from dataclasses import field, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..hub_code import HubCode


SCENARIOS = ("d1", "d2", "d3")
QUALITIES = (1, 2, 3, 4)
DOWNSAMPLING_FACTOR = 16  # pixels per latent position along each side, for every codec of this package


@strict
class ComNeckVisionConfig(HubCode, CLIPVisionConfig):
    r"""Configuration of [`ComNeckVisionModel`]: transform-neck and CLIP vision tower.

    The defaults are the paper's: ELIC latents into CLIP ViT-L/14. All fields of `CLIPVisionConfig` keep their meaning;
    `image_size` and `patch_size` describe CLIP's own pixel path.

    latent_channels (`int`, *optional*, defaults to 320):
        Channels of the codec latents `y_hat`.
    latent_size (`int` or `list[int]`, *optional*):
        Height and width of the latent grid the neck has positions for. CLIP's patch grid by default
        (`image_size // patch_size`), so that LLaVA counts the same tokens for latents and for pixels.
    num_skipped_layers (`int`, *optional*, defaults to 2):
        How many leading CLIP layers the neck replaces. 2 means that the neck feeds the third layer.
    post_layernorm_repeats (`int`, *optional*, defaults to 1):
        How often CLIP's final layer norm is applied to the pooled class token. 1 is CLIP; 2 reproduces the features
        of the authors' released code.
    keep_clip_stem (`bool`, *optional*, defaults to `False`):
        Whether patch embedding and the skipped layers exist, so that pictures can take CLIP's ordinary path.
    neck_num_attention_heads (`int`, *optional*):
        Attention heads of the neck. As many as the tower by default.
    neck_intermediate_size (`int`, *optional*):
        MLP width of the neck. The tower's by default.
    """

    model_type = "comneck_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1024
    intermediate_size: int = 4096
    projection_dim: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    patch_size: int | list[int] | tuple[int, int] | None = 14

    latent_channels: int = 320
    latent_size: int | list[int] | tuple[int, int] | None = None
    num_skipped_layers: int = 2
    post_layernorm_repeats: int = 1
    keep_clip_stem: bool = False
    neck_num_attention_heads: int | None = None
    neck_intermediate_size: int | None = None

    def validate_skipped_layers(self) -> None:
        """Refuses a neck that replaces every layer."""
        if not 0 <= self.num_skipped_layers < self.num_hidden_layers:
            raise ValueError(
                f"`num_skipped_layers` must be in [0, {self.num_hidden_layers}), got {self.num_skipped_layers}. "
                "At least one CLIP layer has to remain behind the neck."
            )

    def validate_latents(self) -> None:
        """Refuses latents that could be mistaken for pictures, and empty grids."""
        if self.latent_channels < 1 or self.latent_channels == self.num_channels:
            raise ValueError(
                f"`latent_channels` must be positive and differ from the {self.num_channels} channels of a picture, "
                f"got {self.latent_channels}: latents and pictures are told apart by their channels."
            )
        if self.latent_size is None and not (isinstance(self.image_size, int) and isinstance(self.patch_size, int)):
            raise ValueError(
                f"`latent_size` can only be derived from an integer `image_size` and `patch_size`, got "
                f"{self.image_size} and {self.patch_size}. Set `latent_size=[height, width]`."
            )
        if not isinstance(self.latent_size, int | None) and len(self.latent_size) != 2:
            raise ValueError(f"`latent_size` must be an integer or [height, width], got {list(self.latent_size)}.")
        if min(self.latent_grid) < 1:
            raise ValueError(f"`latent_size` must be positive, got {list(self.latent_grid)}.")

    def validate_neck(self) -> None:
        """Refuses widths that the neck cannot be built with."""
        heads = self.neck_num_attention_heads or self.num_attention_heads
        if heads < 1 or self.hidden_size % heads:
            raise ValueError(
                f"`neck_num_attention_heads` must divide `hidden_size` {self.hidden_size}, got {heads}. "
                "Leave it `None` to use the tower's."
            )
        if self.neck_intermediate_size is not None and self.neck_intermediate_size < 1:
            raise ValueError(f"`neck_intermediate_size` must be positive, got {self.neck_intermediate_size}.")
        if self.post_layernorm_repeats < 1:
            raise ValueError(f"`post_layernorm_repeats` must be at least 1, got {self.post_layernorm_repeats}.")

    @property
    def latent_grid(self) -> tuple[int, int]:
        """Height and width of the latent grid the neck has positions for."""
        if self.latent_size is None:
            return (self.image_size // self.patch_size,) * 2
        if isinstance(self.latent_size, int):
            return (self.latent_size, self.latent_size)
        return (self.latent_size[0], self.latent_size[1])


@strict
class ComNeckConfig(HubCode, PreTrainedConfig):
    r"""Configuration of [`ComNeckModel`]: codec, transform-neck and CLIP vision tower.

    It also serves as `vision_config` of LLaVA: `hidden_size`, `num_hidden_layers`, `image_size` and `patch_size` are
    there as read-only properties, in pixels of the codec's input.

    codec_config (`dict` or `PreTrainedConfig`, *optional*, defaults to ELIC):
        Configuration of the codec, resolved by its `model_type` through `AutoConfig`. `None` builds a model without
        codec, which takes latents only.
    vision_config (`dict` or `ComNeckVisionConfig`, *optional*):
        Configuration of neck and tower.
    scenario (`str`, *optional*, defaults to `"d1"`):
        Who the codec was trained for: `"d1"` people, codec frozen; `"d2"` people and machines; `"d3"` machines only.
    quality (`int`, *optional*):
        Operating point, 1 (smallest files) to 4.
    projection_dim (`int`, *optional*):
        Width of `image_embeds`. `vision_config.projection_dim` by default.
    """

    model_type = "comneck"
    sub_configs_defaults = {
        "codec_config": SubConfigSpec(config_class=AutoConfig, model_type="elic", optional=True),
        "vision_config": ComNeckVisionConfig,
    }

    codec_config: dict | PreTrainedConfig | None = field(default_factory=dict)
    vision_config: dict | PreTrainedConfig | None = None
    scenario: str = "d1"
    quality: int | None = None
    projection_dim: int | None = None

    @classmethod
    def from_codec_and_clip_configs(
        cls,
        codec_config: PreTrainedConfig | None,
        clip_config: CLIPVisionConfig,
        *,
        projection_dim: int,
        scenario: str = "d1",
        quality: int | None = None,
        **vision_options: Any,
    ) -> "ComNeckConfig":
        """The configuration of a codec and a CLIP tower with a neck between them.

        Args:
            codec_config: Of the codec; `None` for a model that takes latents only.
            clip_config: Of CLIP's vision tower.
            projection_dim: Width of CLIP's embeddings.
            scenario: `"d1"`, `"d2"` or `"d3"`.
            quality: Operating point, 1 to 4; the codec's by default, where it is one of these.
            vision_options: Fields of [`ComNeckVisionConfig`], such as `num_skipped_layers` or `keep_clip_stem`.

        Raises:
            ValueError: If an option is not a field of `ComNeckVisionConfig`.
        """
        unknown = set(vision_options) - {option.name for option in fields(ComNeckVisionConfig)}
        if unknown:
            raise ValueError(f"{sorted(unknown)} are no fields of `ComNeckVisionConfig`; check their spelling.")
        tower = {option.name: getattr(clip_config, option.name) for option in fields(clip_config)}
        tower.update(projection_dim=projection_dim, architectures=None, dtype=None)
        if codec_config is not None:
            codec_config = copy.deepcopy(codec_config)
            codec_config._name_or_path = ""  # the folder where it lay is of no use to others
            tower["latent_channels"] = codec_config.latent_channels
            codec_quality = getattr(codec_config, "quality", None)
            quality = codec_quality if quality is None and codec_quality in QUALITIES else quality
        vision_config = ComNeckVisionConfig(**{**tower, **vision_options})
        return cls(codec_config=codec_config, vision_config=vision_config, scenario=scenario, quality=quality)

    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        if self.projection_dim is None:
            self.projection_dim = self.vision_config.projection_dim

    def validate_operating_point(self) -> None:
        """Refuses scenarios and rates that the paper does not know."""
        if self.scenario not in SCENARIOS:
            raise ValueError(f"`scenario` must be one of {SCENARIOS}, got {self.scenario!r}.")
        if self.quality is not None and self.quality not in QUALITIES:
            raise ValueError(f"`quality` must be one of {QUALITIES} or `None`, got {self.quality}.")

    def validate_parts(self) -> None:
        """Refuses a codec and a neck that disagree about the latents."""
        if not isinstance(self.vision_config, ComNeckVisionConfig):
            raise ValueError(
                f"`vision_config` must be a `ComNeckVisionConfig` or its dictionary, got "
                f"{type(self.vision_config).__name__}. `ComNeckModel.from_codec_and_clip` builds one from a CLIP."
            )
        if self.codec_config is not None and self.codec_config.latent_channels != self.vision_config.latent_channels:
            raise ValueError(
                f"The codec has {self.codec_config.latent_channels} latent channels, but `vision_config` expects "
                f"{self.vision_config.latent_channels}. Set both to the same number."
            )

    @property
    def hidden_size(self) -> int:
        """Width of the tower's tokens."""
        return self.vision_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """CLIP layers of the tower, skipped ones included."""
        return self.vision_config.num_hidden_layers

    @property
    def patch_size(self) -> int:
        """Pixels of the codec's input per token along each side."""
        return DOWNSAMPLING_FACTOR if self.codec_config is None else self.codec_config.downsampling_factor

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of the pictures the neck has positions for, in pixels; height and width where they differ."""
        height, width = (self.patch_size * side for side in self.vision_config.latent_grid)
        return height if height == width else (height, width)


__all__ = ["ComNeckConfig", "ComNeckVisionConfig"]
