"""Counts latents that differ between encoder and decoder over all pairs of settings. Must be 0 for our codecs.

python scripts/check_exactness.py --tiny_pictures DATA/caltech101_144 --pictures DATA/imagenet_sample_256

Needs about 25 minutes on two cores. CompressAI's `elic2022-chandelier` with the same weights goes through the same
check, encoded under the reference setting only: it shows that the check can fail.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser

from comneck_hf.commands.loading import resolve_model
from comneck_hf.evaluation.exactness import REFERENCE, all_settings, for_compressai
from comneck_hf.evaluation.exactness_runs import check_exactness
from comneck_hf.evaluation.machine import describe_machine
from comneck_hf.evaluation.pictures import load_pictures
from comneck_hf.evaluation.reference_codec import TRAINING_PICTURES, load_reference_codec
from comneck_hf.training.augmentation import random_crops


@dataclass
class Arguments:
    """Pictures, codecs and sizes."""

    pictures: str = field(
        metadata={"help": "imagenet_sample_256: trains the reference codec, and is coded at full width"}
    )
    tiny_pictures: str = field(metadata={"help": "caltech101_144, for the tiny codec"})
    codec: str = field(default="runs/reference-codec", metadata={"help": "full-width codec, trained when missing"})
    tiny_codec: str = field(default="comneck-tiny-d1-q2", metadata={"help": "trained model"})
    count: int = field(default=240, metadata={"help": "pictures for the full-width codec"})
    tiny_count: int = field(default=1008, metadata={"help": "pictures for the tiny codec"})
    compressai_count: int = field(default=96, metadata={"help": "pictures for CompressAI at each size"})
    processes: int = field(default=2, metadata={"help": "worker processes at a time"})
    output: str = "results/exactness.json"


def pictures_128(path: str, *, split: str, start: int, count: int) -> torch.Tensor:
    """uint8 `(count, 3, 128, 128)`: random windows, several of each picture where there are too few."""
    images = load_pictures(path, split=split, start=start, stop=start + count)
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    return (random_crops(images, 128, generator=torch.Generator().manual_seed(0)) * 255).round().to(torch.uint8)


def main(args: Arguments) -> None:
    load_reference_codec(args.codec, args.pictures)
    cases = {
        "tiny": (
            resolve_model(args.tiny_codec),
            pictures_128(args.tiny_pictures, split="train", start=0, count=args.tiny_count),
        ),
        "full_width": (
            args.codec,
            pictures_128(args.pictures, split="train", start=TRAINING_PICTURES, count=args.count),
        ),
    }
    settings = all_settings()
    report = {"machine": describe_machine(), "settings": [asdict(setting) for setting in settings], "codecs": {}}
    for name, (codec, pictures) in cases.items():
        for system, encoders, decoders, count in (
            ("comneck_hf", settings, settings, len(pictures)),
            ("compressai", [REFERENCE], for_compressai(settings), args.compressai_count),
        ):
            begin = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                result = check_exactness(
                    codec,
                    pictures[:count],
                    folder=folder,
                    encoders=encoders,
                    decoders=decoders,
                    system=system,
                    processes=args.processes,
                )
            result["minutes"] = round((time.monotonic() - begin) / 60, 1)
            report["codecs"].setdefault(name, {})[system] = result
            Path(args.output).parent.mkdir(parents=True, exist_ok=True)
            Path(args.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(name, system, json.dumps({**result["total"], "minutes": result["minutes"]}))
    if not all(codec["comneck_hf"]["exact"] for codec in report["codecs"].values()):
        raise SystemExit("Latents differ between settings; see inexact_pairs in the report.")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
