"""What the configurations of all models share that join a codec with a CLIP vision tower."""

import copy
from dataclasses import field, fields
from typing import Any, Self

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, PreTrainedConfig

from .hub_code import HubCode


QUALITIES = (1, 2, 3, 4)
DOWNSAMPLING_FACTOR = 16  # pixels per latent position along each side, for every codec of this package


@strict
class LatentVisionConfig(HubCode, CLIPVisionConfig):
    r"""Configuration of a CLIP vision tower that reads codec latents.

    The defaults are those of ELIC latents and CLIP ViT-L/14. All fields of `CLIPVisionConfig` keep their meaning;
    `image_size` and `patch_size` describe CLIP's own pixel path.

    latent_channels (`int`, *optional*, defaults to 320):
        Channels of the codec latents `y_hat`.
    latent_size (`int` or `list[int]`, *optional*):
        Height and width of the latent grid that there are positions for. CLIP's patch grid by default
        (`image_size // patch_size`), so that LLaVA counts the same tokens for latents and for pixels.
    post_layernorm_repeats (`int`, *optional*, defaults to 1):
        How often CLIP's final layer norm is applied to the pooled class token. 1 is CLIP; 2 reproduces the features
        of the authors' released code.
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    projection_dim: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    patch_size: int | list[int] | tuple[int, int] | None = 14

    latent_channels: int = 320
    latent_size: int | list[int] | tuple[int, int] | None = None
    post_layernorm_repeats: int = 1

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
        if self.post_layernorm_repeats < 1:
            raise ValueError(f"`post_layernorm_repeats` must be at least 1, got {self.post_layernorm_repeats}.")

    @property
    def latent_grid(self) -> tuple[int, int]:
        """Height and width of the latent grid that there are positions for."""
        if self.latent_size is None:
            return (self.image_size // self.patch_size,) * 2
        if isinstance(self.latent_size, int):
            return (self.latent_size, self.latent_size)
        return (self.latent_size[0], self.latent_size[1])

    @property
    def reads_pictures(self) -> bool:
        """Whether the tower sees decoded pictures beside the latents; a [`TransformNeck`] then starts at zero."""
        return False


@strict
class CodecVisionConfig(HubCode, PreTrainedConfig):
    r"""Configuration of a codec and of the CLIP vision tower that reads its latents.

    It also serves as `vision_config` of LLaVA: `hidden_size`, `num_hidden_layers`, `image_size` and `patch_size` are
    there as read-only properties, in pixels of the codec's input.

    codec_config (`dict` or `PreTrainedConfig`, *optional*, defaults to ELIC):
        Configuration of the codec, resolved by its `model_type` through `AutoConfig`. `None` builds a model without
        codec, which takes latents only.
    vision_config (`dict` or `LatentVisionConfig`, *optional*):
        Configuration of what reads the latents, and of the tower.
    quality (`int`, *optional*):
        Operating point, 1 (smallest files) to 4.
    projection_dim (`int`, *optional*):
        Width of `image_embeds`. `vision_config.projection_dim` by default.
    """

    codec_config: dict | PreTrainedConfig | None = field(default_factory=dict)
    vision_config: dict | PreTrainedConfig | None = None
    quality: int | None = None
    projection_dim: int | None = None

    @classmethod
    def from_codec_and_clip_configs(
        cls,
        codec_config: PreTrainedConfig | None,
        clip_config: CLIPVisionConfig,
        *,
        projection_dim: int,
        quality: int | None = None,
        **options: Any,
    ) -> Self:
        """The configuration of a codec and a CLIP tower, with what is between them.

        Args:
            codec_config: Of the codec; `None` for a model that takes latents only.
            clip_config: Of CLIP's vision tower.
            projection_dim: Width of CLIP's embeddings.
            quality: Operating point, 1 to 4; the codec's by default, where it is one of these.
            options: Other fields of this class, and of the class of its `vision_config`.

        Raises:
            ValueError: If an option is a field of neither.
        """
        vision_class = cls.sub_configs["vision_config"]
        own_names = {option.name for option in fields(cls)} - {option.name for option in fields(CodecVisionConfig)}
        own = {name: options.pop(name) for name in sorted(own_names & set(options))}
        unknown = set(options) - {option.name for option in fields(vision_class)}
        if unknown:
            raise ValueError(f"{sorted(unknown)} are no fields of `{vision_class.__name__}`; check their spelling.")
        tower = {option.name: getattr(clip_config, option.name) for option in fields(clip_config)}
        tower.update(projection_dim=projection_dim, architectures=None, dtype=None)
        if codec_config is not None:
            codec_config = copy.deepcopy(codec_config)
            codec_config._name_or_path = ""  # the folder where it lay is of no use to others
            tower["latent_channels"] = codec_config.latent_channels
            codec_quality = getattr(codec_config, "quality", None)
            quality = codec_quality if quality is None and codec_quality in QUALITIES else quality
        vision_config = vision_class(**{**tower, **options})
        return cls(codec_config=codec_config, vision_config=vision_config, quality=quality, **own)

    def __post_init__(self, **kwargs) -> None:
        super().__post_init__(**kwargs)
        if self.projection_dim is None:
            self.projection_dim = self.vision_config.projection_dim

    def validate_quality(self) -> None:
        """Refuses rates that the papers do not know."""
        if self.quality is not None and self.quality not in QUALITIES:
            raise ValueError(f"`quality` must be one of {QUALITIES} or `None`, got {self.quality}.")

    def validate_parts(self) -> None:
        """Refuses a codec and a tower that disagree about the latents."""
        vision_class = self.sub_configs["vision_config"]
        if not isinstance(self.vision_config, vision_class):
            raise ValueError(
                f"`vision_config` must be a `{vision_class.__name__}` or its dictionary, got "
                f"{type(self.vision_config).__name__}. `from_codec_and_clip` of the model builds one from a CLIP."
            )
        if self.codec_config is not None and self.codec_config.latent_channels != self.vision_config.latent_channels:
            raise ValueError(
                f"The codec has {self.codec_config.latent_channels} latent channels, but `vision_config` expects "
                f"{self.vision_config.latent_channels}. Set both to the same number."
            )

    @property
    def curve(self) -> str:
        """What its points are called in figures."""
        return self.model_type

    @property
    def shows_pictures(self) -> bool:
        """Whether there is a decoder whose pictures people can look at."""
        return self.codec_config is not None and self.codec_config.build_synthesis

    @property
    def hidden_size(self) -> int:
        """Width of the tower's tokens."""
        return self.vision_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """CLIP layers of the tower, those included that latents skip."""
        return self.vision_config.num_hidden_layers

    @property
    def patch_size(self) -> int:
        """Pixels of the codec's input per token along each side."""
        return DOWNSAMPLING_FACTOR if self.codec_config is None else self.codec_config.downsampling_factor

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of the pictures that there are positions for, in pixels; height and width where they differ."""
        height, width = (self.patch_size * side for side in self.vision_config.latent_grid)
        return height if height == width else (height, width)


__all__ = ["DOWNSAMPLING_FACTOR", "QUALITIES", "CodecVisionConfig", "LatentVisionConfig"]
