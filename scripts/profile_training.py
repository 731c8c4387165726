"""Measures throughput and step times of the trainings at the tiny sizes: results/training.json.

python scripts/profile_training.py --data DATA/caltech101_144 --shapes_data DATA/easy_vqa
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import CLIPModel, HfArgumentParser

import comneck_hf
from comneck_hf.commands.loading import resolve_model
from comneck_hf.evaluation.machine import describe_machine
from comneck_hf.evaluation.training_speed import full_size_gigaflops, step_times
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.restoration_elic import restore_entropy_networks
from comneck_hf.training.arguments import RunArguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.clip_objective import BalancedPictures, ClipObjective, clip_stages
from comneck_hf.training.data import ImagePack, load_pack, load_shapes_pack, picture_loader, training_pictures
from comneck_hf.training.latents import CodedPictures, Variants, coded_latents, teacher_targets
from comneck_hf.training.objective import CodecObjective, codec_terms
from comneck_hf.training.stages import PRESETS, Stage, codec_stages, comneck_stages
from comneck_hf.training.surrogate import ComNeckObjective, teacher_features


Times = dict[str, float]


@dataclass
class Arguments:
    """Data, models and repeats."""

    data: str = field(metadata={"help": "caltech101_144"})
    shapes_data: str = field(metadata={"help": "easy_vqa"})
    model: str = field(default="comneck-tiny-d1-q2", metadata={"help": "trained model"})
    clip: str = field(default="comneck-tiny-clip", metadata={"help": "packaged CLIP"})
    steps: int = 10
    cache_dir: str = field(default="runs/profile", metadata={"help": "keeps one coded pass over some pictures"})
    output: str = "results/training.json"


def profile_clip(args: Arguments, run: RunArguments) -> Times:
    """The last resolution of the vision tower."""
    photos = load_pack(args.data, "train")
    shapes = load_shapes_pack(args.shapes_data, "train", size=photos.images.shape[-1])
    pictures = BalancedPictures(photos, shapes, Augmentation(112, jitter=0.3))
    stages = clip_stages(text_steps=1, guide_steps=1, vision_steps=[1], resolutions=[112])
    objective = ClipObjective(pictures.source.class_names, ["a photo of a {}."], stages)
    return step_times(objective, picture_loader(pictures, batch_size=48), stages[-1], run, steps=args.steps, parts={})


def profile_codec(args: Arguments, run: RunArguments, *, reading: str) -> Times:
    """The last stage of a codec, on windows of 128 pixels."""
    codec = restore_entropy_networks(ElicModel.from_pretrained(resolve_model(args.model)))
    objective = CodecObjective(codec, codec_stages(codec.config.lmbda), torch.zeros(1))
    pictures = training_pictures(args.data, Augmentation(128, "window"), reading=reading)
    stage = objective.stages[-1]
    parts = {"codec": lambda batch: codec_terms(codec, batch["pixel_values"], stage)}
    return step_times(objective, picture_loader(pictures, batch_size=8), stage, run, steps=args.steps, parts=parts)


def profile_comneck(
    args: Arguments,
    run: RunArguments,
    *,
    scenario: str,
    name: str,
    batch_size: int,
    attention: str | None = None,
) -> Times:
    """One stage of a neck: `"align"`, `"align, coded"` on crops that were coded before, or `"joint"`."""
    clip = CLIPModel.from_pretrained(comneck_hf.pretrained(args.clip)).eval()
    model = ComNeckModel.from_pretrained(resolve_model(args.model), attn_implementation=attention)
    model.codec = restore_entropy_networks(model.codec)
    pack, augmentation = load_pack(args.data, "train"), Augmentation(128, jitter=0.3)
    stages = comneck_stages(scenario, PRESETS["paper"], lmbda=0.5)
    weights = torch.randn(len(pack.class_names), model.config.projection_dim)
    objective = ComNeckObjective(model, clip, stages, zero_shot_weights=weights)
    stage = next(stage for stage in stages if stage.name == name.partition(",")[0])
    pictures: Dataset = training_pictures(args.data, augmentation, reading="memory")
    parts = {
        "codec": lambda batch: run_codec(model, batch["pixel_values"], stage),
        "teacher": lambda batch: teacher_features(clip, batch["pixel_values"], objective.targets),
    }
    if "coded" in name:
        count = batch_size * (args.steps + 1)
        some = ImagePack(pack.images[:count], pack.labels[:count], pack.class_names)
        variants = Variants(some, augmentation, 1)
        latents = coded_latents(model.codec, variants, args.cache_dir)
        embeddings = teacher_targets(clip, variants, args.cache_dir, objective.targets)
        pictures, parts = CodedPictures([latents, embeddings], some.labels), {}
    loader = picture_loader(pictures, batch_size=batch_size)
    return step_times(objective, loader, stage, run, steps=args.steps, parts=parts)


def run_codec(model: ComNeckModel, pixel_values: torch.Tensor, stage: Stage) -> object:
    """What the codec does in a stage."""
    if stage.name == "joint":
        return codec_terms(model.codec, pixel_values, stage)
    return model.codec.encode(pixel_values)


def main(args: Arguments) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    run, half = RunArguments(output_dir=""), RunArguments(output_dir="", mixed_precision="bf16")
    coded = partial(profile_comneck, args, scenario="d1", name="align, coded", batch_size=48)
    trainings = {
        "clip at 112 pixels": profile_clip(args, run),
        "codec, pictures in memory": profile_codec(args, run, reading="memory"),
        "codec, pictures decoded when needed": profile_codec(args, run, reading="rows"),
        "d1 align, fresh crops": profile_comneck(args, run, scenario="d1", name="align", batch_size=48),
        "d1 align, crops coded once": coded(run),
        "d1 align, crops coded once, bf16": coded(half),
        "d1 align, crops coded once, bf16 and eager attention": coded(half, attention="eager"),
        "d2 joint": profile_comneck(args, run, scenario="d2", name="joint", batch_size=16),
        "d3 joint": profile_comneck(args, run, scenario="d3", name="joint", batch_size=16),
    }
    results = {
        "machine": describe_machine(),
        "threads": 1,
        "unit": "median milliseconds of a step; parts of the forward pass were measured by themselves",
        "trainings": {
            name: {part: round(time, 2) for part, time in times.items()} for name, times in trainings.items()
        },
        "full_size_gigaflops_per_picture": {name: round(value, 1) for name, value in full_size_gigaflops().items()},
    }
    Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
