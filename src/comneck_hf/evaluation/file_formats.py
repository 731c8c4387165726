"""Pictures as files of the usual formats, at one quality or at the quality that meets a size or a PSNR.

Pillow's encoders with the options of `FILE_FORMATS`; whole files are counted, as they are for our bitstreams. PSNR is
taken on 8-bit RGB values.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import PIL
from PIL import Image, features

from .metrics import picture_psnr


@dataclass(frozen=True)
class FileFormat:
    """A format and how it is written.

    Attributes:
        name: Pillow's.
        options: Of its encoder, besides the quality.
        qualities: Lowest and highest quality.
        sweep: Qualities of a curve.
    """

    name: str
    options: Mapping[str, Any]
    qualities: tuple[int, int]
    sweep: tuple[int, ...]


FILE_FORMATS = {
    "jpeg": FileFormat(
        "JPEG", {"subsampling": "4:2:0", "optimize": True, "progressive": False}, (1, 95), (1, 5, 10, 20, 40)
    ),
    "webp": FileFormat("WEBP", {"method": 6}, (0, 100), (0, 5, 20, 40, 70)),
    "avif": FileFormat("AVIF", {"speed": 6, "subsampling": "4:2:0", "max_threads": 1}, (0, 100), (0, 10, 25, 40, 60)),
    "jxl": FileFormat(
        "JXL", {"effort": 7, "num_threads": 1}, (0, 99), (0, 5, 20, 40, 70)
    ),  # 100 would be lossless, another coder
}


@dataclass(frozen=True)
class CodedPicture:
    """One picture as a file.

    Attributes:
        data: The file.
        quality: Of its encoder.
        psnr: Against the original, in dB.
        image: The decoded picture, RGB.
    """

    data: bytes
    quality: int
    psnr: float
    image: Image.Image


def encode_file(image: Image.Image, *, quality: int, file_format: str = "jpeg") -> bytes:
    """A picture as a file.

    Args:
        image: RGB picture.
        quality: As in the format's `qualities`.
        file_format: `"jpeg"`, `"webp"`, `"avif"` or `"jxl"`.

    Raises:
        ValueError: If the picture is not RGB, the quality out of range, or the format unknown.
        ImportError: If this Pillow has no encoder for it.
    """
    chosen = find_format(file_format)
    if image.mode != "RGB":
        raise ValueError(f"`image` must be RGB, got mode {image.mode!r}. Convert it with `image.convert('RGB')`.")
    low, high = chosen.qualities
    if not low <= quality <= high:
        raise ValueError(f"`quality` of {file_format} must be in [{low}, {high}], got {quality}.")
    buffer = io.BytesIO()
    image.save(buffer, format=chosen.name, quality=quality, **chosen.options)
    return buffer.getvalue()


def decode_file(data: bytes) -> Image.Image:
    """The picture of a file, RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def encode_picture(image: Image.Image, *, quality: int, file_format: str = "jpeg") -> CodedPicture:
    """Codes a picture as a file and decodes it again; arguments and errors as of `encode_file`."""
    data = encode_file(image, quality=quality, file_format=file_format)
    decoded = decode_file(data)
    return CodedPicture(data=data, quality=quality, psnr=picture_psnr(decoded, image), image=decoded)


def encoder_version(file_format: str) -> str:
    """Version of what writes a format: Pillow's, and of JPEG XL its plugin's.

    Args:
        file_format: As in `encode_picture`.
    """
    return PIL.__version__ + (f" {version('pillow-jxl-plugin')}" if file_format == "jxl" else "")


def find_format(name: str) -> FileFormat:
    """The format of this name, with its encoder at hand.

    Raises:
        ValueError: If it is unknown.
        ImportError: If this Pillow has no encoder for it.
    """
    if name not in FILE_FORMATS:
        raise ValueError(f"`file_format` must be one of {sorted(FILE_FORMATS)}, got {name!r}.")
    if name == "jxl":
        try:
            import pillow_jxl  # noqa: F401  registers with Pillow
        except ImportError as error:
            raise ImportError('JPEG XL needs an extra: pip install "comneck_hf[eval]"') from error
    elif name != "jpeg" and not features.check(name):
        raise ImportError(f"This Pillow was built without {name.upper()}. Install one of PyPI: pip install -U pillow")
    return FILE_FORMATS[name]


def picture_at_psnr(image: Image.Image, min_psnr: float, *, file_format: str = "jpeg") -> CodedPicture:
    """The file of lowest quality that reaches a PSNR, by bisection over the quality.

    Args:
        image: RGB picture.
        min_psnr: In dB.
        file_format: As in `encode_picture`.

    Returns:
        A picture with at least `min_psnr`; the highest quality where none reaches it, so compare `psnr`.
    """
    low, high = find_format(file_format).qualities
    found = encode_picture(image, quality=high, file_format=file_format)
    while low < high:
        picture = encode_picture(image, quality=(low + high) // 2, file_format=file_format)
        if picture.psnr >= min_psnr:
            found, high = picture, picture.quality
        else:
            low = picture.quality + 1
    return found


def quality_at_bytes(image: Image.Image, max_bytes: int, *, file_format: str = "jpeg") -> int:
    """The highest quality whose file fits a number of bytes, by bisection; the lowest where none does.

    Args:
        image: RGB picture.
        max_bytes: Size of the whole file.
        file_format: As in `encode_file`.
    """
    low, high = find_format(file_format).qualities
    while low < high:
        quality = (low + high + 1) // 2
        if len(encode_file(image, quality=quality, file_format=file_format)) <= max_bytes:
            low = quality
        else:
            high = quality - 1
    return low


def picture_at_bytes(image: Image.Image, max_bytes: int, *, file_format: str = "jpeg") -> CodedPicture:
    """The file of `quality_at_bytes`, which can be larger than wanted: compare `len(data)`."""
    quality = quality_at_bytes(image, max_bytes, file_format=file_format)
    return encode_picture(image, quality=quality, file_format=file_format)


__all__ = [
    "FILE_FORMATS",
    "CodedPicture",
    "FileFormat",
    "decode_file",
    "encode_file",
    "encode_picture",
    "encoder_version",
    "find_format",
    "picture_at_bytes",
    "picture_at_psnr",
    "quality_at_bytes",
]
