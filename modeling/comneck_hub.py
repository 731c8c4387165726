"""Lets `trust_remote_code=True` find the classes of comneck_hf: pip install comneck_hf"""

from comneck_hf import (
    ComNeckConfig,
    ComNeckImageProcessor,
    ComNeckImageProcessorPil,
    ComNeckModel,
    ComNeckVisionConfig,
    ComNeckVisionModel,
    ElicConfig,
    ElicModel,
)


__all__ = [
    "ComNeckConfig",
    "ComNeckImageProcessor",
    "ComNeckImageProcessorPil",
    "ComNeckModel",
    "ComNeckVisionConfig",
    "ComNeckVisionModel",
    "ElicConfig",
    "ElicModel",
]
