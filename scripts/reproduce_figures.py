"""Measures the comneck-tiny family and its ablations, and draws the figures of results/.

python scripts/reproduce_figures.py --data DATA --jobs 2

The family is that of weights/; the ablations are what scripts/reproduce_tiny.py trained, and left out where it has
not. What `comneck eval` measured with the same weights is kept in RUNS/eval, so that the command can be repeated.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import HfArgumentParser

from comneck_hf import CotamModel


ROOT = Path(__file__).parents[1]
SCENARIOS, QUALITIES = ("d1", "d2", "d3"), (1, 2, 3, 4)
COMNECK = str(Path(sys.executable).with_name("comneck"))
COTAM = ROOT / "weights" / "comneck-tiny-cotam-q3"
# Changes of the packed CoTAM that need no training
WITHOUT_MAP, SMALL_MAP, DEEP_GUIDE = "cotam-without-map", "cotam-small-map", "cotam-deep-guide"
WITHOUT_ADAPTER = "cotam-without-adapter"
COTAM_CHANGES: dict[str, dict[str, Any]] = {
    WITHOUT_MAP: {"use_guide": False},
    SMALL_MAP: {"guide_grid": [4, 4]},
    DEEP_GUIDE: {"guide_layers": [3, 4, 5]},
}
# label in the figure: training of scripts/reproduce_tiny.py
COTAM_ABLATIONS = {
    "cotam without guide": "cotam-unguided",
    "cotam without decoded picture": "cotam-no-prior",
    "cotam, low level only": "cotam-low-only",
    "cotam, high level only": "cotam-high-only",
}
# the same, without its `ablation-`
CODECS = {"ELIC": "progressive", "TIC": "tic"}
LAYERS = {"0 layers": "skip0", "1 layer": "skip1", "2 layers": "progressive", "4 layers": "skip4"}
LOSSES = {"progressive": "progressive", "cross-entropy alone": "cross-entropy", "distillation alone": "distillation"}
TARGETS = {
    "class token": "progressive",
    "all tokens, last layer": "all-tokens",
    "all tokens, layer before": "penultimate",
}


@dataclass
class Arguments:
    """Folders and processes."""

    data: str = field(metadata={"help": "folder with caltech101_144, coco_eval_256, easy_vqa and kodak"})
    runs: str = field(default="runs/tiny", metadata={"help": "OUTPUT_DIR of scripts/reproduce_tiny.py"})
    output: str = field(default="results", metadata={"help": "gets a JSON file and a figure per measurement"})
    jobs: int = field(default=1, metadata={"help": "measurements at a time, with one thread each"})
    only: list[str] = field(
        default_factory=list, metadata={"help": "measure only those whose name starts with one of these"}
    )


@dataclass(frozen=True)
class Measurement:
    """One run of `comneck eval`, or of a script: it makes OUTPUT/name.json and OUTPUT/name.png.

    Attributes:
        name: Of the files.
        models: As `comneck eval --model` takes them.
        words: The other words of its command line; of a script all but `--output`.
        script: File in scripts/ that measures and draws, instead of `comneck eval` and `comneck plot`.
    """

    name: str
    models: tuple[str, ...]
    words: tuple[str, ...]
    script: str = ""


def packed(scenario: str, quality: int) -> str:
    """A model of the family: in weights/, or in the package."""
    name = f"comneck-tiny-{scenario}-q{quality}"
    folder = ROOT / "weights" / name
    return str(folder) if folder.exists() else name


def measurements(data: Path, runs: Path) -> Iterator[Measurement]:
    """All measurements, those of the paper's figures first."""
    family = tuple(packed(scenario, quality) for scenario in SCENARIOS for quality in QUALITIES)
    photographs = ("--data", str(data / "caltech101_144"))
    thousand = (*photographs, "--pictures", "1000")
    both = ("--baseline", "original", "--baseline", "reconstruction")
    zero_shot = ("--task", "zero-shot")
    llava = ("--llava", "comneck-tiny-llava")
    questions = ("--task", "questions", *llava, "--questions-data", str(data / "easy_vqa"), "--questions", "800")
    files = tuple(word for name in ("jpeg", "webp", "avif", "jxl") for word in ("--baseline", name))
    cleaned = post_processing(runs)
    distortion = ("--task", "distortion", "--distortion-data", str(data / "kodak"))
    yield Measurement("rate_accuracy_tiny", family, (*photographs, *zero_shot, *distortion, *both, *cleaned, *files))
    yield Measurement("mllm_tiny", family, (*thousand, "--task", "naming", *questions, *both, *cleaned))
    few_shot = ("--task", "few-shot", "--task", "few-shot-leaky", *llava)
    frozen = tuple(packed("d1", quality) for quality in QUALITIES)
    yield Measurement("few_shot_tiny", frozen, (*photographs, *few_shot, "--episodes", "200", *both))
    gains = tuple(word for gain in ("-2", "-1", "-0.5", "0") for word in ("--gain", gain))
    cotam = (str(COTAM), *changed(runs, WITHOUT_MAP, SMALL_MAP))
    uniform = ("--against", "reconstruction", "--against", WITHOUT_MAP.replace("-", " "))
    named = (*thousand, *zero_shot, "--task", "naming")
    yield Measurement("cotam_tiny", cotam, (*named, *questions, *both, *gains, *uniform))
    parts = (str(COTAM), *changed(runs, WITHOUT_ADAPTER, DEEP_GUIDE), *trained(runs, COTAM_ABLATIONS))
    whole = ("--against", "reconstruction", "--against", "cotam")
    yield Measurement("cotam_ablation_tiny", parts, (*named, *llava, *both, *gains, *whole))
    recipe = (*thousand, *zero_shot, *both)
    yield Measurement("ablation_layers_tiny", ablations(runs, LAYERS), recipe)
    yield Measurement("ablation_loss_tiny", ablations(runs, LOSSES), recipe)
    yield Measurement("ablation_targets_tiny", ablations(runs, TARGETS), (*recipe, *questions))
    yield Measurement("ablation_codec_tiny", ablations(runs, CODECS), (*recipe, *distortion))
    losses = ablations(runs, LOSSES | {"progressive, all tokens": "penultimate"})
    objects = str(data / "coco_eval_256")
    words = ("--data", objects, "--models", *losses)
    yield Measurement("token_errors_tiny", losses, words, "evaluate_token_errors.py")
    words = (*photographs, "--questions_data", str(data / "easy_vqa"), "--model", str(COTAM))
    yield Measurement("region_pooling_tiny", (str(COTAM),), words, "evaluate_region_pooling.py")
    one_rate = tuple(f"{name}={packed(name, quality)}" for name in ("d1", "d3") for quality in QUALITIES)
    any_rate = (f"d1, any rate={runs / 'd1-anyrate' / 'model'}", f"CoTAM without map={runs / 'eval' / WITHOUT_MAP}")
    words = (*photographs, "--questions_data", str(data / "easy_vqa"), "--one_rate", *one_rate, "--any_rate")
    words += (*any_rate, "--work_dir", str(runs / "eval"))
    yield Measurement("any_rate_tiny", (*one_rate, *any_rate), words, "evaluate_any_rate.py")


def changed(runs: Path, *names: str) -> tuple[str, ...]:
    """Those of `save_variants`, with labels for the figure."""
    return tuple(f"{name.replace('-', ' ')}={runs / 'eval' / name}" for name in names)


def trained(runs: Path, names: dict[str, str]) -> tuple[str, ...]:
    """Models of scripts/reproduce_tiny.py with labels for the figure."""
    return tuple(f"{label}={runs / name / 'model'}" for label, name in names.items())


def ablations(runs: Path, names: dict[str, str]) -> tuple[str, ...]:
    """Necks of scripts/reproduce_tiny.py with labels for the figure."""
    return trained(runs, {label: f"ablation-{name}" for label, name in sorted(names.items())})


def post_processing(runs: Path) -> tuple[str, ...]:
    """The U-Nets that were trained behind the codecs of d1; they are not in weights/."""
    folders = [runs / f"post-q{quality}" / "model" for quality in QUALITIES]
    return tuple(word for folder in folders if folder.exists() for word in ("--baseline", f"post-processing={folder}"))


def save_variants(folder: Path) -> None:
    """Changes of the packed CoTAM that need no training: other guides, and decoded pictures alone."""
    model = CotamModel.from_pretrained(COTAM)
    nn.init.zeros_(model.vision_model.adapter.gate)
    model.save_pretrained(folder / WITHOUT_ADAPTER)
    for name, changes in COTAM_CHANGES.items():
        model = CotamModel.from_pretrained(COTAM)
        model.config.update(changes)
        model.save_pretrained(folder / name)


def run(measurement: Measurement, output: Path, runs: Path) -> str:
    """Measures and draws; returns the measurement's name."""
    file, threads = output / f"{measurement.name}.json", {**os.environ, "OMP_NUM_THREADS": "1"}
    if measurement.script:
        script = [sys.executable, str(ROOT / "scripts" / measurement.script), *measurement.words]
        subprocess.run([*script, "--output", str(file)], check=True, env=threads)
        return measurement.name
    words = [word for model in measurement.models for word in ("--model", model)]
    words += [*measurement.words, "--output", str(file), "--work-dir", str(runs / "eval"), "--force"]
    subprocess.run([COMNECK, "eval", *words, "--quiet"], check=True, env=threads)
    subprocess.run([COMNECK, "plot", str(file), "--output", str(file.with_suffix(".png")), "--force"], check=True)
    return measurement.name


def main(args: Arguments) -> None:
    output, runs = Path(args.output), Path(args.runs)
    chosen = [
        measurement
        for measurement in measurements(Path(args.data), runs)
        if not args.only or measurement.name.startswith(tuple(args.only))
    ]
    if any(measurement.name in ("cotam_tiny", "cotam_ablation_tiny", "any_rate_tiny") for measurement in chosen):
        save_variants(runs / "eval")
    for measurement in list(chosen):
        folders = [Path(model.rpartition("=")[2]) for model in measurement.models]
        missing = [str(folder) for folder in folders if folder.is_relative_to(runs) and not folder.exists()]
        if missing:
            print(f"{measurement.name}: left out, for scripts/reproduce_tiny.py has not trained {', '.join(missing)}")
            chosen.remove(measurement)
    if not args.only or "complexity".startswith(tuple(args.only)):
        table = subprocess.run([COMNECK, "complexity", "--json"], check=True, capture_output=True, text=True).stdout
        (output / "complexity.json").write_text(json.dumps(json.loads(table), indent=1) + "\n", encoding="utf-8")
    with ThreadPoolExecutor(args.jobs) as pool:
        for name in pool.map(lambda measurement: run(measurement, output, runs), chosen):
            print(f"{name}: {output / name}.json", flush=True)


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
