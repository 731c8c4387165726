"""What a user may give as an image: pictures, latents and bitstreams, nested in lists, on disk or in URLs."""

import base64
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


BITSTREAM_SUFFIX = ".cnk"
DATA_URL = "data:application/x-comneck;base64,"
_URLS = ("http://", "https://", "data:")


def flatten_images(images: Any) -> list[Any]:
    """Nested lists and batches as one list."""
    if isinstance(images, list | tuple):
        return [image for item in images for image in flatten_images(item)]
    if isinstance(images, torch.Tensor | np.ndarray) and images.ndim == 4:
        return list(images)
    return [images]


def picture_sources(images: Any) -> list[Any]:
    """What is to be compressed, as a flat list.

    Raises:
        ValueError: If there is none, or one is coded already.
    """
    pictures = flatten_images(images)
    if not pictures or any(read_bitstream(picture) is not None for picture in pictures):
        raise ValueError("Give pictures to compress: at least one, and none that is a bitstream already.")
    return [as_source(picture) for picture in pictures]


def as_source(image: Any) -> Any:
    """What transformers takes: files are read here, as on the command line, and not by torchvision.

    Raises:
        ValueError: If a file cannot be read as a picture, or does not exist.
    """
    is_file = isinstance(image, Path) or (isinstance(image, str) and Path(image).suffix != "")  # base64 has no dot
    if not is_file or str(image).startswith(_URLS):
        return image
    try:
        return read_picture(Path(image))
    except OSError as error:
        raise ValueError(f"{image} cannot be read: {error.strerror}. Give the path or URL of a picture.") from error


def read_picture(path: Path) -> Image.Image:
    """A picture as RGB, upright as its EXIF orientation says; 16 bits are rounded to 8.

    Raises:
        ValueError: If the file cannot be read as a picture.
        OSError: If it cannot be opened at all.
    """
    with path.open("rb") as file:
        try:
            picture = ImageOps.exif_transpose(Image.open(file))
            if picture.mode in ("I", "F"):
                raise ValueError(
                    f"the range of its 32-bit values (mode {picture.mode}) is unknown. Save it with 8 bits."
                )
            if picture.mode.startswith("I;16"):  # which `convert` would clip
                values = np.asarray(picture).astype(np.uint32)
                picture = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
            return picture.convert("RGB")
        except Image.UnidentifiedImageError:
            raise ValueError(f"{path} is not a picture in a format that Pillow reads.") from None
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is not a readable picture: {error}") from None


def read_bitstream(image: Any) -> bytes | None:
    """The bitstream that an image stands for, `None` for pictures and latents."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Path | str) and str(image).lower().endswith(BITSTREAM_SUFFIX):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise ValueError(
                f"{image} cannot be read: {error.strerror}. Give the path of a `.cnk` file; fetch URLs yourself and "
                "pass their bytes."
            ) from error
    if isinstance(image, str) and image.startswith(DATA_URL):
        try:
            return base64.b64decode(image.removeprefix(DATA_URL), validate=True)
        except ValueError as error:  # of letters that base64 does not have, or of their number
            raise ValueError(f"The data URL of a bitstream is not base64: {error}.") from error
    return None


__all__ = [
    "BITSTREAM_SUFFIX",
    "DATA_URL",
    "as_source",
    "flatten_images",
    "picture_sources",
    "read_bitstream",
    "read_picture",
]
