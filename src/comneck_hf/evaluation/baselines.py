"""JPEG at the same quality or at the same size: the baseline of every comparison.

Pillow's encoder (libjpeg-turbo), baseline mode, with the options of `JPEG_OPTIONS`; whole files are counted, as they
are for our bitstreams. PSNR is taken on 8-bit RGB values.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from .metrics import picture_psnr


__all__ = ["JPEG_OPTIONS", "MAX_QUALITY", "MIN_QUALITY", "JpegPicture", "encode_jpeg", "jpeg_at_bytes", "jpeg_at_psnr"]

JPEG_OPTIONS = {"subsampling": "4:2:0", "optimize": True, "progressive": False}
MIN_QUALITY, MAX_QUALITY = 1, 95


@dataclass(frozen=True)
class JpegPicture:
    """One picture as JPEG.

    Attributes:
        data: The JPEG file.
        quality: Pillow's quality, 1 to 95.
        psnr: Against the original, in dB.
        image: The decoded picture, RGB.
    """

    data: bytes
    quality: int
    psnr: float
    image: Image.Image


def encode_jpeg(image: Image.Image, *, quality: int) -> JpegPicture:
    """Codes a picture as JPEG and decodes it again.

    Args:
        image: RGB picture.
        quality: 1 to 95.

    Raises:
        ValueError: If the picture is not RGB or the quality out of range.
    """
    if image.mode != "RGB":
        raise ValueError(f"`image` must be RGB, got mode {image.mode!r}. Convert it with `image.convert('RGB')`.")
    if not MIN_QUALITY <= quality <= MAX_QUALITY:
        raise ValueError(f"`quality` must be in [{MIN_QUALITY}, {MAX_QUALITY}], got {quality}.")
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, **JPEG_OPTIONS)
    decoded = Image.open(buffer).convert("RGB")
    distortion = picture_psnr(decoded, image)
    return JpegPicture(data=buffer.getvalue(), quality=quality, psnr=distortion, image=decoded)


def jpeg_at_psnr(image: Image.Image, min_psnr: float) -> JpegPicture:
    """The JPEG of lowest quality that reaches a PSNR, by bisection over the quality.

    Args:
        image: RGB picture.
        min_psnr: In dB.

    Returns:
        A picture with at least `min_psnr`; quality 95 where no quality reaches it, so compare `psnr`.
    """
    return _bisect(image, lambda picture: picture.psnr >= min_psnr)


def jpeg_at_bytes(image: Image.Image, max_bytes: int) -> JpegPicture:
    """The JPEG of highest quality that fits a number of bytes, by bisection over the quality.

    Args:
        image: RGB picture.
        max_bytes: Size of the whole file.

    Returns:
        A picture of at most `max_bytes`; quality 1 where even that is larger, so compare `len(data)`.
    """
    first_too_large = _bisect(image, lambda picture: len(picture.data) > max_bytes)
    if len(first_too_large.data) <= max_bytes or first_too_large.quality == MIN_QUALITY:
        return first_too_large
    return encode_jpeg(image, quality=first_too_large.quality - 1)


def _bisect(image: Image.Image, is_enough: Callable[[JpegPicture], bool]) -> JpegPicture:
    """The lowest quality that is enough, or the highest quality if none is."""
    low, high = MIN_QUALITY, MAX_QUALITY
    chosen = encode_jpeg(image, quality=high)
    while low < high:
        picture = encode_jpeg(image, quality=(low + high) // 2)
        if is_enough(picture):
            chosen, high = picture, picture.quality
        else:
            low = picture.quality + 1
    return chosen
