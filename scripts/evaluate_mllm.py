"""Asks a LLaVA that was trained on pixels about pictures that arrive as latents: answers against bytes.

python scripts/evaluate_mllm.py --llava runs/llava/model --models runs/tiny/d?-q?/model --data DATA/caltech101_144 \
    --questions_data DATA/easy_vqa --pooled runs/llava-4stage/model

Its language model and projector are never changed: every ComNeck tower is attached as it is.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

import comneck_hf
from comneck_hf.evaluation.answers import (
    Question,
    coded_features,
    generate_answers,
    pixel_features,
    score_answers,
    spread,
)
from comneck_hf.evaluation.plots import plot_answers
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.llavolta.modeling_llavolta import LlavoltaForConditionalGeneration
from comneck_hf.training.arguments import parse_arguments
from comneck_hf.training.conversations import NAMING_QUESTIONS, load_questions
from comneck_hf.training.data import load_sample


@dataclass(kw_only=True)
class Arguments:
    """Models, data and output."""

    llava: str = field(metadata={"help": "folder of the LLaVA that was trained on pixels"})
    models: list[str] = field(metadata={"help": "folders of ComNeck models"})
    data: str = field(metadata={"help": "labelled pictures with the split validation"})
    questions_data: str = field(metadata={"help": "easy-VQA pack with the split test"})
    pooled: str | None = field(default=None, metadata={"help": "folder of a LLaVA trained with LLaVolta's schedule"})
    strides: list[int] = field(default_factory=lambda: [1, 2, 4, 8], metadata={"help": "tokens that become one"})
    pool_layer: int = 1
    questions: int = field(default=2000, metadata={"help": "questions and pictures of each task"})
    output: str = "results/mllm_tiny.json"
    figure: str = "results/mllm_tiny.png"


@dataclass(frozen=True)
class Task:
    """Pictures, and questions about them."""

    pictures: torch.Tensor
    questions: list[Question]


def load_tasks(args: Arguments, size: int) -> dict[str, Task]:
    """Questions of easy-VQA's test split, and the names of the validation split's pictures."""
    shapes = load_questions(args.questions_data, "test", size=size)
    asked = [Question(index, *turn) for index, turns in enumerate(shapes.turns) for turn in turns]
    photographs = load_sample(args.data, "validation", args.questions, side=size)
    names = [photographs.class_names[label] for label in photographs.labels.tolist()]
    return {
        "vqa": Task(shapes.images, spread(asked, args.questions)),
        "naming": Task(photographs.images, [Question(i, NAMING_QUESTIONS[0], name) for i, name in enumerate(names)]),
    }


def scores(
    llava: PreTrainedModel, processor: ProcessorMixin, features: dict[str, list[torch.Tensor]], tasks: dict[str, Task]
) -> dict[str, Any]:
    """Right answers per task."""
    return {
        name: score_answers(generate_answers(llava, processor, features[name], task.questions), task.questions)
        for name, task in tasks.items()
    }


def measure_towers(
    args: Arguments, llava: PreTrainedModel, processor: ProcessorMixin, tasks: dict[str, Task]
) -> list[dict[str, Any]]:
    """One row for the originals, and two per model: its latents, and its decoded pictures through the whole CLIP."""
    original = {name: pixel_features(llava, processor, task.pictures) for name, task in tasks.items()}
    rows = [{"source": "original", **scores(llava, processor, original, tasks)}]
    for folder in args.models:
        comneck = ComNeckModel.from_pretrained(folder).eval()
        attached = comneck_hf.attach_vision_tower(copy.deepcopy(llava), comneck.vision_model)
        latents, decoded, rates = {}, {}, []
        for name, task in tasks.items():
            latents[name], pictures, rate = coded_features(attached, comneck, task.pictures)
            decoded[name] = pixel_features(llava, processor, pictures)
            rates.append(rate)
        facts = {"scenario": comneck.config.scenario, "quality": comneck.config.quality}
        facts |= {"bytes_per_picture": sum(rates) / len(rates), "bytes": dict(zip(tasks, rates, strict=True))}
        rows.append({"source": "latents", **facts, **scores(llava, processor, latents, tasks)})
        rows.append({"source": "reconstruction", **facts, **scores(llava, processor, decoded, tasks)})
    return rows


def measure_strides(
    args: Arguments, llavas: dict[str, PreTrainedModel], processor: ProcessorMixin, tasks: dict[str, Task]
) -> list[dict[str, Any]]:
    """Right answers from pixels at every stride, of models trained without and with the schedule."""
    rows = []
    for name, llava in llavas.items():
        features = {task: pixel_features(llava, processor, tasks[task].pictures) for task in tasks}
        if not isinstance(llava, LlavoltaForConditionalGeneration):
            comneck_hf.pool_visual_tokens(llava, pool_stride=1)
        for stride in args.strides:
            llava.set_visual_pooling(args.pool_layer, stride)
            facts = {"trained": name, "pool_layer": args.pool_layer, "pool_stride": stride}
            rows.append({**facts, **scores(llava, processor, features, tasks)})
    return rows


def main(args: Arguments) -> None:
    llava = AutoModelForImageTextToText.from_pretrained(args.llava).eval()
    processor = AutoProcessor.from_pretrained(args.llava)
    size = ComNeckModel.config_class.from_pretrained(args.models[0]).image_size
    tasks = load_tasks(args, size)
    rows = measure_towers(args, llava, processor, tasks)
    llavas = {"without schedule": llava}
    if args.pooled:
        llavas["with schedule"] = AutoModelForImageTextToText.from_pretrained(args.pooled).eval()
    results = {
        "setting": {
            "data": [Path(args.data).name, Path(args.questions_data).name],
            "questions": {name: len(task.questions) for name, task in tasks.items()},
            "torch": torch.__version__,
        },
        "towers": rows,
        "strides": measure_strides(args, llavas, processor, tasks),
    }
    Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    titles = {"vqa": "questions about drawn shapes", "naming": "names of photographs"}
    plot_answers(rows, args.figure, tasks=titles)


if __name__ == "__main__":
    main(parse_arguments(Arguments))
