"""LLaVA-NeXT pictures as tiles and as one canvas: bytes, and how far the features are from CLIP's on the pixels.

python scripts/evaluate_canvas.py --pictures DATA/kodak --models comneck-tiny-d1-q2 weights/comneck-tiny-cotam-q3
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, CLIPModel, LlavaNextImageProcessor

import comneck_hf
from comneck_hf.commands.evaluation_parts import environment
from comneck_hf.commands.loading import resolve_model
from comneck_hf.evaluation.intervals import bootstrap_interval, mean_of
from comneck_hf.evaluation.pictures import load_picture_folder, tensor_picture
from comneck_hf.models.clip_inputs import clip_inputs
from comneck_hf.models.codec_vision import CodecVisionModel
from comneck_hf.training.arguments import parse_arguments


WAYS = {"tiles": (False, "pooled"), "canvas, pooled": (True, "pooled"), "canvas, encoded": (True, "encoded")}
GRIDS = [(1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2)]  # rows and columns of tiles


@dataclass(kw_only=True)
class Arguments:
    """Models, pictures and output."""

    pictures: str = field(metadata={"help": "folder of picture files"})
    models: list[str] = field(default_factory=lambda: ["comneck-tiny-d1-q2"], metadata={"help": "ComNeck or CoTAM"})
    clip: str = field(default="comneck-tiny-clip", metadata={"help": "the CLIP of all models"})
    limit: int | None = field(default=None, metadata={"help": "the first so many pictures"})
    output: str = "results/canvas_tiny.json"


def build_processor(model: CodecVisionModel, *, code_canvas: bool, overview: str) -> comneck_hf.ComNeckNextProcessor:
    """What `llava_next_processor` makes for a LLaVA-NeXT with this tower."""
    size = model.config.image_size
    points = [[rows * size, columns * size] for rows, columns in GRIDS]
    cutter = LlavaNextImageProcessor(
        size={"shortest_edge": size}, crop_size=size, image_grid_pinpoints=points, do_normalize=False
    )
    tokenizer = AutoProcessor.from_pretrained(comneck_hf.pretrained("comneck-tiny-llava")).tokenizer
    reads_pictures = model.config.vision_config.reads_pictures
    processor = comneck_hf.ComNeckNextProcessor(
        cutter, tokenizer, code_canvas=code_canvas, overview=overview, reads_pictures=reads_pictures
    )
    processor.codec = model.coder
    return processor


def distances(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Relative Euclidean distance of the whole's tokens and of the tiles', `(tiles, tokens, width)`."""
    error, norm = (found - expected).square(), expected.square()
    return tuple(float((error[part].sum() / norm[part].sum()).sqrt()) for part in (slice(1), slice(1, None)))


@torch.no_grad()
def measure(model: CodecVisionModel, clip: CLIPModel, pictures: list[Image.Image], way: str) -> dict[str, Any]:
    """Means over pictures, with intervals: bytes, and distances behind the layer that LLaVA reads."""
    code_canvas, overview = WAYS[way]
    processor = build_processor(model, code_canvas=code_canvas, overview=overview)
    columns = []
    for picture in pictures:
        pixels = torch.as_tensor(processor.image_processor(picture, return_tensors="pt").pixel_values[0])
        expected = clip.vision_model(
            clip_inputs(pixels, clip.config.vision_config.image_size), output_hidden_states=-2
        )
        (bitstream,) = processor.compress(picture)
        views = processor(images=[bitstream], return_tensors="pt")["pixel_values"][0]
        found = model(views, output_hidden_states=-2)
        tokens = [outputs.hidden_states[-2][:, 1:] for outputs in (found, expected)]
        columns.append((len(bitstream), *distances(*tokens)))
    names = ("bytes", "distance_of_whole", "distance_of_tiles")
    row: dict[str, Any] = {"way": way}
    for name, values in zip(names, np.array(columns).T, strict=True):
        column = np.stack([values, np.ones_like(values)])
        row[name] = {"mean": mean_of(column), "interval": list(bootstrap_interval(column))}
    return row


def main(args: Arguments) -> None:
    pictures = [tensor_picture(picture) for picture in load_picture_folder(args.pictures, limit=args.limit)]
    clip = CLIPModel.from_pretrained(resolve_model(args.clip)).eval()
    rows = []
    for name in args.models:
        model = AutoModel.from_pretrained(resolve_model(name)).eval()
        rows += [{"model": Path(name).name, **measure(model, clip, pictures, way)} for way in WAYS]
    setting = {"pictures": f"{Path(args.pictures).name}, {len(pictures)}", "clip": args.clip, **environment()}
    Path(args.output).write_text(json.dumps({"setting": setting, "ways": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(parse_arguments(Arguments))
