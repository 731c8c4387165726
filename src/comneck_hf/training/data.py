"""Image packs held in memory, and batched augmentation of them on tensors.

A pack (a few thousand small pictures) is decoded once into one uint8 tensor, so that a training loop spends no time
on files, decoding or worker processes. Every random draw comes from a `torch.Generator` or an explicit seed: the same
seed gives the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import load_dataset
from PIL import Image
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


__all__ = [
    "ImagePack",
    "center_crop_resize",
    "clip_inputs",
    "color_jitter",
    "load_pack",
    "load_shapes_pack",
    "normalize",
    "random_crops",
    "random_erasing",
    "random_resized_crops",
    "shuffled_batches",
]

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class ImagePack:
    """All pictures of one split of a data set.

    Attributes:
        images: pictures, uint8 `(n, 3, height, width)`, RGB in 0..255.
        labels: class indices into `class_names`, int64 `(n,)`.
        class_names: readable class names, as used in prompts.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return self.images.shape[0]


def load_pack(path: str | Path, split: str, *, size: int | None = None) -> ImagePack:
    """Decodes one split of an image classification pack into memory.

    Args:
        path: a data set that `datasets.load_dataset` can load, with the columns `image`, `label` (ClassLabel) and
            optionally `class_name` (readable name of the class; the names of `label` are used without it).
        split: the split to load, for example `"train"`.
        size: resize pictures to `size` x `size` (bicubic); by default they stay as stored and must share one size.

    Returns:
        The pictures in the order of the data set.
    """
    dataset = load_dataset(str(path), split=split)
    class_names = list(dataset.features["label"].names)
    labels = list(dataset["label"])
    if "class_name" in dataset.column_names:
        for label, name in zip(labels, dataset["class_name"], strict=True):
            class_names[label] = name
    images = _stack_images((row["image"] for row in dataset.select_columns("image")), len(dataset), size)
    return ImagePack(images, torch.tensor(labels, dtype=torch.int64), tuple(class_names))


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
    dataset = load_dataset(str(path), split=split)
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
    images = _stack_images((row["image"] for row in rows), len(kept), size)
    return ImagePack(images, torch.tensor(labels, dtype=torch.int64), class_names)


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


def shuffled_batches(num_items: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
    """Yields the shuffled index batches of one epoch; an incomplete last batch is dropped.

    The order depends on `seed` and `epoch` alone, so a resumed run sees the batches of an uninterrupted one.

    Args:
        num_items: number of items in the data set.
        batch_size: items per batch, at most `num_items`.
        seed: seed of the run.
        epoch: index of the epoch.

    Yields:
        int64 `(batch_size,)` indices into the data set.
    """
    if not 1 <= batch_size <= num_items:
        raise ValueError(f"batch_size is {batch_size}; expected 1 to {num_items} (the number of items)")
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(num_items, generator=generator)
    for start in range(0, num_items - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def random_crops(images: Tensor, size: int, *, generator: torch.Generator) -> Tensor:
    """Cuts one random `size` x `size` window out of every picture and mirrors half of them.

    Args:
        images: uint8 `(batch, 3, height, width)`, each side at least `size`.
        size: side of the windows in pixels.
        generator: source of the positions and flips.

    Returns:
        float32 `(batch, 3, size, size)` in [0, 1].
    """
    batch, channels, height, width = images.shape
    if min(height, width) < size:
        raise ValueError(f"pictures are {height}x{width}; expected sides of at least the crop size {size}")
    tops = torch.randint(height - size + 1, (batch,), generator=generator)
    lefts = torch.randint(width - size + 1, (batch,), generator=generator)
    flips = torch.rand(batch, generator=generator) < 0.5
    crops = images.new_empty((batch, channels, size, size))
    for index, (top, left, flip) in enumerate(zip(tops.tolist(), lefts.tolist(), flips.tolist(), strict=True)):
        crop = images[index, :, top : top + size, left : left + size]
        crops[index] = crop.flip(-1) if flip else crop
    return crops.float().div_(255)


def random_resized_crops(
    images: Tensor,
    size: int,
    *,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.35, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cuts windows of random area and aspect ratio, resizes them (antialiased bilinear) and mirrors half of them.

    Args:
        images: uint8 `(batch, 3, height, width)`.
        size: side of the results in pixels.
        generator: source of the random numbers.
        scale: range of the area of a window, as a fraction of the picture.
        ratio: range of width / height of a window, drawn uniformly in the logarithm.

    Returns:
        float32 `(batch, 3, size, size)` in [0, 1].
    """
    batch, channels, height, width = images.shape
    draws = torch.rand((batch, 5), generator=generator)
    areas = (scale[0] + (scale[1] - scale[0]) * draws[:, 0]) * height * width
    ratios = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * draws[:, 1])
    heights = (areas / ratios).sqrt().round().clamp(1, height)
    widths = (areas * ratios).sqrt().round().clamp(1, width)
    tops = (draws[:, 2] * (height - heights + 1)).floor().clamp(max=height - 1)
    lefts = (draws[:, 3] * (width - widths + 1)).floor().clamp(max=width - 1)
    boxes = torch.stack([tops, lefts, heights, widths], dim=1).int().tolist()
    crops = images.new_empty((batch, channels, size, size))
    for index, (top, left, crop_height, crop_width) in enumerate(boxes):
        crop = images[index : index + 1, :, top : top + crop_height, left : left + crop_width]
        crops[index] = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
    crops = torch.where((draws[:, 4] < 0.5).view(-1, 1, 1, 1), crops.flip(-1), crops)
    return crops.float().div_(255)


def center_crop_resize(images: Tensor, size: int, *, crop_size: int | None = None) -> Tensor:
    """Cuts the central `crop_size` square and resizes it (antialiased bicubic) for validation.

    Args:
        images: uint8 `(batch, 3, height, width)`.
        size: side of the results in pixels.
        crop_size: side of the square before the resize; by default the whole picture is used.

    Returns:
        float32 `(batch, 3, size, size)` in [0, 1].
    """
    if crop_size is not None:
        height, width = images.shape[2:]
        if min(height, width) < crop_size:
            raise ValueError(f"pictures are {height}x{width}; expected sides of at least crop_size {crop_size}")
        top, left = (height - crop_size) // 2, (width - crop_size) // 2
        images = images[:, :, top : top + crop_size, left : left + crop_size]
    resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    return resized.div_(255).clamp_(0, 1)


def color_jitter(images: Tensor, *, strength: float, generator: torch.Generator) -> Tensor:
    """Changes brightness, contrast and saturation of every picture by factors of 1 - strength to 1 + strength.

    Args:
        images: float `(batch, 3, height, width)` in [0, 1].
        strength: largest relative change, from 0 to 1.
        generator: source of the factors.

    Returns:
        float `(batch, 3, height, width)` in [0, 1].
    """
    factors = 1 + strength * (2 * torch.rand((3, images.shape[0], 1, 1, 1), generator=generator) - 1)
    brightness, contrast, saturation = factors.to(images)
    images = images * brightness
    gray = (images * images.new_tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    mean = gray.mean((2, 3), keepdim=True)
    # Contrast blends with the mean gray, saturation with the gray picture; both are linear, so one pass does both.
    images = contrast * (saturation * images + (1 - saturation) * gray) + (1 - contrast) * mean
    return images.clamp_(0, 1)


def random_erasing(images: Tensor, *, probability: float, generator: torch.Generator, fill: float = 0.0) -> Tensor:
    """Fills one random rectangle (2 % to 20 % of the area) of some pictures, in place.

    Args:
        images: float `(batch, 3, height, width)`; changed in place.
        probability: share of the pictures that lose a rectangle.
        generator: source of the positions.
        fill: the value written.

    Returns:
        `images`.
    """
    batch, _, height, width = images.shape
    draws = torch.rand((batch, 5), generator=generator).tolist()
    for index, (chance, area, aspect, down, right) in enumerate(draws):
        if chance >= probability:
            continue
        area = (0.02 + 0.18 * area) * height * width
        aspect = math.exp(math.log(0.4) + math.log(2.5 / 0.4) * aspect)
        box_height, box_width = (
            min(height, round(math.sqrt(area / aspect))),
            min(width, round(math.sqrt(area * aspect))),
        )
        top, left = int(down * (height - box_height + 1)), int(right * (width - box_width + 1))
        images[index, :, top : top + box_height, left : left + box_width] = fill
    return images


def normalize(images: Tensor) -> Tensor:
    """Applies the mean and standard deviation of CLIP to pictures `(batch, 3, height, width)` in [0, 1]."""
    mean, std = images.new_tensor(OPENAI_CLIP_MEAN).view(3, 1, 1), images.new_tensor(OPENAI_CLIP_STD).view(3, 1, 1)
    return (images - mean) / std


def clip_inputs(images: Tensor, size: int) -> Tensor:
    """Pictures as CLIP sees them: resized (bicubic, antialiased) and normalized.

    Args:
        images: pictures `(batch, 3, height, width)`, values in [0, 1].
        size: CLIP's picture size.

    Returns:
        Float `(batch, 3, size, size)`.
    """
    return normalize(F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1))
