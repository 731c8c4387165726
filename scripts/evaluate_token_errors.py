"""Compares necks by the errors of CLIP's patch tokens, on objects and around them (the paper's figure 7).

python scripts/evaluate_token_errors.py --data DATA/coco_eval_256 \\
    --models "progressive=runs/tiny/ablation-progressive/model" "distillation=runs/tiny/ablation-distillation/model"
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import CLIPModel, HfArgumentParser

from comneck_hf.commands.demo import demo_photograph
from comneck_hf.commands.loading import load_codec, load_model, resolve_model
from comneck_hf.evaluation.baselines import Baseline, Latents, Reconstruction
from comneck_hf.evaluation.intervals import mean_of
from comneck_hf.evaluation.machine import describe_machine
from comneck_hf.evaluation.measurements import measure
from comneck_hf.evaluation.pictures import picture_tensor
from comneck_hf.evaluation.plots import plot_error_maps
from comneck_hf.evaluation.token_errors import PLACES, TokenErrors, error_reduction, load_object_pictures


ANCHOR = "decoded pictures"


@dataclass
class Arguments:
    """Necks and pictures."""

    data: str = field(metadata={"help": "pictures with a column objects: coco_eval_256"})
    models: list[str] = field(metadata={"help": "NAME=FOLDER of models with the same codec"})
    clip: str = field(default="comneck-tiny-clip", metadata={"help": "that the models were made from"})
    photograph: str | None = field(default=None, metadata={"help": "picture of the maps, by default the packaged one"})
    output: str = field(default="results/token_errors_tiny.json", metadata={"help": "with a figure beside it"})


def load_systems(models: list[str]) -> list[Baseline]:
    """Decoded pictures of the first model's codec, then the models."""
    folders = dict(model.split("=", maxsplit=1) for model in models)
    codec = load_codec(next(iter(folders.values())))
    systems: list[Baseline] = [Reconstruction(codec, name=ANCHOR)]
    for name, folder in folders.items():
        model = load_model(folder)
        if model.codec.fingerprint != codec.fingerprint:
            raise ValueError(f"{folder} has another codec than {next(iter(folders.values()))}. Compare necks for one.")
        systems.append(Latents(model, name=name))
    return systems


@torch.no_grad()
def error_maps(task: TokenErrors, systems: list[Baseline], picture: torch.Tensor) -> dict[str, np.ndarray]:
    """Decibels by which the errors of each token of one picture are smaller than those of the decoded picture."""
    anchor, *others = (task.errors(system, system.receive(picture[None]), picture[None])[0] for system in systems)
    return {
        system.name: 10 * (anchor / found).log10().numpy() for system, found in zip(systems[1:], others, strict=True)
    }


def main(args: Arguments) -> None:
    systems = load_systems(args.models)
    clip = CLIPModel.from_pretrained(resolve_model(args.clip)).eval()
    vision = clip.config.vision_config
    side = systems[1].comneck.config.image_size
    objects = load_object_pictures(args.data, side=side, grid=vision.image_size // vision.patch_size)
    task = TokenErrors(clip, objects)
    columns = {system.name: measure(system, task) for system in systems}
    reductions = {name: error_reduction(columns[ANCHOR], found) for name, found in columns.items() if name != ANCHOR}
    facts = {"data": Path(args.data).name, "pictures": len(objects.images), "side": side, "layer": task.layer}
    facts["tokens_on_objects"] = objects.regions.float().mean().item()
    errors = {name: {place: mean_of(found[place]) for place in PLACES} for name, found in columns.items()}
    report = {"setting": facts | describe_machine(), "relative_errors": errors, "reductions": reductions}
    output = Path(args.output)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    with Image.open(args.photograph or demo_photograph()) as image:
        picture = ImageOps.fit(image.convert("RGB"), (side, side))
    plot_error_maps(
        output.with_suffix(".png"),
        picture=picture,
        maps=error_maps(task, systems, picture_tensor(picture)),
        bars=reductions,
        title=f"{facts['pictures']} pictures of {facts['data']}, hidden_states[{task.layer}]",
    )
    print(json.dumps(reductions, indent=1))


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
