"""Where in a picture CLIP's tokens change: squared errors of patch tokens on objects and around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import CLIPModel

from ..models.clip_inputs import clip_inputs
from ..training.augmentation import center_crop
from ..training.content import model_parts
from .baselines import Baseline, Received
from .intervals import Columns, mean_of, percentile_interval, resample
from .pictures import picture_tensor
from .tasks import Task


PLACES = ("inside", "outside", "all")  # of the tokens: on objects, around them
_SHARES = (0.05, 0.6)  # of the tokens that lie on objects, for a picture that has both, objects and surroundings


@dataclass(frozen=True)
class ObjectPictures:
    """Pictures and where their objects are.

    Attributes:
        images: uint8 `(n, 3, side, side)`.
        regions: Which cells of a square grid have their centres in an object's box, bool `(n, rows, columns)`.
    """

    images: torch.Tensor
    regions: torch.Tensor


def load_object_pictures(path: str | Path, *, side: int, grid: int, split: str = "train") -> ObjectPictures:
    """Pictures with boxes: shorter sides are resized, middles cut; objects take 5 to 60 % of the cells.

    Args:
        path: What `datasets.load_dataset` loads, with the columns `image`, `objects` (each with a `bbox`: left, top,
            width and height in pixels of the original picture), `orig_width` and `orig_height`.
        side: Of the pictures, in pixels.
        grid: Cells to a side.
        split: The split to load.

    Raises:
        ValueError: If a column is missing, or no picture is left.
    """
    from datasets import load_dataset

    rows = load_dataset(str(path), split=split)
    missing = sorted({"image", "objects", "orig_width", "orig_height"} - set(rows.column_names))
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}. Use pictures with boxes, such as COCO's instances.")
    images, regions = [], []
    for row in rows:
        width, height = row["orig_width"], row["orig_height"]
        region = object_cells([found["bbox"] for found in row["objects"]], width=width, height=height, grid=grid)
        if not _SHARES[0] <= region.float().mean() <= _SHARES[1]:
            continue
        scale = side / min(row["image"].size)
        size = [max(side, round(length * scale)) for length in row["image"].size]
        images.append(center_crop(picture_tensor(row["image"].convert("RGB").resize(size)), side))
        regions.append(region)
    if not images:
        raise ValueError(f"No picture of {path} has objects on {_SHARES[0]:.0%} to {_SHARES[1]:.0%} of it.")
    return ObjectPictures(torch.stack(images), torch.stack(regions))


def object_cells(boxes: Sequence[Sequence[float]], *, width: int, height: int, grid: int) -> torch.Tensor:
    """Cells of the middle square of a picture whose centres lie in a box.

    Args:
        boxes: Left, top, width and height in pixels.
        width, height: Of the picture.
        grid: Cells to a side of the square.

    Returns:
        bool `(grid, grid)`.
    """
    side = min(width, height)
    centres = (torch.arange(grid) + 0.5) * side / grid
    columns, rows = centres + (width - side) / 2, centres + (height - side) / 2
    region = torch.zeros(grid, grid, dtype=torch.bool)
    for left, top, across, down in boxes:
        inside = (columns >= left) & (columns < left + across)
        region |= ((rows >= top) & (rows < top + down))[:, None] & inside
    return region


class TokenErrors(Task):
    """Squared errors of patch tokens against those of the original pictures, relative to the picture's mean square.

    Args:
        clip: Whose vision tower sees the originals, and everything that is decoded.
        pictures: With regions on the grid of the CLIP's patches.
        layer: Which of the hidden states; LLaVA reads the last but one.
        name: Of the task.
    """

    def __init__(
        self, clip: CLIPModel, pictures: ObjectPictures, *, layer: int = -2, name: str = "token-errors"
    ) -> None:
        self.name, self.clip, self.layer = name, clip, layer
        self.pictures, self.regions = pictures.images, pictures.regions

    def depends_on(self) -> tuple[str | torch.Tensor | nn.Module, ...]:
        """Pictures, regions, layer and CLIP."""
        return (self.name, f"{self.layer}", self.pictures, self.regions, *model_parts(self.clip))

    @torch.no_grad()
    def score(self, baseline: Baseline, received: Received, numbers: Sequence[int]) -> Columns:
        """Means over the tokens `inside` and `outside` of the regions, and over `all`."""
        errors = self.errors(baseline, received, self.pictures[list(numbers)])
        inside = self.regions[list(numbers)]
        masks = (inside, ~inside, torch.ones_like(inside))
        return {
            place: torch.stack([(errors * mask).sum((1, 2)), mask.sum((1, 2))]).double().numpy()
            for place, mask in zip(PLACES, masks, strict=True)
        }

    @torch.no_grad()
    def errors(self, baseline: Baseline, received: Received, pictures: torch.Tensor) -> torch.Tensor:
        """Relative squared error of each patch token, float32 `(n, rows, columns)` on the CPU.

        Args:
            baseline, received: Of these pictures.
            pictures: uint8 `(n, 3, height, width)`.
        """
        expected = self._see(pictures.to(self.clip.device) / 255)
        if baseline.comneck is None:
            found = self._see(received.pixel_values)
        else:
            outputs = baseline.comneck(latents=received.latents, **received.gains, output_hidden_states=True)
            found = outputs.hidden_states[self.layer]
        errors = (found.float() - expected.float()).square().mean(2)
        errors = errors / expected.float().square().mean((1, 2))[:, None]
        grid = self.clip.config.vision_config.image_size // self.clip.config.vision_config.patch_size
        return errors[:, 1:].unflatten(1, (grid, grid)).cpu()

    def _see(self, pixel_values: torch.Tensor) -> torch.Tensor:
        inputs = clip_inputs(pixel_values, self.clip.config.vision_config.image_size)
        return self.clip.vision_model(inputs, output_hidden_states=True).hidden_states[self.layer]


def error_reduction(anchor: Columns, test: Columns, *, resamples: int = 1000, seed: int = 0) -> dict[str, object]:
    """How much smaller the errors of a system are than the anchor's, in dB: 3 dB are half the squared error.

    Args:
        anchor, test: Of [`TokenErrors`], over the same pictures.
        resamples, seed: As in `bootstrap_interval`.

    Returns:
        By place (`inside`, `outside`, `all`): `decibel` and its 95 % bootstrap `interval`; and `inside_minus_outside`.
    """
    weights = np.concatenate(
        [np.ones((1, anchor["all"].shape[1])), resample(anchor["all"].shape[1], count=resamples, seed=seed)]
    )
    drawn = {
        place: np.array([_decibel(anchor[place] * drawing, test[place] * drawing) for drawing in weights])
        for place in PLACES
    }
    drawn["inside_minus_outside"] = drawn["inside"] - drawn["outside"]
    return {
        place: {"decibel": float(values[0]), "interval": list(percentile_interval(values[1:]))}
        for place, values in drawn.items()
    }


def _decibel(anchor: np.ndarray, test: np.ndarray) -> float:
    return 10 * float(np.log10(mean_of(anchor) / mean_of(test)))


__all__ = ["PLACES", "ObjectPictures", "TokenErrors", "error_reduction", "load_object_pictures", "object_cells"]
