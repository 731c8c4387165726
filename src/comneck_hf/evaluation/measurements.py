"""Runs baselines over tasks, picture by picture, and sums them up with intervals."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from .. import __version__
from ..training.content import content_digest
from .baselines import Baseline
from .intervals import Columns, bootstrap_interval, gain, mean_of, saving
from .metrics import MS_SSIM_SIDE, bits_per_pixel, ms_ssim, psnr
from .tasks import Task


# CompressAI's names where it has one
_NAMES = {"psnr": "psnr-rgb", "ms_ssim": "ms-ssim-rgb"}
MAX_PSNR = 100.0  # of equal pictures it would be infinite
_WITH_INTERVAL = ("top1", "top5", "accuracy")


@dataclass(frozen=True)
class Point:
    """A baseline on a task.

    Attributes:
        task: Name of the task.
        name: Of the baseline's curve.
        quality: Of the point on it.
        columns: Measured quantities.
    """

    task: str
    name: str
    quality: str
    columns: Columns


@torch.no_grad()
def measure(
    baseline: Baseline,
    task: Task,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> Columns:
    """Sends all pictures of a task through a baseline.

    Args:
        baseline, task: What to run.
        batch_size: Pictures at a time.
        device: Of the models.
        rank, world_size: Which of how many processes this is; each takes every `world_size`-th group of pictures.
        progress: Whether to show a bar.

    Returns:
        Columns `(2, groups of pictures)`: those of the task; `bytes` and `bpp` of whole files where pictures are
        coded; `psnr` in dB (at most 100) and `ms_ssim` (of sides above 96 pixels) of the pictures that a person would
        see, where there are any; `encode_seconds`, `decode_seconds` and so on.
    """
    size = task.group_size
    groups = range(len(task.pictures) // size)[rank::world_size]
    numbers = [number for group in groups for number in range(group * size, (group + 1) * size)]
    batch_size = max(size, batch_size // size * size) if isinstance(task.pictures, torch.Tensor) else 1
    starts = range(0, len(numbers), batch_size)
    if numbers:  # what the first call loads or compiles is in no time
        baseline.receive(_pictures(task, numbers[:1], device))
    title = f"{task.name}: {baseline.name} {baseline.quality}".rstrip()
    parts = [
        _measure_batch(baseline, task, numbers[first : first + batch_size], device)
        for first in tqdm(starts, desc=title, disable=not progress, leave=False)
    ]
    shares = [(numbers, _join(parts))]
    if world_size > 1:
        shares = gather_object(shares)  # of every process, also of one without pictures
    order = np.argsort(np.concatenate([share for share, _ in shares]))
    columns = {name: column[:, order] for name, column in _join([part for _, part in shares if part]).items()}
    # contiguous, since safetensors writes arrays as they lie in memory
    grouped = {name: np.ascontiguousarray(column.reshape(2, -1, size).sum(2)) for name, column in columns.items()}
    return {name: column for name, column in grouped.items() if column[1].any()}


def _join(parts: Sequence[Columns]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]} if parts else {}


def _pictures(task: Task, numbers: list[int], device: torch.device | str) -> torch.Tensor:
    """uint8 `(n, 3, height, width)`; one of those that differ in size."""
    chosen = task.pictures[numbers] if isinstance(task.pictures, torch.Tensor) else task.pictures[numbers[0]][None]
    return chosen.to(device)


def _measure_batch(baseline: Baseline, task: Task, numbers: list[int], device: torch.device | str) -> Columns:
    pictures = _pictures(task, numbers, device)
    received = baseline.receive(pictures)
    columns = dict(task.score(baseline, received, numbers))
    height, width = pictures.shape[-2:]
    seconds = dict(received.seconds)
    measured: dict[str, Sequence[float]] = {}
    if received.num_bytes is not None:
        measured["bytes"] = received.num_bytes
        measured["bpp"] = [bits_per_pixel(size, height=height, width=width) for size in received.num_bytes]
    seen = baseline.look(received, (height, width))
    if seen is not None:
        measured["psnr"] = psnr(seen.clamp(0, 1), pictures / 255).clamp(max=MAX_PSNR).tolist()
        columns["ms_ssim"] = np.zeros((2, len(numbers)))
        if min(height, width) > MS_SSIM_SIDE:
            measured["ms_ssim"] = ms_ssim(seen.clamp(0, 1), pictures / 255).tolist()
    columns |= {name: np.stack([np.array(values), np.ones(len(numbers))]) for name, values in measured.items()}
    for stage, total in seconds.items():
        step = task.group_size if stage == "answers" else 1  # one answer for a group
        columns[f"{stage}_seconds"] = np.zeros((2, len(numbers)))
        columns[f"{stage}_seconds"][:, step - 1 :: step] = [[total / (len(numbers) // step)], [1]]
    return columns


def measure_all(
    baselines: Sequence[Callable[[], Baseline]],
    tasks: Sequence[Task],
    *,
    folder: Path,
    rank: int = 0,
    progress: bool = True,
    **options: Any,
) -> list[Point]:
    """Measures every baseline on every task, and keeps what is done: a run that was interrupted goes on.

    Args:
        baselines: What builds them, one at a time.
        tasks: What is asked.
        folder: Gets a file per baseline and task, named after everything that its content depends on: contents of
            models and pictures, versions, kind of device.
        rank, progress, options: Of `measure`.

    Raises:
        ValueError: If two baselines would be the same point of a curve.
    """
    points = []
    names: dict[tuple[str, str], str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.get("device", "cpu")).type
    machine = content_digest(__version__, torch.__version__, transformers.__version__, device)
    identities = {task.name: content_digest(*task.depends_on()) for task in tasks}
    done = set(folder.glob("*.safetensors"))  # before any process can add to them
    for build in tqdm(baselines, desc="baselines", disable=rank > 0 or not progress):
        baseline = build()
        identity = content_digest(*baseline.depends_on())
        if names.setdefault((baseline.name, baseline.quality), identity) != identity:
            raise ValueError(
                f"Two baselines are called {baseline.name!r} {baseline.quality}, and would be one point of a curve. "
                "Name one of them: --model NAME=FOLDER, --baseline codec=NAME=FOLDER."
            )
        for task in tasks:
            file = folder / f"{identity}-{identities[task.name]}-{machine}.safetensors"
            if file in done:
                columns: Columns = load_file(file)
            else:
                columns = measure(baseline, task, rank=rank, progress=progress and rank == 0, **options)
                if rank == 0:
                    part = file.with_suffix(f".{os.getpid()}.part")  # others may measure the same
                    save_file(dict(columns), part)
                    part.replace(file)
            if columns:  # nothing is measured of pictures that were not coded and are not asked about
                points.append(Point(task.name, baseline.name, baseline.quality, columns))
    return points


def summarize(points: Sequence[Point], *, anchors: Sequence[str] = (), rate: str = "bytes") -> dict[str, Any]:
    """Curves with intervals, in the shape of CompressAI's results, and how they compare with the anchors.

    Args:
        points: Of one or several tasks.
        anchors: The curves that others are compared with; `reconstruction`, where it was measured, if none is given.
        rate: The column over which curves are drawn and compared.

    Returns:
        By task: `pictures` (episodes for few-shot prompts); the `value` that counts; `systems`, each with `name` and
        `results` (one list per quantity, one entry per point in the order of the rate, `None` where it was not
        measured; means over the pictures, and medians of `*_seconds`); and `against_ANCHOR` for each anchor, by
        system: `bd_rate` as `saving` has it and `gain` of accuracy or PSNR, or why there is none. Without such a
        curve, `NAME ANCHOR` is the anchor of `NAME`.

    Raises:
        ValueError: If no curve is called like an anchor that was given.
    """
    tasks, names = _ordered(points, "task"), _ordered(points, "name")
    known = {*names, *(name.removeprefix(f"{other} ") for name in names for other in names)}
    unknown = [anchor for anchor in anchors if anchor not in known]
    if unknown:
        raise ValueError(f"No curve to compare with is called {', '.join(unknown)}; measured are {', '.join(names)}.")
    chosen = anchors or ("reconstruction",)
    return {task: _summarize_task([point for point in points if point.task == task], chosen, rate) for task in tasks}


def _summarize_task(points: Sequence[Point], anchors: Sequence[str], rate: str) -> dict[str, Any]:
    curves = {name: [point for point in points if point.name == name] for name in _ordered(points, "name")}
    for curve in curves.values():
        curve.sort(key=lambda point: mean_of(point.columns[rate]) if rate in point.columns else 0.0)
    found: dict[str, Any] = {
        "pictures": next(iter(points[0].columns.values())).shape[1],
        "value": next((name for name in ("top1", "accuracy") if name in points[0].columns), _NAMES["psnr"]),
        "systems": [{"name": name, "results": _results(curve)} for name, curve in curves.items()],
    }
    columns = {name: [point.columns for point in curve] for name, curve in curves.items()}
    for anchor in anchors:
        compared = {}
        for name, curve in columns.items():
            against = anchor if anchor in columns else f"{name} {anchor}"
            if against in columns and name != against and rate in curve[0]:
                compared[name] = _compare_curves(columns[against], curve, rate)
        found |= {f"against_{anchor}": compared} if compared else {}
    return found


def _compare_curves(anchor: Sequence[Columns], test: Sequence[Columns], rate: str) -> dict[str, Any]:
    compared: dict[str, Any] = {}
    for value in ("top1", "accuracy", "psnr"):
        if not all(value in columns for columns in (*anchor, *test)):
            continue
        for name, compare in (("bd_rate", saving), ("gain", gain)):
            if name == "bd_rate" and min(len(anchor), len(test)) == 1:
                continue  # of one rate there is no curve
            try:
                compared[f"{value}_{name}"] = compare(anchor, test, value, rate=rate)
            except (ValueError, ImportError) as error:
                compared[f"{value}_{name}"] = str(error)
    return compared


def _results(curve: Sequence[Point]) -> dict[str, list[Any]]:
    results: dict[str, list[Any]] = {"quality": [point.quality for point in curve]}
    for name in dict.fromkeys(name for point in curve for name in point.columns):
        found = [point.columns.get(name) for point in curve]
        middle = _median_of if name.endswith("_seconds") else mean_of  # a machine may pause
        results[_NAMES.get(name, name)] = [None if column is None else middle(column) for column in found]
        if name in _WITH_INTERVAL:
            intervals = [None if column is None else list(bootstrap_interval(column)) for column in found]
            results[f"{name}_interval"] = intervals
    return results


def _median_of(column: np.ndarray) -> float:
    totals, counts = column[:, column[1] > 0]
    return float(np.median(totals / counts))


def _ordered(points: Sequence[Point], field: str) -> list[str]:
    return list(dict.fromkeys(getattr(point, field) for point in points))


__all__ = ["Point", "measure", "measure_all", "summarize"]
