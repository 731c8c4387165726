"""Gain maps for the command line: from CLIP's attention, boxes, a mask or heat map in a file, or words."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel

from .. import ComNeckImageProcessorPil
from ..coding.gain_map import GainMap
from ..models.cotam.guide_cotam import ShallowAttentionGuide
from ..models.cotam.importance_cotam import padded_window, quantize_importance
from ..models.cotam.regions_cotam import Box, gain_map_from_boxes, gain_map_from_picture
from ..models.cotam.text_cotam import text_importance
from ..training.zero_shot import zero_shot_weights
from .loading import resolve_model


__all__ = ["MapMaker", "MapOptions", "PreparedPicture", "coded_window", "map_maker", "parse_box", "prepare_picture"]

PROMPT_TEMPLATES = ("{}", "a photo of {}.")

Window = tuple[float, float, float, float]


@dataclass(frozen=True)
class MapOptions:
    """Where the bits of a picture go; one of the first four at most.

    Attributes:
        guide: Where the first layers of CLIP look.
        boxes: Regions in pixels of the picture file, turned upright: left, top, right, bottom.
        importance: File of a mask or heat map that spans the whole picture: a picture, or a NumPy array (.npy).
        prompt: Words for what matters.
        clip: CLIP of `guide` and `prompt`, as in `resolve_model`.
        step: Quarter octaves of gain per level.
        grid: Rows, and columns, of the map.

    Raises:
        ValueError: If more than one source is given.
    """

    guide: bool = False
    boxes: tuple[Box, ...] = ()
    importance: Path | None = None
    prompt: str | None = None
    clip: str = "comneck-tiny-clip"
    step: int = 2
    grid: int = 8

    def __post_init__(self) -> None:
        if sum((self.guide, bool(self.boxes), self.importance is not None, self.prompt is not None)) > 1:
            raise ValueError("--guide, --roi, --importance and --prompt exclude one another. Give one of them.")


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as the codec gets it.

    Attributes:
        pixel_values: Shape `(3, height, width)`, values in [0, 1].
        size: Height and width of the upright picture before resize and crop.
        window: What part of that picture the latents span: top, left, bottom and right as shares of its sides. Crops
            make it smaller; the codec's padding makes it reach beyond 1.
        padding: What part of `pixel_values` they span, likewise.
    """

    pixel_values: torch.Tensor
    size: tuple[int, int]
    window: Window
    padding: Window


MapMaker = Callable[[PreparedPicture], GainMap]


def prepare_picture(
    picture: Image.Image, image_processor: ComNeckImageProcessorPil, *, size_divisor: int
) -> PreparedPicture:
    """Resizes and crops a picture, and notes what became of its borders.

    Args:
        picture: RGB, upright.
        image_processor: The model's.
        size_divisor: The codec pads both sides to multiples of this.
    """
    pixel_values = image_processor(images=picture, return_tensors="pt")["pixel_values"][0]
    height, width = pixel_values.shape[-2:]
    padding = padded_window(height, width, divisor=size_divisor)
    size = (picture.height, picture.width)
    top, left, bottom, right = coded_window(image_processor, size)
    window = (top, left, top + (bottom - top) * padding[2], left + (right - left) * padding[3])
    return PreparedPicture(pixel_values, size, window, padding)


def coded_window(image_processor: ComNeckImageProcessorPil, size: tuple[int, int]) -> Window:
    """What part of a picture is left after an image processor's resize and center crop.

    Args:
        image_processor: Its settings are read.
        size: Height and width of the picture in pixels.

    Returns:
        Top, left, bottom and right as shares of height and width.
    """
    resized = size
    if image_processor.do_resize:
        wanted = image_processor.size
        if wanted.shortest_edge:
            short = min(size)
            resized = tuple(
                wanted.shortest_edge if side == short else int(wanted.shortest_edge * side / short) for side in size
            )
        else:
            resized = (wanted.height, wanted.width)
    if not image_processor.do_center_crop:
        return 0.0, 0.0, 1.0, 1.0
    crop = (image_processor.crop_size.height, image_processor.crop_size.width)
    top, left = ((side - kept) // 2 for side, kept in zip(resized, crop, strict=True))
    return top / resized[0], left / resized[1], (top + crop[0]) / resized[0], (left + crop[1]) / resized[1]


def parse_box(text: str) -> Box:
    """Left, top, right and bottom from `"40,30,200,160"`.

    Raises:
        ValueError: If it is something else.
    """
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--roi {text!r} is no box. Write left,top,right,bottom in pixels, such as 40,30,200,160."
        ) from None
    return x0, y0, x1, y1


def map_maker(options: MapOptions, device: torch.device | str = "cpu") -> MapMaker | None:
    """What makes the gain map of a picture; `None` where the options name no source.

    Args:
        options: The source of the map.
        device: Where CLIP runs.

    Raises:
        ValueError: If the file of the importance map cannot be read.
        OSError: If the CLIP or the file does not exist.
    """
    grid, step = (options.grid, options.grid), options.step
    if options.guide:
        return _guide_maker(options, device)
    if options.prompt is not None:
        return _prompt_maker(options, options.prompt, device)
    if options.boxes:
        return lambda picture: gain_map_from_boxes(
            options.boxes, size=picture.size, grid=grid, step=step, window=picture.window
        )
    if options.importance is not None:
        heat_map = _read_heat_map(options.importance)
        return lambda picture: gain_map_from_picture(heat_map, grid=grid, step=step, window=picture.window)
    return None


def _guide_maker(options: MapOptions, device: torch.device | str) -> MapMaker:
    guide = ShallowAttentionGuide.from_pretrained(resolve_model(options.clip))
    guide.vision_model.to(device)
    return lambda picture: _quantize(guide(picture.pixel_values[None]), picture, options)


def _prompt_maker(options: MapOptions, prompt: str, device: torch.device | str) -> MapMaker:
    path = resolve_model(options.clip)
    clip = CLIPModel.from_pretrained(path).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(path)
    words = zero_shot_weights(clip, tokenizer, class_names=[prompt], templates=PROMPT_TEMPLATES)
    return lambda picture: _quantize(text_importance(clip, picture.pixel_values[None], words[0]), picture, options)


def _quantize(importance_map: torch.Tensor, picture: PreparedPicture, options: MapOptions) -> GainMap:
    grid = (options.grid, options.grid)
    return quantize_importance(importance_map, grid=grid, step=options.step, window=picture.padding)[0]


def _read_heat_map(path: Path) -> Image.Image | np.ndarray:
    with path.open("rb") as file:
        try:
            if path.suffix == ".npy":
                return np.load(file, allow_pickle=False)
            picture = Image.open(file)
            picture.load()
            return picture
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise ValueError(f"{path} is no readable mask or heat map (a picture, or .npy): {error}") from None
