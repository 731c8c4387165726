"""ComNeck: codec, transform-neck and the remaining CLIP layers."""

from .configuration_comneck import ComNeckConfig, ComNeckVisionConfig
from .image_processing_comneck import ComNeckImageProcessor
from .image_processing_pil_comneck import ComNeckImageProcessorPil
from .modeling_comneck import ComNeckModel, ComNeckModelOutput, ComNeckVisionModel
from .neck_comneck import TransformNeck
from .processing_comneck import ComNeckProcessor
from .processing_comneck_next import ComNeckNextProcessor
from .zero_shot_comneck import ComNeckForZeroShotConfig, ComNeckForZeroShotImageClassification


__all__ = [
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
    "TransformNeck",
]
