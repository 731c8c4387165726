"""Pictures for measurements: packs of `datasets` and folders of files, as uint8 tensors."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image


_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def load_pictures(path: str | Path, *, split: str = "train", start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Pictures `start` to `stop` of one split of an image pack, which all have one size.

    Args:
        path: A data set that `datasets.load_dataset` can load, with the column `image`.
        split: The split to load.
        start, stop: Range of rows, as in a slice.

    Returns:
        uint8 `(count, 3, height, width)`, RGB.
    """
    from datasets import load_dataset

    dataset = load_dataset(str(path), split=split).select_columns("image")
    rows = dataset.select(range(*slice(start, stop).indices(len(dataset))))
    return torch.stack([picture_tensor(row["image"]) for row in rows])


def load_picture_folder(path: str | Path, *, limit: int | None = None) -> list[torch.Tensor]:
    """The picture files of a folder by name, the first `limit`: uint8 tensors `(3, height, width)` of any sizes.

    Raises:
        ValueError: If the folder has no picture.
    """
    files = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(f"{path} has no picture ({', '.join(_SUFFIXES)}). Pass a folder of picture files.")
    pictures = []
    for file in files[:limit]:
        with Image.open(file) as image:
            pictures.append(picture_tensor(image))
    return pictures


def picture_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 `(3, height, width)` of a PIL picture, converted to RGB."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def tensor_picture(picture: torch.Tensor) -> Image.Image:
    """PIL picture of a uint8 tensor `(3, height, width)`."""
    return Image.fromarray(picture.permute(1, 2, 0).numpy())


__all__ = ["load_picture_folder", "load_pictures", "picture_tensor", "tensor_picture"]
