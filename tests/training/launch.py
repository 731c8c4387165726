"""Runs the training scripts in processes that can be killed, as torchrun would start them."""

import importlib.util
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType

from comneck_hf.training.arguments import parse_arguments


SCRIPTS = Path(__file__).parents[2] / "scripts"
ARGUMENTS = {
    "train_clip": "ClipArguments",
    "train_codec": "CodecArguments",
    "train_comneck": "ComNeckArguments",
    "train_cotam": "CotamArguments",
    "train_llava": "LlavaArguments",
    "train_llavolta": "LlavoltaArguments",
    "evaluate_pooling": "Arguments",
    "benchmark_llavolta": "Arguments",
}
# One process imports everything; the others are forked from it and start at once.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["accelerate", "datasets", "comneck_hf.training.latents", "comneck_hf.training.loop"])


def load_script(name: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_script(name: str, *words: object) -> None:
    """Runs a script in this process, as if it were the first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # accelerate shards over accelerators only; torch does so over CPUs, too.
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    script = load_script(name)
    script.main(parse_arguments(getattr(script, ARGUMENTS[name]), [str(word) for word in words]))


def launch(
    name: str,
    *words: object,
    processes: int,
    kill_at: Path | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Runs a script in several processes.

    Args:
        name: The script.
        words: Its command line.
        processes: How many.
        kill_at: A path; as soon as it exists, all processes get SIGKILL.
        environment: Variables, such as those that `accelerate launch` sets.

    Raises:
        RuntimeError: If a process fails, or ends before it was to be killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    workers = [
        _CONTEXT.Process(
            target=_work, args=(name, [str(word) for word in words], rank, processes, port, dict(environment))
        )
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    while kill_at is not None and not kill_at.exists() and all(worker.is_alive() for worker in workers):
        time.sleep(0.002)
    if kill_at is not None:
        for worker in workers:
            worker.kill()
    for worker in workers:
        worker.join()
    codes = [worker.exitcode for worker in workers]
    if codes != [0 if kill_at is None else -signal.SIGKILL] * processes:
        raise RuntimeError(f"{name} ended with the exit codes {codes}.")


def _work(name: str, words: list[str], rank: int, processes: int, port: int, environment: dict[str, str]) -> None:
    os.environ.update(
        environment,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)
    run_script(name, *words)
