"""The one training loop: steps with a progress bar, a log, and checkpoints that resume."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import trange


Metrics = dict[str, float]


def train_steps(
    accelerator: Accelerator,
    num_steps: int,
    step: Callable[[int], Metrics],
    *,
    output_dir: str | Path,
    checkpointing_steps: int,
    resume: bool = False,
    logging_steps: int = 50,
) -> list[Metrics]:
    """Calls `step(0)` to `step(num_steps - 1)` and keeps what is needed to go on after an interruption.

    Args:
        accelerator: Holds everything that a checkpoint must contain (prepared or registered).
        num_steps: Number of steps in all.
        step: One optimizer step; all its randomness of data must come from the step's number. Returns metrics, among
            them `"loss"`.
        output_dir: Gets `checkpoint/` and `progress.json`.
        checkpointing_steps: Steps between checkpoints.
        resume: Go on from the checkpoint in `output_dir`, if there is one.
        logging_steps: Steps between log entries.

    Returns:
        The log: metrics of every `logging_steps`-th step.

    Raises:
        RuntimeError: If the loss is not finite. The last checkpoint is intact.
    """
    output = Path(output_dir)
    progress = output / "progress.json"
    first, log = 0, []
    if resume and progress.exists():
        accelerator.load_state(str(output / "checkpoint"))
        state = json.loads(progress.read_text())
        first, log = state["step"], state["log"]
    bar = trange(first, num_steps, initial=first, total=num_steps, disable=not accelerator.is_local_main_process)
    for index in bar:
        metrics = step(index)
        if not torch.isfinite(torch.tensor(metrics["loss"])):
            raise RuntimeError(
                f"The loss is not finite at step {index}: {metrics}. Lower the learning rate, or go on from the last "
                f"checkpoint in {output}."
            )
        if index % logging_steps == 0:
            log.append({"step": index, **{name: round(value, 5) for name, value in metrics.items()}})
            bar.set_postfix(metrics)
        if (index + 1) % checkpointing_steps == 0 or index + 1 == num_steps:
            accelerator.save_state(str(output / "checkpoint"))
            if accelerator.is_main_process:
                progress.write_text(json.dumps({"step": index + 1, "log": log}))
    return log


__all__ = ["Metrics", "train_steps"]
