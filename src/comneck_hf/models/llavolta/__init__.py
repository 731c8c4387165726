"""LLaVolta: visual tokens are pooled inside the language model."""

from .configuration_llavolta import LlavoltaConfig, LlavoltaNextConfig, LlavoltaTextConfig
from .language_llavolta import LlavoltaTextModel
from .modeling_llavolta import (
    LlavoltaForConditionalGeneration,
    LlavoltaModel,
    LlavoltaNextForConditionalGeneration,
    LlavoltaNextModel,
    pool_visual_tokens,
)


__all__ = [
    "LlavoltaConfig",
    "LlavoltaForConditionalGeneration",
    "LlavoltaModel",
    "LlavoltaNextConfig",
    "LlavoltaNextForConditionalGeneration",
    "LlavoltaNextModel",
    "LlavoltaTextConfig",
    "LlavoltaTextModel",
    "pool_visual_tokens",
]
