"""Compares models that serve every rate with models that were trained for one rate each, and with decoded pictures.

python scripts/evaluate_any_rate.py --data DATA/caltech101_144 --questions_data DATA/easy_vqa \\
    --one_rate d1=weights/comneck-tiny-d1-q1 d1=comneck-tiny-d1-q2 d3=weights/comneck-tiny-d3-q1 \\
    --any_rate "d1, any rate=runs/tiny/d1-anyrate/model" cotam=weights/comneck-tiny-cotam-q3

Every FOLDER after --one_rate is a point on the curve of its name, every one after --any_rate a curve over all gains.
Decoded pictures are of the codecs of the first name after --one_rate, and of the first model after --any_rate.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import HfArgumentParser

from comneck_hf.commands.evaluation_parts import Parts, environment
from comneck_hf.commands.loading import load_codec, load_model
from comneck_hf.evaluation.baselines import Baseline, Latents, Original, Reconstruction
from comneck_hf.evaluation.measurements import measure_all, summarize
from comneck_hf.evaluation.plots import plot_tasks


DECODED, DECODED_ANY = "reconstruction", "reconstruction, one codec"


@dataclass
class Arguments:
    """Models, pictures and rates."""

    data: str = field(metadata={"help": "labelled pictures"})
    one_rate: list[str] = field(metadata={"help": "NAME=FOLDER of models at the rate they were trained for"})
    any_rate: list[str] = field(metadata={"help": "NAME=FOLDER of models that are measured at all gains"})
    gains: list[float] = field(
        default_factory=lambda: [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5], metadata={"help": "in octaves"}
    )
    pictures: int = field(default=1000, metadata={"help": "at most so many"})
    tasks: list[str] = field(default_factory=lambda: ["zero-shot", "questions"], metadata={"help": "of comneck eval"})
    llava: str = field(default="comneck-tiny-llava", metadata={"help": "that answers questions"})
    questions_data: str | None = field(default=None, metadata={"help": "pictures with questions"})
    questions: int = field(default=800, metadata={"help": "at most so many"})
    clip: str = field(default="comneck-tiny-clip", metadata={"help": "that the models were made from"})
    output: str = field(default="results/any_rate_tiny.json", metadata={"help": "with a figure beside it"})
    work_dir: str | None = field(default=None, metadata={"help": "keeps what is done, by default OUTPUT, no suffix"})


def named(models: list[str]) -> list[tuple[str, str]]:
    """Curves and folders of `NAME=FOLDER`.

    Raises:
        ValueError: If one has no name.
    """
    pairs = [tuple(model.split("=", maxsplit=1)) for model in models]
    unnamed = [pair[0] for pair in pairs if len(pair) == 1]
    if unnamed:
        raise ValueError(f"Models are given as NAME=FOLDER, got {unnamed}.")
    return pairs


def latents(folder: str, name: str, gain: float | None = None) -> Latents:
    """A model as a point on the curve of this name."""
    return Latents(load_model(folder).to(memory_format=torch.channels_last), name=name, gain=gain)


def decoded(folder: str, name: str, gain: float | None = None) -> Reconstruction:
    """The pictures of a model's codec as a point on the curve of this name."""
    codec = load_codec(folder).to(memory_format=torch.channels_last)
    quality = f"q{codec.config.quality}" if codec.config.quality else ""
    return Reconstruction(codec, name=name, quality=quality, gain=gain)


def systems(args: Arguments) -> list[Callable[[], Baseline]]:
    """What builds the points of all curves."""
    one_rate, any_rate = named(args.one_rate), named(args.any_rate)
    shown = [folder for name, folder in one_rate if name == one_rate[0][0]]
    builders: list[Callable[[], Baseline]] = [Original, *(partial(decoded, folder, DECODED) for folder in shown)]
    builders += [partial(decoded, any_rate[0][1], DECODED_ANY, gain) for gain in args.gains]
    builders += [partial(latents, folder, name) for name, folder in one_rate]
    return builders + [partial(latents, folder, name, gain) for name, folder in any_rate for gain in args.gains]


def main(args: Arguments) -> None:
    builders = systems(args)
    parts = Parts(
        models=[folder for _, folder in named(args.one_rate + args.any_rate)],
        clip=args.clip,
        data=args.data,
        pictures=args.pictures,
        llava=args.llava,
        questions_data=args.questions_data,
        questions=args.questions,
        gains=args.gains,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    output = Path(args.output)
    folder = Path(args.work_dir) if args.work_dir else output.with_suffix("")
    points = measure_all(builders, [parts.task(name) for name in args.tasks], folder=folder)
    tasks = summarize(points, anchors=[DECODED, DECODED_ANY, named(args.one_rate)[0][0]])
    for name, found in tasks.items():
        found |= parts.data_of(name)
    setting = parts.setting() | environment()
    output.write_text(json.dumps({"setting": setting, "tasks": tasks}, indent=1) + "\n", encoding="utf-8")
    plot_tasks(tasks, output.with_suffix(".png"))
    against = {name: found[f"against_{DECODED}"] for name, found in tasks.items()}
    print(json.dumps(against, indent=1))


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
