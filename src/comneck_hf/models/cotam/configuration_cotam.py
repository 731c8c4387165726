"""CoTAM configurations."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from ...coding.gain_map import GainMap
from ..codec_vision_config import CodecVisionConfig, LatentVisionConfig


GUIDE_SOURCES = ("cls", "mean_query")


@strict
class CotamVisionConfig(LatentVisionConfig):
    r"""Configuration of [`CotamVisionModel`]: CLIP vision tower with an adapter beside the decoded picture.

    Besides the fields of [`LatentVisionConfig`]:

    use_reconstruction_prior (`bool`, *optional*, defaults to `True`):
        Whether the tokens of the decoded picture are what the adapter's tokens are added to. Without, the adapter's
        are alone (the paper's ablation).
    use_adapter (`bool`, *optional*, defaults to `True`):
        Whether there is an adapter. Without, the tower sees the decoded picture as CLIP would.
    adapter_num_attention_heads (`int`, *optional*):
        Attention heads of the adapter. As many as the tower by default.
    adapter_intermediate_size (`int`, *optional*):
        MLP width of the adapter. The tower's by default.
    """

    model_type = "cotam_vision"
    base_config_key = "vision_config"
    # The adapter is a `TransformNeck`, which reads these names.
    attribute_map = {
        "neck_num_attention_heads": "adapter_num_attention_heads",
        "neck_intermediate_size": "adapter_intermediate_size",
    }

    use_reconstruction_prior: bool = True
    use_adapter: bool = True
    adapter_num_attention_heads: int | None = None
    adapter_intermediate_size: int | None = None

    def validate_adapter(self) -> None:
        """Refuses a tower that sees nothing, and widths that the adapter cannot be built with."""
        if not self.use_adapter and not self.use_reconstruction_prior:
            raise ValueError("Without adapter and reconstruction prior the tower sees nothing; leave one of them on.")
        heads = self.adapter_num_attention_heads or self.num_attention_heads
        if heads < 1 or self.hidden_size % heads:
            raise ValueError(
                f"`adapter_num_attention_heads` must divide `hidden_size` {self.hidden_size}, got {heads}. "
                "Leave it `None` to use the tower's."
            )
        if self.adapter_intermediate_size is not None and self.adapter_intermediate_size < 1:
            raise ValueError(f"`adapter_intermediate_size` must be positive, got {self.adapter_intermediate_size}.")

    def validate_grids(self) -> None:
        """Refuses latents that have another grid than the patches they are added to."""
        if not isinstance(self.image_size, int) or not isinstance(self.patch_size, int):
            raise ValueError(
                f"`image_size` and `patch_size` must be integers, got {self.image_size} and {self.patch_size}."
            )
        patches = (self.image_size // self.patch_size,) * 2
        if self.use_reconstruction_prior and self.latent_grid != patches:
            raise ValueError(
                f"The latents have a grid of {list(self.latent_grid)} and CLIP's patches one of {list(patches)}, but "
                "their tokens are added. Leave `latent_size` `None`."
            )

    @property
    def reads_pictures(self) -> bool:
        """With the reconstruction prior."""
        return self.use_reconstruction_prior

    @property
    def num_skipped_layers(self) -> int:
        """None: latents pass through all layers of CLIP."""
        return 0


@strict
class CotamConfig(CodecVisionConfig):
    r"""Configuration of [`CotamModel`]: codec, guide, adapter and CLIP vision tower.

    Besides the fields of [`CodecVisionConfig`]:

    use_guide (`bool`, *optional*, defaults to `True`):
        Whether CLIP's shallow attention decides where the bits of a picture go, unless `gain_maps` say so.
    guide_layers (`list[int]`, *optional*, defaults to `[0, 1, 2]`):
        CLIP layers whose attention is averaged, counted from 0.
    guide_source (`str`, *optional*, defaults to `"cls"`):
        Whose attention: the class token's, or with `"mean_query"` the mean of the patches'.
    guide_grid (`list[int]`, *optional*, defaults to `[8, 8]`):
        Rows and columns of the gain map of a picture, as far as CLIP has so many patches.
    guide_threshold (`float`, *optional*, defaults to 0.75):
        How many standard deviations from the mean a cell of the importance map has to be for another gain.
    guide_levels (`int`, *optional*, defaults to 3):
        Gain levels of a map, as in [`GainMap`].
    gain_step (`int`, *optional*, defaults to 2):
        Quarter octaves of the quantizer's gain per level, as in [`GainMap`].
    """

    model_type = "cotam"
    sub_configs_defaults = {
        "codec_config": SubConfigSpec(config_class=AutoConfig, model_type="elic", optional=True),
        "vision_config": CotamVisionConfig,
    }

    use_guide: bool = True
    guide_layers: list[int] | tuple[int, ...] = field(default_factory=lambda: [0, 1, 2])
    guide_source: str = "cls"
    guide_grid: list[int] | tuple[int, ...] = field(default_factory=lambda: [8, 8])
    guide_threshold: float | int = 0.75
    guide_levels: int = 3
    gain_step: int = 2

    def validate_guide(self) -> None:
        """Refuses layers that CLIP does not have, maps that no bitstream holds, and codecs that follow none."""
        if self.use_guide and self.codec_config is not None and not self.codec_config.has_gains:
            raise ValueError(
                f"A {self.codec_config.model_type!r} codec has no gains that a guide could set. Set "
                "`use_guide=False`, or take an ELIC or TIC."
            )
        layers = self.vision_config.num_hidden_layers
        if not self.guide_layers or not all(0 <= layer < layers for layer in self.guide_layers):
            raise ValueError(f"`guide_layers` must be some of 0 to {layers - 1}, got {list(self.guide_layers)}.")
        if self.guide_source not in GUIDE_SOURCES:
            raise ValueError(f"`guide_source` must be one of {GUIDE_SOURCES}, got {self.guide_source!r}.")
        if len(self.guide_grid) != 2 or min(self.guide_grid) < 1:
            raise ValueError(f"`guide_grid` must be [rows, columns], got {list(self.guide_grid)}.")
        if not self.guide_threshold > 0:
            raise ValueError(f"`guide_threshold` must be above 0, got {self.guide_threshold}.")
        rows, columns = self.guide_grid
        GainMap(((0,) * columns,) * rows, step=self.gain_step, levels=self.guide_levels)

    def validate_decoder(self) -> None:
        """Refuses a codec without decoder where decoded pictures are needed."""
        needed = self.vision_config.reads_pictures and self.codec_config is not None
        if needed and not self.codec_config.build_synthesis:
            raise ValueError("The tower reads decoded pictures, but the codec has `build_synthesis=False`. Set it.")


__all__ = ["GUIDE_SOURCES", "CotamConfig", "CotamVisionConfig"]
