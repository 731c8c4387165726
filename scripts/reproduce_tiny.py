"""Trains the comneck-tiny family from the data packs: teacher, seven codecs, twelve models, CoTAM, ablations.

python scripts/reproduce_tiny.py --data DATA --output_dir runs/tiny --jobs 2

Trainings that are done are skipped and interrupted ones go on, so the command can be repeated at any time.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser


SCRIPTS = Path(__file__).parent
CONFIGS = SCRIPTS.parent / "configs"
LAMBDAS = {1: 0.00025, 2: 0.0005, 3: 0.001, 4: 0.002}  # of the codecs, on 255^2 * MSE + bits per pixel

ANY_RATE = 3  # the codec that is coded with at every rate
TRANSFORM_GAINS = [-1.5, 1.0]  # of a codec that is trained for every rate, in octaves
ALL_TOKENS = ["image_embeds", "hidden_states[-2]"]  # what classifiers and LLaVA read
NECK_GAINS = [-2.0, 1.0]  # of a neck, as in cotam-tiny.yaml


@dataclass
class Arguments:
    """Folders and processes."""

    data: str = field(metadata={"help": "folder with caltech101_144, easy_vqa and kodak"})
    output_dir: str = field(default="runs/tiny", metadata={"help": "gets one folder per training"})
    jobs: int = field(default=1, metadata={"help": "trainings at a time, with one thread each"})
    log_file: str | None = field(
        default=None, metadata={"help": "gets the logs of all trainings in OUTPUT_DIR, beside those it has"}
    )
    only: list[str] = field(
        default_factory=list, metadata={"help": "run only jobs whose name starts with one of these"}
    )


@dataclass(frozen=True)
class Job:
    """One training: it makes OUTPUT_DIR/name/model."""

    name: str
    script: str
    config: str
    options: dict[str, object]
    needs: tuple[str, ...] = ()


def family(data: Path, output: Path) -> list[Job]:
    """All trainings, every one after what it needs."""
    photographs = {"data": data / "caltech101_144"}
    clip, base = output / "clip" / "model", output / "codec-base" / "model"
    jobs = [
        Job("clip", "train_clip", "comneck-tiny-clip", {**photographs, "shapes_data": data / "easy_vqa"}),
        Job("codec-base", "train_codec", "comneck-tiny-codec-base", photographs),
    ]
    for quality, lmbda in LAMBDAS.items():
        codec = f"codec-q{quality}"
        rate = {"quality": quality, **photographs}
        jobs.append(
            Job(codec, "train_codec", "comneck-tiny-codec", {**rate, "codec": base, "lmbda": lmbda}, ("codec-base",))
        )
        parts = {**rate, "clip": clip, "cache_dir": output / "cache"}
        start = {**parts, "codec": output / codec / "model"}
        jobs.append(Job(f"d1-q{quality}", "train_comneck", "comneck-tiny-d1", start, ("clip", codec)))
        for scenario in ("d2", "d3"):
            joint = {**parts, "model": output / f"d1-q{quality}" / "model", "lmbda": lmbda * 255**2 / 60}
            jobs.append(
                Job(f"{scenario}-q{quality}", "train_comneck", f"comneck-tiny-{scenario}", joint, (f"d1-q{quality}",))
            )
        whole = f"whole-clip-d1-q{quality}"
        jobs.append(Job(whole, "train_comneck", "comneck-tiny-whole-clip", start, ("clip", codec)))
        for scenario in ("d2", "d3"):
            trained = f"{scenario}-q{quality}"
            more = {**parts, "model": output / trained / "model", "neck": output / whole / "model"}
            more |= {"steps": 1000, "learning_rate": 1e-3}
            jobs.append(
                Job(f"whole-clip-{trained}", "train_comneck", "comneck-tiny-whole-clip", more, (trained, whole))
            )
        behind = {**parts, "model": output / f"d1-q{quality}" / "model"}
        jobs.append(Job(f"post-q{quality}", "train_comneck", "comneck-tiny-post", behind, (f"d1-q{quality}",)))
    return jobs + recipes(data, output) + any_rate(data, output) + ablations(data, output)


def recipes(data: Path, output: Path) -> list[Job]:
    """Necks for the codec of q4 in half the steps of d1, with other schedules and targets."""
    codec, clip = "codec-q4", output / "clip" / "model"
    options = {"quality": 4, "data": data / "caltech101_144", "clip": clip, "cache_dir": output / "cache"}
    options |= {"codec": output / codec / "model", "preset": "cosine", "steps": 3000}
    targets = {"class-token": ["image_embeds"], "all-tokens": ALL_TOKENS}
    return [
        Job(f"recipe-{name}", "train_comneck", "comneck-tiny-d1", {**options, "targets": chosen}, ("clip", codec))
        for name, chosen in targets.items()
    ]


def any_rate(data: Path, output: Path) -> list[Job]:
    """One codec at every rate: CoTAM, its variants with one thing changed, a neck, and a codec trained for that."""
    codec, clip = f"codec-q{ANY_RATE}", output / "clip" / "model"
    options = {"quality": ANY_RATE, "data": data / "caltech101_144", "clip": clip, "cache_dir": output / "cache"}
    options["codec"] = output / codec / "model"
    changes: dict[str, dict[str, object]] = {
        "cotam": {},
        "cotam-no-prior": {"use_reconstruction_prior": False},
        "cotam-low-only": {"high_weight": 0},
        "cotam-high-only": {"low_weight": 0},
        "cotam-unguided": {"use_guide": False},
    }
    jobs = [
        Job(name, "train_cotam", "cotam-tiny", {**options, **change}, ("clip", codec))
        for name, change in changes.items()
    ]
    neck = {**options, "gain_range": NECK_GAINS}
    transforms = {name: options[name] for name in ("quality", "data", "codec")}
    transforms |= {"lmbda": LAMBDAS[ANY_RATE], "gain_range": TRANSFORM_GAINS}
    return [
        *jobs,
        Job("d1-anyrate", "train_comneck", "comneck-tiny-whole-clip", neck, ("clip", codec)),
        Job("codec-variable", "train_codec", "comneck-tiny-variable-rate", transforms, (codec,)),
    ]


def ablations(data: Path, output: Path) -> list[Job]:
    """Necks for the codec of q2 in fewer steps, each with one thing changed, and for a TIC (the paper's figure 6)."""
    codec, clip = "codec-q2", output / "clip" / "model"
    options = {"quality": 2, "data": data / "caltech101_144", "clip": clip, "cache_dir": output / "cache"}
    options["codec"] = output / codec / "model"
    changes: dict[str, dict[str, object]] = {
        "progressive": {},
        **{f"skip{layers}": {"num_skipped_layers": layers} for layers in (0, 1, 4)},
        "cross-entropy": {"preset": "cross-entropy"},
        "distillation": {"preset": "distillation"},
        "all-tokens": {"targets": ["image_embeds", "last_hidden_state"]},
        "penultimate": {"targets": ALL_TOKENS},
    }
    jobs = [
        Job(f"ablation-{name}", "train_comneck", "comneck-tiny-ablation", {**options, **change}, ("clip", codec))
        for name, change in changes.items()
    ]
    other = "codec-tic"
    jobs.append(Job(other, "train_codec", "comneck-tiny-tic", {"data": options["data"]}))
    options["codec"] = output / other / "model"
    return [*jobs, Job("ablation-tic", "train_comneck", "comneck-tiny-ablation", options, ("clip", other))]


def option_words(options: dict[str, object]) -> list[str]:
    """Options as a command line has them."""
    return [
        word
        for name, value in options.items()
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


def run_job(job: Job, output: Path) -> None:
    """Runs a training; its output goes to OUTPUT_DIR/name.log."""
    folder = output / job.name
    if (folder / "model").exists():
        return
    command = [sys.executable, str(SCRIPTS / f"{job.script}.py"), str(CONFIGS / f"{job.config}.yaml")]
    options = {**job.options, "output_dir": folder, "num_threads": 1, "resume_from_checkpoint": "true"}
    command += option_words(options)
    folder.mkdir(parents=True, exist_ok=True)
    with (output / f"{job.name}.log").open("a") as log:
        subprocess.run(
            command, check=True, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def run_jobs(jobs: list[Job], output: Path, pool: ThreadPoolExecutor) -> Iterator[str]:
    """Runs every training as soon as those that it needs are done; yields the names of the finished ones."""
    unfinished, running = {job.name for job in jobs}, dict[Future[None], str]()
    while unfinished:
        ready = [job for job in jobs if not unfinished.intersection(job.needs)]
        running.update({pool.submit(run_job, job, output): job.name for job in ready})
        jobs = [job for job in jobs if job not in ready]
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            future.result()
            name = running.pop(future)
            unfinished.remove(name)
            yield name


def collect_logs(output: Path, file: Path) -> None:
    """Adds the logs of all finished trainings to a file, without the folders of this machine."""
    logs = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for path in sorted(output.glob("*/log.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        config = {name: value for name, value in content["config"].items() if os.sep not in str(value)}
        logs[path.parent.name] = {**content, "config": config}
    lines = [f"{json.dumps(name)}: {json.dumps(log)}" for name, log in sorted(logs.items())]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main(args: Arguments) -> None:
    output = Path(args.output_dir)
    jobs = [job for job in family(Path(args.data), output) if not args.only or job.name.startswith(tuple(args.only))]
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            for name in run_jobs(jobs, output, pool):
                print(f"{name}: {output / name / 'model'}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if args.log_file is not None:
        collect_logs(output, Path(args.log_file))


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
