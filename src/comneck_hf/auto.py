"""Registration with transformers' Auto classes, and the names under which checkpoints keep CLIP's weights.

The only file of the package that touches semi-private API of transformers.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, conversion_mapping

from .models.comneck.configuration_comneck import ComNeckConfig, ComNeckVisionConfig
from .models.comneck.image_processing_comneck import ComNeckImageProcessor
from .models.comneck.image_processing_pil_comneck import ComNeckImageProcessorPil
from .models.comneck.modeling_comneck import ComNeckModel, ComNeckVisionModel
from .models.elic.configuration_elic import ElicConfig
from .models.elic.modeling_elic import ElicModel


MODELS = {ElicConfig: ElicModel, ComNeckVisionConfig: ComNeckVisionModel, ComNeckConfig: ComNeckModel}


def register() -> None:
    """Makes ELIC and ComNeck known to `AutoConfig`, `AutoModel` and `AutoImageProcessor`. Harmless when repeated."""
    processors = {"torchvision": ComNeckImageProcessor, "pil": ComNeckImageProcessorPil}
    for config_class, model_class in MODELS.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)
    _register_conversions()


def _register_conversions() -> None:
    """Lets our tower load the same files as CLIP's, alone or inside LLaVA.

    transformers 4 and all Hub files of CLIP and LLaVA say `vision_model.encoder...`, transformers 5 `encoder...`.
    transformers renames by class name and does not look at base classes.
    """
    tower = ComNeckVisionModel.__name__
    if conversion_mapping._checkpoint_conversion_mapping_cache is None:
        # The table of all models takes 0.3 s to build, and transformers builds it with the first model it loads.
        conversion_mapping._MODEL_TO_CONVERSION_PATTERN[tower] = "CLIPVisionModel"
        conversion_mapping.USER_REGISTERED_MAPPINGS.add(tower)
    else:
        clip_conversions = conversion_mapping.get_checkpoint_conversion_mapping("CLIPVisionModel")
        conversion_mapping.register_checkpoint_conversion_mapping(tower, clip_conversions, overwrite=True)


register()


__all__ = ["MODELS", "register"]
