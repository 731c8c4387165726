"""Image processor of ComNeck and of its codecs, torchvision backend."""

import torch
from torch.nn import functional as F
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from ..hub_code import HubCode


class ComNeckImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    size_divisor (`int`, *optional*, defaults to 64):
        With `do_pad`, both sides become multiples of this by repeating the last row and column.
    """

    size_divisor: int


class ComNeckImageProcessor(HubCode, TorchvisionBackend):
    """Pictures for a codec: short side to 256, centre crop to 256x256, RGB values in [0, 1]; not normalized.

    Bicubic with antialiasing, as the paper's captioning evaluation; its training and few-shot code resizes bilinearly
    (`resample=PIL.Image.Resampling.BILINEAR`). Published rate-distortion numbers use the PIL backend
    ([`ComNeckImageProcessorPil`]): this one differs from it by up to 1/255 after resizing.

    `do_resize=False, do_center_crop=False` keeps whole pictures. The codec pads those by itself and restores their
    size; `do_pad=True` pads here instead, to multiples of `size_divisor`.
    """

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

    @classmethod
    def for_size(cls, size: int | tuple[int, int]) -> "ComNeckImageProcessor":
        """Crops to `size`: the side, or height and width, in pixels; a model's is `config.image_size`."""
        height, width = (size, size) if isinstance(size, int) else size
        return cls(size={"shortest_edge": max(height, width)}, crop_size={"height": height, "width": width})

    def _preprocess(
        self,
        images: list[torch.Tensor],
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


def _pad_to_multiple(image: torch.Tensor, divisor: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    padding = (0, -width % divisor, 0, -height % divisor)
    return F.pad(image[None], padding, mode="replicate")[0] if any(padding) else image


__all__ = ["ComNeckImageProcessor", "ComNeckImageProcessorKwargs"]
