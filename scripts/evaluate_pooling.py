"""Right answers of a LLaVA when its visual tokens are pooled, trained with and without LLaVolta's schedule.

python scripts/evaluate_pooling.py --llava runs/llava/model --pooled runs/llava-4stage/model \
    --data DATA/caltech101_144 --questions_data DATA/easy_vqa
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import comneck_hf
from comneck_hf.commands.evaluation_parts import Parts, environment
from comneck_hf.evaluation.baselines import Original
from comneck_hf.evaluation.intervals import bootstrap_interval, mean_of
from comneck_hf.evaluation.measurements import measure
from comneck_hf.evaluation.plots import plot_strides
from comneck_hf.models.llavolta.modeling_llavolta import LlavoltaForConditionalGeneration
from comneck_hf.training.arguments import parse_arguments


@dataclass(kw_only=True)
class Arguments:
    """Models, data and output."""

    llava: str = field(metadata={"help": "folder of a LLaVA that was trained without pooling"})
    pooled: str | None = field(default=None, metadata={"help": "folder of a LLaVA trained with LLaVolta's schedule"})
    data: str = field(metadata={"help": "labelled pictures with the split validation"})
    questions_data: str = field(metadata={"help": "easy-VQA pack with the split test"})
    model: str = field(default="comneck-tiny-d1-q2", metadata={"help": "ComNeck whose picture size is taken"})
    strides: list[int] = field(default_factory=lambda: [1, 2, 4, 8], metadata={"help": "tokens that become one"})
    pool_layer: int = 1
    pictures: int = field(default=2000, metadata={"help": "pictures that are named"})
    questions: int = field(default=2000, metadata={"help": "questions that are asked"})
    output: str = "results/pooling_tiny.json"
    figure: str = "results/pooling_tiny.png"


def measure_strides(args: Arguments, trained: str, folder: str) -> list[dict[str, Any]]:
    """One row per task and stride."""
    parts = Parts(
        models=[args.model],
        data=args.data,
        pictures=args.pictures,
        questions_data=args.questions_data,
        questions=args.questions,
        llava=folder,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    rows = []
    for task in (parts.task("naming"), parts.task("questions")):
        if not isinstance(task.llava, LlavoltaForConditionalGeneration):
            comneck_hf.pool_visual_tokens(task.llava, pool_stride=1)
        for stride in args.strides:
            task.llava.set_visual_pooling(args.pool_layer, stride)
            column = measure(Original(), task)["accuracy"]
            facts = {"trained": trained, "task": task.name, "pool_layer": args.pool_layer, "pool_stride": stride}
            rows.append({**facts, "accuracy": mean_of(column), "interval": list(bootstrap_interval(column))})
    return rows


def main(args: Arguments) -> None:
    llavas = {"without schedule": args.llava} | ({"with schedule": args.pooled} if args.pooled else {})
    rows = [row for trained, folder in llavas.items() for row in measure_strides(args, trained, folder)]
    data = {"naming": Path(args.data).name, "questions": Path(args.questions_data).name}
    counts = {"pictures": args.pictures, "questions": args.questions}
    results = {"setting": {"data": data, **counts, **environment()}, "strides": rows}
    Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot_strides(rows, args.figure)


if __name__ == "__main__":
    main(parse_arguments(Arguments))
