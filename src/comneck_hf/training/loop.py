"""The one training loop: steps with a progress bar, a log, and checkpoints that resume."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm.auto import trange

from comneck_hf.training.arguments import RunArguments


Metrics = dict[str, float]


def prepare_run(args: RunArguments) -> Accelerator:
    """Sets threads and seed, and returns the accelerator of a run: a GPU if there is one, else the CPU."""
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    set_seed(args.seed)
    return Accelerator(mixed_precision=args.mixed_precision, cpu=not torch.cuda.is_available())


def train_steps(
    accelerator: Accelerator, step: Callable[[int], Metrics], args: RunArguments, *, logging_steps: int = 50
) -> list[Metrics]:
    """Calls `step(0)` to `step(args.steps - 1)` and keeps what is needed to go on after an interruption.

    Args:
        accelerator: Holds everything that a checkpoint must contain (prepared or registered).
        step: One optimizer step; all its randomness of data must come from the step's number. Returns metrics, among
            them `"loss"`.
        args: Length of the run; its folder, which gets `checkpoint/`, `progress.json` and the log; whether to go on
            from the checkpoint there, if there is one.
        logging_steps: Steps between log entries.

    Returns:
        The log: metrics of every `logging_steps`-th step.

    Raises:
        RuntimeError: If the loss is not finite. The last checkpoint is intact.
    """
    output = Path(args.output_dir)
    progress = output / "progress.json"
    first, log = 0, []
    if args.resume_from_checkpoint and progress.exists():
        accelerator.load_state(str(output / "checkpoint"))
        state = json.loads(progress.read_text())
        first, log = state["step"], state["log"]
    bar = trange(
        first,
        args.steps,
        initial=first,
        total=args.steps,
        mininterval=5,
        disable=not accelerator.is_local_main_process,
    )
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
        if (index + 1) % args.checkpointing_steps == 0 or index + 1 == args.steps:
            accelerator.save_state(str(output / "checkpoint"))
            if accelerator.is_main_process:
                progress.write_text(json.dumps({"step": index + 1, "log": log}))
    if accelerator.is_main_process:
        file = Path(args.log_file or output / "log.json")
        file.write_text(json.dumps({"config": asdict(args), "log": log}, indent=1) + "\n")
    return log


__all__ = ["Metrics", "prepare_run", "train_steps"]
