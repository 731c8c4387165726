"""Image processor of ComNeck and of its codecs, PIL backend: the reference for published numbers."""

import numpy as np
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import Unpack
from transformers.utils import TensorType

from ..hub_code import HubCode
from .image_processing_comneck import ComNeckImageProcessorKwargs


class ComNeckImageProcessorPil(HubCode, PilBackend):
    """[`ComNeckImageProcessor`] on PIL and NumPy: same options, same saved file, resizing as Pillow does it."""

    valid_kwargs = ComNeckImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    size = {"shortest_edge": 256}
    default_to_square = False
    crop_size = {"height": 256, "width": 256}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    do_convert_rgb = True
    do_pad = False
    size_divisor = 64

    def __init__(self, **kwargs: Unpack[ComNeckImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)

    def _preprocess(
        self,
        images: list[np.ndarray],
        *,
        do_pad: bool,
        size_divisor: int,
        return_tensors: str | TensorType | None,
        **kwargs: object,
    ) -> BatchFeature:
        processed = super()._preprocess(images, do_pad=False, return_tensors=None, **kwargs)["pixel_values"]
        if do_pad:
            processed = [_pad_to_multiple(image, size_divisor) for image in processed]
        return BatchFeature(data={"pixel_values": processed}, tensor_type=return_tensors)


def _pad_to_multiple(image: np.ndarray, divisor: int) -> np.ndarray:
    height, width = image.shape[-2:]
    return np.pad(image, ((0, 0), (0, -height % divisor), (0, -width % divisor)), mode="edge")


__all__ = ["ComNeckImageProcessorPil"]
