"""comneck_hf: neural-codec latents instead of pixels for multimodal LLMs.

Importing the package registers its models with transformers' Auto classes:

    import comneck_hf
    from transformers import AutoModel

    model = AutoModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-d1-q2"))
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .coding.bitstream import BITSTREAM_VERSION, Bitstream, BitstreamError
    from .coding.gain_map import GainMap
    from .integrations.llava import ImageFeatures, attach_vision_tower, image_features, llava_next_processor
    from .models.comneck.configuration_comneck import ComNeckConfig, ComNeckVisionConfig
    from .models.comneck.image_processing_comneck import ComNeckImageProcessor
    from .models.comneck.image_processing_pil_comneck import ComNeckImageProcessorPil
    from .models.comneck.modeling_comneck import ComNeckModel, ComNeckModelOutput, ComNeckVisionModel
    from .models.comneck.neck_comneck import TransformNeck
    from .models.comneck.processing_comneck import ComNeckProcessor
    from .models.comneck.processing_comneck_next import ComNeckNextProcessor
    from .models.comneck.zero_shot_comneck import ComNeckForZeroShotConfig, ComNeckForZeroShotImageClassification
    from .models.compressai.configuration_compressai import CompressaiConfig
    from .models.compressai.modeling_compressai import CompressaiModel
    from .models.cotam.configuration_cotam import CotamConfig, CotamVisionConfig
    from .models.cotam.guide_cotam import ShallowAttentionGuide
    from .models.cotam.importance_cotam import padded_window, quantize_importance
    from .models.cotam.modeling_cotam import CotamModel, CotamVisionModel
    from .models.cotam.regions_cotam import gain_map_from_boxes, gain_map_from_picture
    from .models.elic.configuration_elic import ElicConfig
    from .models.elic.modeling_elic import ElicModel
    from .models.elic.restoration_elic import restore_entropy_networks
    from .models.llavolta.configuration_llavolta import LlavoltaConfig, LlavoltaNextConfig, LlavoltaTextConfig
    from .models.llavolta.language_llavolta import LlavoltaTextModel
    from .models.llavolta.modeling_llavolta import (
        LlavoltaForConditionalGeneration,
        LlavoltaModel,
        LlavoltaNextForConditionalGeneration,
        LlavoltaNextModel,
        pool_visual_tokens,
    )
    from .models.tic.configuration_tic import TicConfig
    from .models.tic.modeling_tic import TicModel

__version__ = "0.1.0"

_MODULES = {
    "BITSTREAM_VERSION": ".coding.bitstream",
    "Bitstream": ".coding.bitstream",
    "BitstreamError": ".coding.bitstream",
    "ComNeckConfig": ".models.comneck.configuration_comneck",
    "ComNeckForZeroShotConfig": ".models.comneck.zero_shot_comneck",
    "ComNeckForZeroShotImageClassification": ".models.comneck.zero_shot_comneck",
    "ComNeckImageProcessor": ".models.comneck.image_processing_comneck",
    "ComNeckImageProcessorPil": ".models.comneck.image_processing_pil_comneck",
    "ComNeckModel": ".models.comneck.modeling_comneck",
    "ComNeckModelOutput": ".models.comneck.modeling_comneck",
    "ComNeckNextProcessor": ".models.comneck.processing_comneck_next",
    "ComNeckProcessor": ".models.comneck.processing_comneck",
    "ComNeckVisionConfig": ".models.comneck.configuration_comneck",
    "ComNeckVisionModel": ".models.comneck.modeling_comneck",
    "CompressaiConfig": ".models.compressai.configuration_compressai",
    "CompressaiModel": ".models.compressai.modeling_compressai",
    "CotamConfig": ".models.cotam.configuration_cotam",
    "CotamModel": ".models.cotam.modeling_cotam",
    "CotamVisionConfig": ".models.cotam.configuration_cotam",
    "CotamVisionModel": ".models.cotam.modeling_cotam",
    "ElicConfig": ".models.elic.configuration_elic",
    "ElicModel": ".models.elic.modeling_elic",
    "GainMap": ".coding.gain_map",
    "ImageFeatures": ".integrations.llava",
    "LlavoltaConfig": ".models.llavolta.configuration_llavolta",
    "LlavoltaForConditionalGeneration": ".models.llavolta.modeling_llavolta",
    "LlavoltaModel": ".models.llavolta.modeling_llavolta",
    "LlavoltaNextConfig": ".models.llavolta.configuration_llavolta",
    "LlavoltaNextForConditionalGeneration": ".models.llavolta.modeling_llavolta",
    "LlavoltaNextModel": ".models.llavolta.modeling_llavolta",
    "LlavoltaTextConfig": ".models.llavolta.configuration_llavolta",
    "LlavoltaTextModel": ".models.llavolta.language_llavolta",
    "ShallowAttentionGuide": ".models.cotam.guide_cotam",
    "TicConfig": ".models.tic.configuration_tic",
    "TicModel": ".models.tic.modeling_tic",
    "TransformNeck": ".models.comneck.neck_comneck",
    "attach_vision_tower": ".integrations.llava",
    "gain_map_from_boxes": ".models.cotam.regions_cotam",
    "gain_map_from_picture": ".models.cotam.regions_cotam",
    "image_features": ".integrations.llava",
    "llava_next_processor": ".integrations.llava",
    "padded_window": ".models.cotam.importance_cotam",
    "pool_visual_tokens": ".models.llavolta.modeling_llavolta",
    "quantize_importance": ".models.cotam.importance_cotam",
    "restore_entropy_networks": ".models.elic.restoration_elic",
}


def pretrained(name: str) -> str:
    """Absolute path of a model folder inside the package, for `from_pretrained`.

    Args:
        name: Such as `"comneck-tiny-d1-q2"`.

    Raises:
        ValueError: If the package holds no such folder; the message lists those it holds.
    """
    root = Path(__file__).resolve().parent / "pretrained"
    names = sorted(path.parent.name for path in root.glob("*/config.json"))
    if name not in names:
        raise ValueError(f"No packaged model is called {name!r}. Available: {', '.join(names) or 'none'}.")
    return str(root / name)


def _runs_as_console_script() -> bool:
    script = Path(sys.argv[0]) if sys.argv else Path()
    return script.stem == "comneck" and script.resolve().parent == Path(sys.executable).parent.resolve()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _MODULES[name].startswith((".models", ".integrations")):
        import_module(".auto", __name__)
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "BITSTREAM_VERSION",
    "Bitstream",
    "BitstreamError",
    "ComNeckConfig",
    "ComNeckForZeroShotConfig",
    "ComNeckForZeroShotImageClassification",
    "ComNeckImageProcessor",
    "ComNeckImageProcessorPil",
    "ComNeckModel",
    "ComNeckModelOutput",
    "ComNeckNextProcessor",
    "ComNeckProcessor",
    "ComNeckVisionConfig",
    "ComNeckVisionModel",
    "CompressaiConfig",
    "CompressaiModel",
    "CotamConfig",
    "CotamModel",
    "CotamVisionConfig",
    "CotamVisionModel",
    "ElicConfig",
    "ElicModel",
    "GainMap",
    "ImageFeatures",
    "LlavoltaConfig",
    "LlavoltaForConditionalGeneration",
    "LlavoltaModel",
    "LlavoltaNextConfig",
    "LlavoltaNextForConditionalGeneration",
    "LlavoltaNextModel",
    "LlavoltaTextConfig",
    "LlavoltaTextModel",
    "ShallowAttentionGuide",
    "TicConfig",
    "TicModel",
    "TransformNeck",
    "__version__",
    "attach_vision_tower",
    "gain_map_from_boxes",
    "gain_map_from_picture",
    "image_features",
    "llava_next_processor",
    "padded_window",
    "pool_visual_tokens",
    "pretrained",
    "quantize_importance",
    "restore_entropy_networks",
]

# `comneck --help` must answer within a second, and torch alone takes longer to import: the commands that need models
# register them then (any of the lazy names above does, and so does `import comneck_hf.auto`).
if not _runs_as_console_script():
    import_module(".auto", __name__)
