"""Gain maps for the command line: from CLIP's attention, boxes, a mask or heat map in a file, words, or latents."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, PreTrainedModel

from .. import ComNeckImageProcessorPil, CotamModel
from ..coding.gain_map import GainMap
from ..hub.names import resolve_model
from ..models.cotam.guide_cotam import ShallowAttentionGuide
from ..models.cotam.importance_cotam import padded_window, quantize_importance
from ..models.cotam.latent_guide_cotam import LatentGuide
from ..models.cotam.regions_cotam import Box, gain_map_from_boxes, gain_map_from_picture
from ..models.cotam.text_cotam import MAX_DEPTH, text_importance
from ..models.image_codec import latent_size, pad_to_multiple
from ..training.zero_shot import zero_shot_weights
from .loading import load_coder
from .terminal import DEFAULT_CLIP


__all__ = [
    "MapMaker",
    "MapOptions",
    "PreparedPicture",
    "coded_window",
    "coder_and_map",
    "map_maker",
    "parse_box",
    "prepare_picture",
]

PROMPT_TEMPLATES = ("{}", "a photo of {}.")
MAP_GRID, PROMPT_GRID = 8, 4  # cells per side; CLIP sees nine parts of a picture for a prompt's 4, and 58 for 8
MAP_STEP = 2

Window = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class MapOptions:
    """Where the bits of a picture go; one of the first five at most.

    Attributes:
        guide: Where the first layers of CLIP look.
        boxes: Regions in pixels of the picture file, turned upright: left, top, right, bottom.
        importance: File of a mask or heat map that spans the whole picture: a picture, or a NumPy array (.npy).
        prompt: Words for what matters.
        latent_guide: File of `LatentGuide.save`: where CLIP would look, foretold from the codec's latents.
        clip: CLIP of `guide` and `prompt`, as in `resolve_model`; by default the packaged one.
        step: Quarter octaves of gain per level, 2 by default.
        grid: Rows, and columns, of the map, as far as its source has so many; by default 8, of a prompt 4.

    Raises:
        ValueError: If more than one source is given, a prompt without words, or a CLIP that nothing reads.
    """

    guide: bool = False
    boxes: tuple[Box, ...] = ()
    importance: Path | None = None
    prompt: str | None = None
    latent_guide: Path | None = None
    clip: str | None = None
    step: int | None = None
    grid: int | None = None

    def __post_init__(self) -> None:
        if self.guide + self.names_regions > 1:
            raise ValueError(
                "--guide, --roi, --importance, --prompt and --latent-guide exclude one another. Give one of them."
            )
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError('--prompt is empty; it says in words what matters, such as "the licence plate".')
        if self.clip is not None and not (self.guide or self.prompt is not None):
            raise ValueError(
                f"--clip {self.clip} is the CLIP of --guide and --prompt. Give one of them, or leave it out."
            )

    @property
    def names_regions(self) -> int:
        """How many sources there are besides the guide."""
        files = (self.importance, self.prompt, self.latent_guide)
        return bool(self.boxes) + sum(file is not None for file in files)


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as the codec gets it.

    Attributes:
        pixel_values: Shape `(3, height, width)`, values in [0, 1].
        size: Height and width of the upright picture before resize and crop.
        window: What part of that picture the latents span: top, left, bottom and right as shares of its sides. Crops
            make it smaller; the codec's padding makes it reach beyond 1.
        padding: What part of `pixel_values` they span, likewise.
        latent_grid: Rows and columns of the latents.
    """

    pixel_values: torch.Tensor
    size: tuple[int, int]
    window: Window
    padding: Window
    latent_grid: tuple[int, int]

    def grid(self, side: int) -> tuple[int, int]:
        """Rows and columns of a map: `side`, but no more than the latents have."""
        return min(side, self.latent_grid[0]), min(side, self.latent_grid[1])


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
    latent_grid = latent_size(height, width, divisor=size_divisor)
    return PreparedPicture(pixel_values, size, window, padding, latent_grid)


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


def coder_and_map(
    model: str, options: MapOptions, guide: bool | None, *, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, MapMaker | None]:
    """What codes pictures for a model, and what makes their maps unless the former does.

    Args:
        model: As in `resolve_model`.
        options: The source of the maps.
        guide: Whether a CoTAM is to make them, where the options name no other source and no CLIP; `None` for as it is
            configured.
        device, dtype: Of the models.

    Raises:
        ValueError, OSError: As `map_maker` and `load_coder`.
    """
    is_free = not options.names_regions and options.clip is None
    coder = load_coder(model, guides=guide if is_free else False, device=device, dtype=dtype)
    if not isinstance(coder, CotamModel):
        return coder, map_maker(options, device, coder)
    if guide is None and options.step is None and options.grid is None:
        return coder, None
    config = coder.config
    shape: dict[str, Any] = {
        "threshold": config.guide_threshold,
        "levels": config.guide_levels,
        "step": options.step or config.gain_step,
    }
    rows, columns = (options.grid, options.grid) if options.grid else config.guide_grid
    return coder.codec, lambda picture: quantize_importance(
        coder.importance(picture.pixel_values[None]),
        grid=(picture.grid(rows)[0], picture.grid(columns)[1]),
        window=picture.padding,
        **shape,
    )[0]


def map_maker(
    options: MapOptions, device: torch.device | str = "cpu", codec: PreTrainedModel | None = None
) -> MapMaker | None:
    """What makes the gain map of a picture; `None` where the options name no source.

    Args:
        options: The source of the map.
        device: Where CLIP runs.
        codec: What codes the pictures, for a latent guide.

    Raises:
        ValueError: If a file cannot be read, or the options shape a map that they have no source for.
        OSError: If the CLIP or the file does not exist.
    """
    side, step = options.grid or MAP_GRID, options.step or MAP_STEP
    if options.guide:
        return _guide_maker(options, device, side, step)
    if options.prompt is not None:
        return _prompt_maker(options, options.prompt, device)
    if options.latent_guide is not None:
        return _latent_maker(options.latent_guide, codec, side, step)
    if options.boxes:
        return lambda picture: gain_map_from_boxes(
            options.boxes, size=picture.size, grid=picture.grid(side), window=picture.window, step=step
        )
    if options.importance is not None:
        heat_map = _read_heat_map(options.importance)
        return lambda picture: gain_map_from_picture(
            heat_map, grid=picture.grid(side), window=picture.window, step=step
        )
    if options.step is not None or options.grid is not None:
        raise ValueError(
            "--map-step and --map-grid shape a map. Ask for one: --guide, --roi, --importance, --prompt or "
            "--latent-guide."
        )
    return None


def _guide_maker(options: MapOptions, device: torch.device | str, side: int, step: int) -> MapMaker:
    guide = ShallowAttentionGuide.from_pretrained(resolve_model(options.clip or DEFAULT_CLIP))
    guide.vision_model.to(device)
    return lambda picture: quantize_importance(
        guide(picture.pixel_values[None]), grid=picture.grid(side), window=picture.padding, step=step
    )[0]


def _prompt_maker(options: MapOptions, prompt: str, device: torch.device | str) -> MapMaker:
    path = resolve_model(options.clip or DEFAULT_CLIP)
    clip = CLIPModel.from_pretrained(path).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(path)
    words = zero_shot_weights(clip, tokenizer, class_names=[prompt], templates=PROMPT_TEMPLATES)[0]
    side = options.grid or PROMPT_GRID
    depth = min(max(1, math.ceil(math.log2(side)) - 1), MAX_DEPTH)  # of windows that are halved
    step = options.step or MAP_STEP
    return lambda picture: quantize_importance(
        text_importance(clip, picture.pixel_values[None], words, depth=depth),
        grid=picture.grid(side),
        window=picture.padding,
        step=step,
    )[0]


def _latent_maker(path: Path, codec: PreTrainedModel | None, side: int, step: int) -> MapMaker:
    guide = LatentGuide.load(path)
    if codec is None or not codec.config.has_gains or guide.fingerprint != codec.fingerprint:
        raise ValueError(
            f"{path} foretells maps from the latents of another codec. Give the model it was trained for."
        )
    guide.to(codec.device)

    @torch.no_grad()
    def make(picture: PreparedPicture) -> GainMap:
        """From the latents of the padded picture, which the map spans, too."""
        pixels = picture.pixel_values[None].to(codec.device, codec.dtype)
        y = codec.g_a(pad_to_multiple(pixels, codec.config.size_divisor))
        return quantize_importance(guide(y.float()), grid=picture.grid(side), step=step)[0]

    return make


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
