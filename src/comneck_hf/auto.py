"""Registration with transformers' Auto classes, and the names under which checkpoints keep CLIP's weights.

The only file of the package that touches semi-private API of transformers.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    PreTrainedModel,
    conversion_mapping,
)
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from .models.comneck.configuration_comneck import ComNeckConfig, ComNeckVisionConfig
from .models.comneck.image_processing_comneck import ComNeckImageProcessor
from .models.comneck.image_processing_pil_comneck import ComNeckImageProcessorPil
from .models.comneck.modeling_comneck import ComNeckModel, ComNeckVisionModel
from .models.comneck.processing_comneck import ComNeckProcessor
from .models.comneck.processing_comneck_next import ComNeckNextProcessor
from .models.comneck.zero_shot_comneck import ComNeckForZeroShotConfig, ComNeckForZeroShotImageClassification
from .models.compressai.configuration_compressai import CompressaiConfig
from .models.compressai.modeling_compressai import CompressaiModel
from .models.cotam.configuration_cotam import CotamConfig, CotamVisionConfig
from .models.cotam.modeling_cotam import CotamModel, CotamVisionModel
from .models.elic.configuration_elic import ElicConfig
from .models.elic.modeling_elic import ElicModel
from .models.llavolta.configuration_llavolta import LlavoltaConfig, LlavoltaNextConfig, LlavoltaTextConfig
from .models.llavolta.language_llavolta import LlavoltaTextModel
from .models.llavolta.modeling_llavolta import (
    LlavoltaForConditionalGeneration,
    LlavoltaModel,
    LlavoltaNextForConditionalGeneration,
    LlavoltaNextModel,
)
from .models.tic.configuration_tic import TicConfig
from .models.tic.modeling_tic import TicModel


MODELS = {
    ElicConfig: ElicModel,
    CompressaiConfig: CompressaiModel,
    TicConfig: TicModel,
    ComNeckVisionConfig: ComNeckVisionModel,
    ComNeckConfig: ComNeckModel,
    ComNeckForZeroShotConfig: ComNeckForZeroShotImageClassification,
    CotamVisionConfig: CotamVisionModel,
    CotamConfig: CotamModel,
}
LLAVOLTA_MODELS = {
    LlavoltaConfig: (LlavoltaModel, LlavoltaForConditionalGeneration),
    LlavoltaNextConfig: (LlavoltaNextModel, LlavoltaNextForConditionalGeneration),
}
# Our class, and the class or model type of transformers whose weights it takes.
CONVERSIONS = {
    ComNeckVisionModel.__name__: "CLIPVisionModel",
    CotamVisionModel.__name__: "CLIPVisionModel",
    LlavoltaModel.__name__: "LlavaModel",
    LlavoltaForConditionalGeneration.__name__: "llava",
    LlavoltaNextModel.__name__: "LlavaNextModel",
    LlavoltaNextForConditionalGeneration.__name__: "llava_next",
}


def register() -> None:
    """Makes the models known to the Auto classes. Harmless when repeated."""
    processors = {"torchvision": ComNeckImageProcessor, "pil": ComNeckImageProcessorPil}
    for config_class, model_class in MODELS.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(
        ComNeckForZeroShotConfig, ComNeckForZeroShotImageClassification, exist_ok=True
    )
    AutoConfig.register(LlavoltaTextConfig.model_type, LlavoltaTextConfig, exist_ok=True)
    AutoModel.register(LlavoltaTextConfig, LlavoltaTextModel, exist_ok=True)
    for config_class, (base_class, model_class) in LLAVOLTA_MODELS.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, base_class, exist_ok=True)
        AutoModelForImageTextToText.register(config_class, model_class, exist_ok=True)
    # By this the classes are found by their names, in folders of native LLaVA models too.
    AutoProcessor.register(LlavoltaConfig, ComNeckProcessor, exist_ok=True)
    AutoProcessor.register(LlavoltaNextConfig, ComNeckNextProcessor, exist_ok=True)
    for name, original in CONVERSIONS.items():
        _register_conversions(name, original)
    for model_class in (LlavoltaTextModel, *(model for models in LLAVOLTA_MODELS.values() for model in models)):
        # Filled in `__init__`, which models that become one of these by `pool_visual_tokens` do not run.
        _CAN_RECORD_REGISTRY.setdefault(str(model_class), model_class._can_record_outputs)


def _register_conversions(name: str, original: str) -> None:
    """Lets our class `name` load the same files as the class or model type `original` of transformers.

    transformers 4 and all Hub files of CLIP and LLaVA say `vision_model.encoder...`, transformers 5 `encoder...`.
    transformers renames by class name and does not look at base classes.
    """
    if conversion_mapping._checkpoint_conversion_mapping_cache is None:
        # The table of all models takes 0.3 s to build, and transformers builds it with the first model it loads.
        conversion_mapping._MODEL_TO_CONVERSION_PATTERN[name] = original
        conversion_mapping.USER_REGISTERED_MAPPINGS.add(name)
    else:
        conversions = conversion_mapping.get_checkpoint_conversion_mapping(original)
        conversion_mapping.register_checkpoint_conversion_mapping(name, conversions, overwrite=True)


def forget_weight_conversions(model: PreTrainedModel) -> None:
    """Saves a model under the names of its present parts, not of those that it was loaded with."""
    model._weight_conversions = None


register()


__all__ = ["CONVERSIONS", "LLAVOLTA_MODELS", "MODELS", "forget_weight_conversions", "register"]
