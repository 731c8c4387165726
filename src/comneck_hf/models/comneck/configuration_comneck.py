"""ComNeck configurations."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from ..codec_vision_config import DOWNSAMPLING_FACTOR, QUALITIES, CodecVisionConfig, LatentVisionConfig


SCENARIOS = ("d1", "d2", "d3")


@strict
class ComNeckVisionConfig(LatentVisionConfig):
    r"""Configuration of [`ComNeckVisionModel`]: transform-neck and CLIP vision tower.

    The defaults are the paper's. Besides the fields of [`LatentVisionConfig`]:

    num_skipped_layers (`int`, *optional*, defaults to 2):
        How many leading CLIP layers the neck replaces. 2 means that the neck feeds the third layer.
    keep_clip_stem (`bool`, *optional*, defaults to `False`):
        Whether patch embedding and the skipped layers exist, so that pictures can take CLIP's ordinary path.
    neck_num_attention_heads (`int`, *optional*):
        Attention heads of the neck. As many as the tower by default.
    neck_intermediate_size (`int`, *optional*):
        MLP width of the neck. The tower's by default.
    """

    model_type = "comneck_vision"
    base_config_key = "vision_config"

    num_skipped_layers: int = 2
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


@strict
class ComNeckConfig(CodecVisionConfig):
    r"""Configuration of [`ComNeckModel`]: codec, transform-neck and CLIP vision tower.

    Besides the fields of [`CodecVisionConfig`]:

    scenario (`str`, *optional*, defaults to `"d1"`):
        Who the codec was trained for: `"d1"` people, codec frozen; `"d2"` people and machines; `"d3"` machines only.
    """

    model_type = "comneck"
    sub_configs_defaults = {
        "codec_config": SubConfigSpec(config_class=AutoConfig, model_type="elic", optional=True),
        "vision_config": ComNeckVisionConfig,
    }

    scenario: str = "d1"

    def validate_scenario(self) -> None:
        """Refuses scenarios that the paper does not know."""
        if self.scenario not in SCENARIOS:
            raise ValueError(f"`scenario` must be one of {SCENARIOS}, got {self.scenario!r}.")

    @property
    def curve(self) -> str:
        """The scenario."""
        return self.scenario

    @property
    def shows_pictures(self) -> bool:
        """Whether there is a decoder, and it was trained for people."""
        return self.scenario != "d3" and super().shows_pictures


__all__ = ["DOWNSAMPLING_FACTOR", "QUALITIES", "SCENARIOS", "ComNeckConfig", "ComNeckVisionConfig"]
