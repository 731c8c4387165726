"""Pictures for training: anything `datasets` loads, held in memory, read row by row, or streamed.

A batch depends on the seed, the epoch and the pictures in it alone, never on how many batches came before: a resumed
run sees what an uninterrupted one sees. The number of worker processes plays a part in streams only, which they share.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from comneck_hf.training.augmentation import Augmentation, center_crop


__all__ = [
    "AugmentedPictures",
    "ImagePack",
    "ImageRows",
    "StreamedPictures",
    "load_pack",
    "load_rows",
    "load_sample",
    "load_shapes_pack",
    "picture_loader",
    "picture_tensor",
    "training_pictures",
]

READINGS = ("memory", "rows", "stream")
_SEED_STRIDE = 1_000_003


def picture_tensor(image: Image.Image) -> Tensor:
    """uint8 `(3, height, width)` of a picture of any mode."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


class PictureSource(Protocol):
    """Pictures by number. `labels` is `None` where there are none; `class_names` names the labels."""

    labels: Tensor | None
    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def pictures(self, indices: Sequence[int]) -> Sequence[Tensor]: ...


@dataclass(frozen=True)
class ImagePack:
    """All pictures of one split of a data set, in memory: for some ten thousand small pictures of one size.

    Attributes:
        images: pictures, uint8 `(n, 3, height, width)`, RGB in 0..255.
        labels: class indices into `class_names`, int64 `(n,)`, or `None`.
        class_names: readable class names, as used in prompts.
    """

    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return self.images.shape[0]

    def pictures(self, indices: Sequence[int]) -> Tensor:
        """uint8 `(len(indices), 3, height, width)`."""
        return self.images[indices]


class ImageRows:
    """Pictures decoded when they are needed: for data sets that do not fit into memory.

    Args:
        dataset: rows with a column `image`, and optionally `label` (integers or ClassLabel) and `class_name`.

    Raises:
        ValueError: If there is no column `image`.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        if "image" not in dataset.column_names:
            raise ValueError(
                f"The data set needs a column 'image', it has {dataset.column_names}. Rename it with `rename_column`."
            )
        self.rows = dataset.cast_column("image", datasets.Image()).select_columns("image")
        self.labels, self.class_names = _classes(dataset)

    def __len__(self) -> int:
        return len(self.rows)

    def pictures(self, indices: Sequence[int]) -> list[Tensor]:
        """uint8 `(3, height, width)` each, at their own sizes."""
        return [picture_tensor(image) for image in self.rows[list(indices)]["image"]]


def load_rows(path: str | Path, split: str) -> ImageRows:
    """One split of anything `datasets.load_dataset` loads: a Hub id, a folder of pictures or of parquet files."""
    return ImageRows(datasets.load_dataset(str(path), split=split))


def load_pack(path: str | Path, split: str, *, size: int | None = None) -> ImagePack:
    """Decodes one split into memory.

    Args:
        path: a data set as in `load_rows`, with the columns `image` and optionally `label` and `class_name` (readable
            name of the class; the names of `label` are used without it).
        split: the split to load, for example `"train"`.
        size: resize pictures to `size` x `size` (bicubic); by default they stay as stored and must share one size.

    Returns:
        The pictures in the order of the data set.
    """
    rows = load_rows(path, split)
    images = _stack_images((row["image"] for row in rows.rows), len(rows), size)
    return ImagePack(images, rows.labels, rows.class_names)


def load_shapes_pack(path: str | Path, split: str, *, size: int | None = None) -> ImagePack:
    """Decodes an easy-VQA split into a pack whose classes are "color shape" pairs such as `"red circle"`.

    The color and the shape of each picture are read from its questions: "What color/shape ...?" answers directly, a
    yes-answer confirms the word in the question and, where all but one of the words were denied, the remaining one is
    taken. Pictures whose color or shape stays unknown are left out.

    Args:
        path: a data set with the columns `image`, `questions` (list of str) and `answers` (list of ClassLabel).
        split: the split to load, for example `"train"`.
        size: resize pictures to `size` x `size` (bicubic); by default they stay as stored.

    Returns:
        The pictures with a known color and shape, in the order of the data set.
    """
    dataset = datasets.load_dataset(str(path), split=split)
    names = dataset.features["answers"].feature.names
    shapes = sorted(name for name in names if name in _SHAPES)
    colors = sorted(name for name in names if name not in _SHAPES and name not in ("yes", "no"))
    class_names = tuple(f"{color} {shape}" for color in colors for shape in shapes)
    kept, labels = [], []
    for index, (questions, answers) in enumerate(zip(dataset["questions"], dataset["answers"], strict=True)):
        words = [names[answer] for answer in answers]
        color, shape = _find_property(questions, words, colors), _find_property(questions, words, shapes)
        if color is not None and shape is not None:
            kept.append(index)
            labels.append(class_names.index(f"{color} {shape}"))
    rows = dataset.select_columns("image").select(kept)
    images = _stack_images((row["image"] for row in rows), len(rows), size)
    return ImagePack(images, torch.tensor(labels, dtype=torch.int64), class_names)


def load_sample(
    path: str | Path,
    split: str,
    count: int,
    *,
    reading: str = "rows",
    side: int | None = None,
    resize: bool = False,
    enlarge: bool = False,
) -> ImagePack:
    """Pictures spread evenly over a split (the first ones of a stream), their middles cut to one size.

    Args:
        path: A data set as in `training_pictures`.
        split: The split.
        count: Pictures; all of the split if it has fewer.
        reading: As in `training_pictures`.
        side: Of the square that is cut; by default the largest multiple of 64 that fits into all of them.
        resize: Bring the shorter side of every picture to `side` first (bicubic), instead of cutting from its pixels.
        enlarge: The same, for pictures that are too small only.

    Raises:
        ValueError: If a picture is smaller than the square, or than 64 pixels.
    """
    rows = ImageRows(_first_rows(path, split, count)) if reading == "stream" else load_rows(path, split)
    indices = torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long().tolist()
    pictures = rows.pictures(indices)
    if side is not None:
        chosen = [resize or (enlarge and min(picture.shape[1:]) < side) for picture in pictures]
        pictures = [_resized(p, side) if is_chosen else p for p, is_chosen in zip(pictures, chosen, strict=True)]
    smallest = min(min(picture.shape[1:]) for picture in pictures)
    side = side or smallest // 64 * 64
    if not 64 <= side <= smallest:
        raise ValueError(
            f"The smallest picture has a side of {smallest} pixels, and squares of {max(side, 64)} are needed. Leave "
            "small pictures out, or enlarge them."
        )
    images = torch.stack([center_crop(picture, side) for picture in pictures])
    return ImagePack(images, None if rows.labels is None else rows.labels[indices], rows.class_names)


class AugmentedPictures(Dataset):
    """Batches of augmented pictures, with labels where the source has them.

    Args:
        source: the pictures.
        augmentation: what happens to them.
        seed: seed of the run.
    """

    def __init__(self, source: PictureSource, augmentation: Augmentation, *, seed: int = 0) -> None:
        self.source, self.augmentation, self.seed, self.epoch = source, augmentation, seed, 0

    def __len__(self) -> int:
        return len(self.source)

    def set_epoch(self, epoch: int) -> None:
        """Other random numbers for every epoch."""
        self.epoch = epoch

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """`pixel_values` `(batch, 3, size, size)` in [0, 1], and `labels` `(batch,)`."""
        seed = (self.seed * _SEED_STRIDE + self.epoch) * _SEED_STRIDE + indices[0]
        generator = torch.Generator().manual_seed(seed % 2**63)
        batch = {"pixel_values": self.augmentation(self.source.pictures(indices), generator=generator)}
        if self.source.labels is not None:
            batch["labels"] = self.source.labels[indices]
        return batch


class StreamedPictures(IterableDataset):
    """Augmented pictures of a stream, one by one: for data sets that do not fit on the disk.

    Args:
        stream: rows with a column `image` and optionally `label`.
        augmentation: what happens to the pictures.
        seed: seed of the order and of the augmentation.
        buffer_size: rows among which the next one is drawn.
    """

    def __init__(
        self, stream: datasets.IterableDataset, augmentation: Augmentation, *, seed: int = 0, buffer_size: int = 1000
    ) -> None:
        self.stream = stream.shuffle(seed=seed, buffer_size=buffer_size)
        self.augmentation, self.seed, self.epoch = augmentation, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Another order and other random numbers for every epoch."""
        self.epoch = epoch
        self.stream.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()  # each reads its own rows, and counts them from 0
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for position, row in zip(itertools.count(first, step), self.stream):
            seed = (self.seed * _SEED_STRIDE + self.epoch) * _SEED_STRIDE + position
            generator = torch.Generator().manual_seed(seed % 2**63)
            sample = {"pixel_values": self.augmentation([picture_tensor(row["image"])], generator=generator)[0]}
            if "label" in row:
                sample["labels"] = torch.tensor(row["label"])
            yield sample


def training_pictures(
    path: str | Path, augmentation: Augmentation, *, reading: str = "rows", split: str = "train", seed: int = 0
) -> AugmentedPictures | StreamedPictures:
    """Augmented pictures of one split of anything `datasets.load_dataset` loads.

    Args:
        path: A Hub id, or a folder of pictures, parquet files or webdataset shards.
        augmentation: What happens to the pictures.
        reading: `"memory"` decodes all pictures once (they must have one size), `"rows"` when they are needed,
            `"stream"` reads front to back and shuffles within a buffer.
        split: The split.
        seed: Seed of the run.

    Raises:
        ValueError: If `reading` is unknown or there is no column `image`.
    """
    if reading not in READINGS:
        raise ValueError(f"`reading` must be one of {READINGS}, got {reading!r}.")
    if reading == "stream":
        return StreamedPictures(_open_stream(path, split), augmentation, seed=seed)
    source = load_pack(path, split) if reading == "memory" else load_rows(path, split)
    return AugmentedPictures(source, augmentation, seed=seed)


def picture_loader(dataset: Dataset, *, batch_size: int, num_workers: int = 0) -> DataLoader:
    """A loader of whole batches; shuffled, unless the data set is a stream that shuffles itself.

    Raises:
        ValueError: If the data set has fewer pictures than a batch.
    """
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, drop_last=True)
    if len(dataset) < batch_size:
        raise ValueError(f"The data set has {len(dataset)} pictures, fewer than batch_size {batch_size}; lower it.")
    return DataLoader(
        dataset, batch_size=batch_size, shuffle=True, num_workers=num_workers, drop_last=True, collate_fn=_as_it_is
    )


def _open_stream(path: str | Path, split: str) -> datasets.IterableDataset:
    """A stream with the columns `image` and, where there are classes, `label`."""
    stream = datasets.load_dataset(str(path), split=split, streaming=True)
    columns = stream.column_names or ()
    return stream.rename_columns({old: new for old, new in _SHARD_COLUMNS.items() if old in columns})


def _first_rows(path: str | Path, split: str, count: int) -> datasets.Dataset:
    """The first rows of a stream; with labels where it names all classes, for these rows may not have all of them."""
    stream = _open_stream(path, split)
    features = stream.features or {}
    is_named = isinstance(features.get("label"), datasets.ClassLabel)
    kept = datasets.Features({name: features[name] for name in ("image", "label")}) if is_named else None
    stream = stream.select_columns([name for name in ("image", "label") if is_named or name == "image"])
    return datasets.Dataset.from_list(list(stream.take(count)), features=kept)


def _resized(picture: Tensor, side: int) -> Tensor:
    """A picture `(3, height, width)` with `side` pixels along the shorter side."""
    height, width = picture.shape[1:]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    resized = F.interpolate(picture[None].float(), size, mode="bicubic", antialias=True)[0]
    return resized.round().clamp(0, 255).to(torch.uint8)


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


def _classes(dataset: datasets.Dataset) -> tuple[Tensor | None, tuple[str, ...]]:
    """Labels, or None, and the names of the classes."""
    if "label" not in dataset.column_names:
        return None, ()
    labels = torch.tensor(list(dataset["label"]), dtype=torch.int64)
    feature = dataset.features["label"]
    names = list(feature.names) if isinstance(feature, datasets.ClassLabel) else []
    names = names or [str(label) for label in range(int(labels.max()) + 1)]
    if "class_name" in dataset.column_names:
        for label, name in zip(labels.tolist(), dataset["class_name"], strict=True):
            names[label] = name
    return labels, tuple(names)


# What webdataset shards call the columns, by the suffixes of their files
_SHARD_COLUMNS = {"jpg": "image", "jpeg": "image", "png": "image", "webp": "image", "cls": "label"}
_SHAPES = ("circle", "rectangle", "triangle")


def _find_property(questions: list[str], answers: list[str], options: list[str]) -> str | None:
    """The one of `options` that the questions and answers about a picture establish, or None."""
    denied = set()
    for question, answer in zip(questions, answers, strict=True):
        if answer in options:
            return answer
        asked = [word for word in question.lower().replace("?", " ").split() if word in options]
        negated = " not " in question.lower() or " no " in question.lower() or "n't" in question.lower()
        if len(asked) == 1 and (answer == "no") == negated:
            return asked[0]
        if len(asked) == 1:
            denied.add(asked[0])
    left = [option for option in options if option not in denied]
    return left[0] if len(left) == 1 else None


def _stack_images(images: Iterator[Image.Image], count: int, size: int | None) -> Tensor:
    stacked = None
    for index, image in enumerate(images):
        image = image.convert("RGB")
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        array = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        if stacked is None:
            stacked = torch.empty((count, *array.shape), dtype=torch.uint8)
        if array.shape != stacked.shape[1:]:
            raise ValueError(
                f"picture {index} is {array.shape[1]}x{array.shape[2]}, the first one "
                f"{stacked.shape[2]}x{stacked.shape[3]}; pass `size` to bring them to one size"
            )
        stacked[index] = array
    return stacked if stacked is not None else torch.empty((0, 3, size or 0, size or 0), dtype=torch.uint8)
