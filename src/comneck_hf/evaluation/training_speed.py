"""Where the time of a training step goes."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch.utils.data import DataLoader

from ..training.arguments import RunArguments
from ..training.objective import Batch, Objective
from ..training.stages import Stage


def step_times(
    objective: Objective,
    loader: DataLoader,
    stage: Stage,
    args: RunArguments,
    *,
    steps: int,
    parts: Mapping[str, Callable[[Batch], object]],
) -> dict[str, float]:
    """Median milliseconds of the parts of a step, in one process on the CPU, after one step that is not counted.

    Args:
        objective: What is trained; changed.
        loader: Its batches.
        stage: The stage that is measured.
        args: Of the optimizers.
        steps: Counted steps.
        parts: Parts of the forward pass by name, each run once more by itself on every batch, such as the teacher.

    Returns:
        `data`, the parts, `student` (the rest of the forward pass), `backward`, `optimizer`, `step` (their sum) in
        milliseconds, `images_per_second` and `data_percent`.
    """
    objective.begin(stage)
    objective.train()
    optimizers = objective.optimizers(args)
    seconds: dict[str, list[float]] = {}
    batches = iter(loader)
    for number in range(steps + 1):
        row: dict[str, float] = {}
        batch = _timed(row, "data", lambda: next(batches))
        loss, _ = _timed(row, "forward", lambda batch=batch: objective(batch, stage))
        _timed(row, "backward", loss.backward)

        def update() -> None:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        _timed(row, "optimizer", update)
        for name, part in parts.items():
            with torch.no_grad():
                _timed(row, name, lambda part=part, batch=batch: part(batch))
        if number:
            for name, value in row.items():
                seconds.setdefault(name, []).append(value)
    times = {name: 1000 * median(values) for name, values in seconds.items()}
    times["student"] = times.pop("forward") - sum(times[name] for name in parts)
    total = sum(times.values())
    return {
        **times,
        "step": total,
        "images_per_second": 1000 * loader.batch_size / total,
        "data_percent": 100 * times["data"] / total,
    }


def _timed(row: dict[str, float], name: str, function: Callable[[], object]) -> object:
    start = time.perf_counter()
    result = function()
    row[name] = time.perf_counter() - start
    return result


__all__ = ["step_times"]
