"""Compares codecs that code at every rate with codecs that were trained for one rate each: bytes, PSNR, MS-SSIM.

python scripts/evaluate_variable_rate.py --pictures DATA/kodak --separate runs/tiny/codec-q?/model \\
    --codecs "latent gain=runs/tiny/codec-q3/model" "gain vectors=runs/tiny/codec-variable/model"
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from transformers import HfArgumentParser

from comneck_hf.evaluation.baselines import Reconstruction
from comneck_hf.evaluation.machine import describe_machine
from comneck_hf.evaluation.measurements import measure_all, summarize
from comneck_hf.evaluation.pictures import load_picture_folder
from comneck_hf.evaluation.plots import plot_curves
from comneck_hf.evaluation.tasks import Distortion
from comneck_hf.models.comneck.codec_owner import codec_from_pretrained


SEPARATE = "separate"


@dataclass
class Arguments:
    """Codecs, pictures and rates."""

    pictures: str = field(metadata={"help": "folder of picture files, coded whole"})
    separate: list[str] = field(metadata={"help": "folders of codecs, measured at the rate they were trained for"})
    codecs: list[str] = field(metadata={"help": "NAME=FOLDER of codecs, measured at all gains"})
    gains: list[float] = field(
        default_factory=lambda: [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0], metadata={"help": "in octaves"}
    )
    output: str = field(default="results/variable_rate_tiny.json", metadata={"help": "with a figure beside it"})
    work_dir: str | None = field(default=None, metadata={"help": "keeps what is done, by default OUTPUT, no suffix"})


def baseline(folder: str, name: str, gain: float | None = None) -> Reconstruction:
    """A codec as a point on the curve of this name."""
    codec = codec_from_pretrained(folder)
    return Reconstruction(codec, name=name, quality=f"q{codec.config.quality}", gain=gain)


def main(args: Arguments) -> None:
    builders = [partial(baseline, folder, SEPARATE) for folder in args.separate]
    for name, _, folder in (codec.partition("=") for codec in args.codecs):
        builders += [partial(baseline, folder, name, gain) for gain in args.gains]
    output = Path(args.output)
    folder = Path(args.work_dir) if args.work_dir else output.with_suffix("")
    points = measure_all(builders, [Distortion(load_picture_folder(args.pictures))], folder=folder)
    tasks = summarize(points, anchors=[SEPARATE])
    for found in tasks.values():
        found["data"] = Path(args.pictures).name
    setting = {"gains": args.gains, **describe_machine()}
    output.write_text(json.dumps({"setting": setting, "tasks": tasks}, indent=1) + "\n", encoding="utf-8")
    panels = {
        f"{found['pictures']} pictures of {found['data']}, {value}": (found["systems"], value)
        for found in tasks.values()
        for value in ("psnr-rgb", "ms-ssim-rgb")
    }
    plot_curves(panels, output.with_suffix(".png"), rate="bpp")
    print(json.dumps({name: found[f"against_{SEPARATE}"] for name, found in tasks.items()}))


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
