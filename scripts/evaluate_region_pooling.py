"""Right answers of a LLaVA whose visual tokens are pooled by the map in the bitstream, and everywhere alike.

python scripts/evaluate_region_pooling.py --data DATA/caltech101_144 --questions_data DATA/easy_vqa

The model is a CoTAM; tokens are pooled in front of the language model, which need not be trained for it.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import HfArgumentParser, PreTrainedModel

from comneck_hf import attach_vision_tower, image_features, pool_visual_tokens
from comneck_hf.commands.evaluation_parts import Parts, environment
from comneck_hf.commands.loading import load_model
from comneck_hf.evaluation.answers import generate_answers
from comneck_hf.evaluation.intervals import Columns
from comneck_hf.evaluation.measurements import Point, summarize
from comneck_hf.evaluation.plots import plot_tasks
from comneck_hf.evaluation.tasks import Questions


BATCH = 64  # pictures
UNIFORM, REGIONS = "uniform", "by the map"


@dataclass(kw_only=True)
class Arguments:
    """Models, data and strides."""

    data: str = field(metadata={"help": "labelled pictures with the split validation"})
    questions_data: str = field(metadata={"help": "pictures with questions"})
    model: str = field(default="weights/comneck-tiny-cotam-q3", metadata={"help": "CoTAM that codes the pictures"})
    llava: str = field(default="comneck-tiny-llava", metadata={"help": "that answers"})
    strides: list[int] = field(default_factory=lambda: [1, 2, 4, 8], metadata={"help": "of all tokens alike"})
    region_strides: list[str] = field(
        default_factory=lambda: ["2,1,1", "2,2,1", "4,2,1", "4,4,1", "8,4,1", "8,4,2"],
        metadata={"help": "BELOW,AT,ABOVE: of cells with fewer, as many and more bits"},
    )
    pictures: int = field(default=1000, metadata={"help": "pictures that are named, at most"})
    questions: int = field(default=800, metadata={"help": "questions that are asked, at most"})
    output: str = field(default="results/region_pooling_tiny.json", metadata={"help": "with a figure beside it"})


def parse_strides(words: Sequence[str]) -> list[tuple[int, ...]]:
    """Strides of `BELOW,AT,ABOVE`.

    Raises:
        ValueError: If one is something else.
    """
    wrong = [word for word in words if len(word.split(",")) != 3 or not word.replace(",", "").isdigit()]
    if wrong:
        raise ValueError(f"Strides of regions are given as BELOW,AT,ABOVE, such as 4,2,1; got {wrong}.")
    return [tuple(map(int, word.split(","))) for word in words]


@torch.no_grad()
def answer_pooled(llava: PreTrainedModel, task: Questions, bitstreams: Sequence[bytes]) -> Columns:
    """`tokens` of each picture that are left, and the `accuracy` of the answers about it."""
    batches = (bitstreams[first : first + BATCH] for first in range(0, len(bitstreams), BATCH))
    features = [image for batch in batches for image in image_features(llava, bitstreams=batch).images]
    answers = generate_answers(task.llava, task.processor, features, task.questions)
    accuracy = np.zeros((2, len(features)))
    for question, answer in zip(task.questions, answers, strict=True):
        accuracy[:, question.picture] += (100 * task.judge(answer, question), 1)
    lengths = [float(len(image)) for image in features]
    return {"tokens": np.stack([lengths, np.ones(len(lengths))]), "accuracy": accuracy}


def measure(args: Arguments, parts: Parts, names: Sequence[str]) -> list[Point]:
    """The points of both curves on the tasks of these names."""
    model = load_model(args.model)
    settings: list[tuple[str, str, dict[str, Any]]] = [
        (UNIFORM, str(stride), {"pool_stride": stride}) for stride in args.strides
    ]
    settings += [
        (REGIONS, ",".join(map(str, strides)), {"pool_stride": 1, "region_strides": strides})
        for strides in parse_strides(args.region_strides)
    ]
    points = []
    for name in names:
        task = parts.task(name)
        pictures = task.pictures / 255
        batches = tqdm(range(0, len(pictures), BATCH), desc=f"{name}: coded")
        bitstreams = [data for first in batches for data in model.compress(pictures[first : first + BATCH])]
        llava = attach_vision_tower(copy.deepcopy(task.llava), model)
        for curve, strides, options in tqdm(settings, desc=f"{name}: answered"):
            pool_visual_tokens(llava, pool_layer=0, **options)
            points.append(Point(name, curve, strides, answer_pooled(llava, task, bitstreams)))
    return points


def main(args: Arguments) -> None:
    parse_strides(args.region_strides)  # what is wrong is told before anything is measured
    parts = Parts(
        models=[args.model],
        data=args.data,
        pictures=args.pictures,
        llava=args.llava,
        questions_data=args.questions_data,
        questions=args.questions,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    points = measure(args, parts, ["naming", "questions"])
    tasks = summarize(points, anchors=[UNIFORM], rate="tokens")
    for name, found in tasks.items():
        found |= parts.data_of(name)
    output = Path(args.output)
    results = {"setting": parts.setting() | environment(), "tasks": tasks}
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot_tasks(tasks, output.with_suffix(".png"), rate="tokens")
    print(json.dumps({name: found[f"against_{UNIFORM}"] for name, found in tasks.items()}, indent=1))


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
