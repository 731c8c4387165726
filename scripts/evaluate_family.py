"""Measures models of all scenarios and rates: accuracy and distortion over real bytes, one table and one figure.

python scripts/evaluate_family.py --models runs/tiny/d?-q?/model --clip comneck-tiny-clip --data DATA/caltech101_144
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPModel

import comneck_hf
from comneck_hf.evaluation.curves import bd_rate, values_at_equal_bytes
from comneck_hf.evaluation.plots import plot_rate_accuracy
from comneck_hf.evaluation.rate_accuracy import measure_accuracy, measure_codec
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.training.arguments import parse_arguments
from comneck_hf.training.data import load_sample
from comneck_hf.training.zero_shot import load_class_prompts, zero_shot_weights


@dataclass
class Arguments:
    """Models, data and output."""

    models: list[str] = field(metadata={"help": "folders of ComNeck models"})
    data: str = field(metadata={"help": "labelled image data set"})
    split: str = "validation"
    clip: str = field(default="comneck-tiny-clip", metadata={"help": "packaged name or folder of their CLIP"})
    pictures: int = field(default=1_000_000, metadata={"help": "pictures of the split, all of them by default"})
    distortion_pictures: int = 200
    output: str = "results/rate_accuracy_tiny.json"
    figure: str = "results/rate_accuracy_tiny.png"


def measure(args: Arguments) -> list[dict[str, Any]]:
    """One row per model."""
    folder = args.clip if Path(args.clip).is_dir() else comneck_hf.pretrained(args.clip)
    clip, rows = CLIPModel.from_pretrained(folder).eval(), []
    for name in args.models:
        model = ComNeckModel.from_pretrained(name).eval()
        pack = load_sample(args.data, args.split, args.pictures, side=model.config.image_size)
        weights = zero_shot_weights(
            clip,
            AutoTokenizer.from_pretrained(folder),
            class_names=pack.class_names,
            templates=load_class_prompts(folder).templates,
        )
        step = max(1, len(pack) // args.distortion_pictures)
        rows.append(
            {
                "scenario": model.config.scenario,
                "quality": model.config.quality,
                **measure_accuracy(model, clip, pack.images, pack.labels, zero_shot_weights=weights),
                "psnr": measure_codec(model.codec, pack.images[::step])["psnr"],
            }
        )
    return sorted(rows, key=lambda row: (row["scenario"], row["quality"]))


def collect_curves(rows: list[dict[str, Any]], value: str, *, decoded: str | None = None) -> dict[str, list[Any]]:
    """Curves of a value over bytes by scenario; `decoded` names the value of the decoded pictures of d1."""
    curves: dict[str, list[Any]] = {}
    for row in rows:
        curves.setdefault(row["scenario"], []).append((row["bytes_per_picture"], row[value]))
        if decoded and row["scenario"] == "d1":
            curves.setdefault("reconstruction", []).append((row["bytes_per_picture"], row[decoded]))
    return curves


def compare(curves: dict[str, list[Any]]) -> list[dict[str, float]] | str:
    """Values at equal bytes, or why the curves cannot be compared: the measurements are kept either way."""
    try:
        return values_at_equal_bytes(curves)
    except ValueError as error:
        return str(error)


def savings(curves: dict[str, list[Any]]) -> dict[str, dict[str, float | str] | str]:
    """BD-rate of every scenario against the decoded pictures of d1, or why there is none."""
    found: dict[str, dict[str, float | str] | str] = {}
    for name in sorted(set(curves) - {"reconstruction"}):
        try:
            found[name] = asdict(bd_rate(curves["reconstruction"], curves[name]))
        except ValueError as error:
            found[name] = str(error)
    return found


def main(args: Arguments) -> None:
    rows = measure(args)
    accuracy = collect_curves(rows, "latents_top1", decoded="decoded_top1")
    seen = {name: curve for name, curve in collect_curves(rows, "psnr").items() if name != "d3"}
    results = {
        "setting": {
            "data": Path(args.data).name,
            "split": args.split,
            "clip": Path(args.clip).name,
            "torch": torch.__version__,
        },
        "models": rows,
        "top1_at_equal_bytes": compare(accuracy),
        "psnr_at_equal_bytes": compare(seen),
        "bd_rate_against_reconstruction": savings(accuracy) if "reconstruction" in accuracy else {},
    }
    Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    plot_rate_accuracy(accuracy, args.figure, original=rows[0]["original_top1"])


if __name__ == "__main__":
    main(parse_arguments(Arguments))
