"""What a user may give as an image: pictures, latents and bitstreams, nested in lists, on disk or in URLs."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import torch


BITSTREAM_SUFFIX = ".cnk"
DATA_URL = "data:application/x-comneck;base64,"


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
    sources = [as_source(image) for image in flatten_images(images)]
    if not sources or any(read_bitstream(source) is not None for source in sources):
        raise ValueError("Give pictures to compress: at least one, and none that is a bitstream already.")
    return sources


def as_source(image: Any) -> Any:
    """What transformers loads: it knows strings, not `Path`."""
    return str(image) if isinstance(image, Path) else image


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


__all__ = ["BITSTREAM_SUFFIX", "DATA_URL", "as_source", "flatten_images", "picture_sources", "read_bitstream"]
