"""ComNeck: codec, transform-neck and the remaining CLIP layers."""

from .configuration_comneck import ComNeckConfig, ComNeckVisionConfig
from .image_processing_comneck import ComNeckImageProcessor
from .image_processing_pil_comneck import ComNeckImageProcessorPil
from .modeling_comneck import ComNeckModel, ComNeckModelOutput, ComNeckVisionModel
from .neck_comneck import TransformNeck


__all__ = [
    "ComNeckConfig",
    "ComNeckImageProcessor",
    "ComNeckImageProcessorPil",
    "ComNeckModel",
    "ComNeckModelOutput",
    "ComNeckVisionConfig",
    "ComNeckVisionModel",
    "TransformNeck",
]
