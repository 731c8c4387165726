"""Fuzzing of bitstream decoders, in processes that may crash or hang.

Every case has a number; number and seed give its bytes, so that `mutated(number, corpus, seed=seed)` brings any
failure back. A decoder passes if it returns finite latents or raises `BitstreamError` for all of them.
"""

import multiprocessing
import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from ..coding.bitstream import BitstreamError
from ..coding.gain_map import GainMap
from .mutations import drawn_mutation, mutated


__all__ = ["FuzzReport", "Target", "fuzz", "run_cases", "tiny_codec_target"]

Target = Callable[[bytes], torch.Tensor]

_BLOCK = 500  # cases between two messages of a worker
_WARM_UP = 0.2  # share of a worker's cases after which its memory should no longer grow
_STALLED_S = 300.0  # a worker that sleeps burns no CPU time; without a message for so long it is ended
_MAX_FAILURES = 100


@dataclass
class FuzzReport:
    """What became of a number of cases.

    Args:
        cases: Number of cases that were run.
        outcomes: Cases by `"mutation: outcome"`.
        failures: The first failing cases: number, mutation and what happened.
        num_failures: How many failed.
        max_cpu_ms: Longest CPU time of one case.
        growth_mib: Largest growth of a worker's resident memory after its warm-up.
        seconds: Wall time.
    """

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    num_failures: int = 0
    max_cpu_ms: float = 0.0
    growth_mib: float = 0.0
    seconds: float = 0.0

    def add_failure(self, number: int, mutation: str, outcome: str, detail: str) -> None:
        """Counts one case as failed."""
        self.cases += 1
        self.outcomes[f"{mutation}: {outcome}"] += 1
        self.num_failures += 1
        if len(self.failures) < _MAX_FAILURES:
            self.failures.append({"number": number, "mutation": mutation, "outcome": outcome, "detail": detail})

    def merge(self, other: "FuzzReport") -> None:
        """Adds the cases of another report; its wall time is left out."""
        self.cases += other.cases
        self.outcomes.update(other.outcomes)
        self.failures = (self.failures + other.failures)[:_MAX_FAILURES]
        self.num_failures += other.num_failures
        self.max_cpu_ms = max(self.max_cpu_ms, other.max_cpu_ms)
        self.growth_mib = max(self.growth_mib, other.growth_mib)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: outcomes nested by mutation, figures rounded."""
        nested: dict[str, dict[str, int]] = {}
        for key, count in sorted(self.outcomes.items()):
            mutation, outcome = key.split(": ", 1)
            nested.setdefault(mutation, {})[outcome] = count
        rounded = {name: round(getattr(self, name), 2) for name in ("max_cpu_ms", "growth_mib", "seconds")}
        return {**asdict(self), "outcomes": nested, **rounded}


# --- running ------------------------------------------------------------------------------------------------------


def run_cases(
    target: Target,
    corpus: Sequence[bytes],
    numbers: Iterable[int],
    *,
    seed: int = 0,
    before_case: Callable[[int], None] | None = None,
) -> FuzzReport:
    """Runs cases in this process.

    Args:
        target: Decoder under test: bytes to latents.
        corpus: Valid bitstreams of that decoder.
        numbers: Numbers of the cases.
        seed: Seed of the whole run.
        before_case: Called with each number before its bytes reach the target.
    """
    report = FuzzReport()
    for number in numbers:
        mutation, data = mutated(number, corpus, seed=seed)
        if before_case is not None:
            before_case(number)
        start = time.process_time()
        try:
            outcome = "latents" if target(data).isfinite().all() else "latents that are not finite"
        except BitstreamError:
            outcome = "BitstreamError"
        except Exception as error:  # any other exception is what this looks for
            report.add_failure(number, mutation, type(error).__name__, str(error)[:300])
            continue
        report.max_cpu_ms = max(report.max_cpu_ms, 1e3 * (time.process_time() - start))
        if outcome in ("latents", "BitstreamError"):
            report.cases += 1
            report.outcomes[f"{mutation}: {outcome}"] += 1
        else:
            report.add_failure(number, mutation, outcome, "")
    return report


def fuzz(
    make_target: Callable[[], tuple[Target, Sequence[bytes]]],
    *,
    cases: int,
    workers: int = 1,
    seed: int = 0,
    limit_s: float = 1.0,
    on_progress: Callable[[int], object] | None = None,
) -> FuzzReport:
    """Runs cases in processes of their own; a crash or a hang is one failed case, and its worker is replaced.

    Args:
        make_target: Called in each worker; returns the decoder and valid bitstreams. Picklable.
        cases: Number of cases.
        workers: Number of processes.
        seed: Seed of the whole run, `0 <= seed < 2**32`.
        limit_s: CPU seconds after which the kernel ends a worker, whatever it is doing.
        on_progress: Called with the number of cases done since the last call.

    Raises:
        RuntimeError: If a worker ends before its first case.
    """
    start = time.monotonic()
    report = FuzzReport()
    bounds = [cases * part // workers for part in range(workers + 1)]
    active = [_Worker(make_target, range(*pair), seed, limit_s) for pair in zip(bounds, bounds[1:], strict=False)]
    try:
        while active:
            ready = connection.wait([worker.pipe for worker in active], timeout=1)
            for worker in list(active):
                before = report.cases
                if not worker.advance(report, worker.pipe in ready):
                    active.remove(worker)
                if on_progress is not None:
                    on_progress(report.cases - before)
    finally:
        for worker in active:
            worker.process.kill()
    report.seconds = time.monotonic() - start
    return report


class _Worker:
    """The parent's side of one worker process and of those that replace it."""

    def __init__(self, make_target: Callable[..., Any], numbers: range, seed: int, limit_s: float) -> None:
        self.make_target, self.numbers, self.seed, self.limit_s = make_target, numbers, seed, limit_s
        self.left = numbers
        self.skipped: set[int] = set()
        self.start()

    def start(self) -> None:
        """Forks a process for the cases that are left."""
        # The server imports once and then forks workers, so that replacing one is quick. It has no threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.pipe, remote = context.Pipe(duplex=False)
        self.current = context.Value("q", -1, lock=False)
        arguments = (remote, self.current, self.make_target, self.left, self.skipped, self.seed, self.limit_s)
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        self.process.start()
        remote.close()
        self.heard = time.monotonic()
        self.warm_mib: float | None = None

    def advance(self, report: FuzzReport, is_ready: bool) -> bool:
        """Takes one message, or replaces a process that ended. Returns whether cases are left."""
        if not is_ready:
            if self.current.value >= 0 and time.monotonic() - self.heard > _STALLED_S:
                self.process.kill()
            return True
        try:
            done, part, resident = self.pipe.recv()
        except EOFError:
            return self.replace(report)
        self.heard = time.monotonic()
        self.left = range(done, self.left.stop)
        report.merge(part)
        if self.warm_mib is not None:
            report.growth_mib = max(report.growth_mib, resident - self.warm_mib)
        elif done - self.numbers.start >= _WARM_UP * len(self.numbers):
            self.warm_mib = resident
        return True

    def replace(self, report: FuzzReport) -> bool:
        """Counts the case at which the process ended as failed and goes on behind it. Returns whether any are left."""
        self.process.join()
        if not self.left:
            return False
        number, code = self.current.value, f"exit code {self.process.exitcode}"
        if number < 0:
            raise RuntimeError(f"A fuzzing worker ended with {code} before its first case.")
        mutation = drawn_mutation(number, seed=self.seed)[1]
        hung = self.process.exitcode == -signal.SIGPROF or time.monotonic() - self.heard > _STALLED_S
        report.add_failure(number, mutation, "hang" if hung else "crash", code)
        self.skipped.add(number)
        self.start()
        return True


def _work(
    pipe: connection.Connection,
    current: Any,
    make_target: Callable[[], tuple[Target, Sequence[bytes]]],
    numbers: range,
    skipped: set[int],
    seed: int,
    limit_s: float,
) -> None:
    """A worker process: reports after each block of cases."""
    torch.set_num_threads(1)
    target, corpus = make_target()

    def before_case(number: int) -> None:
        current.value = number
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # its default action ends the process, even in compiled code

    for first in range(numbers.start, numbers.stop, _BLOCK):
        block = range(first, min(first + _BLOCK, numbers.stop))
        todo = [number for number in block if number not in skipped]
        report = run_cases(target, corpus, todo, seed=seed, before_case=before_case)
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send((block.stop, report, _resident_mib()))


def _resident_mib() -> float:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux: the peak instead
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- decoders under test --------------------------------------------------------------------------------------------


def tiny_codec_target() -> tuple[Target, list[bytes]]:
    """`ElicModel.decompress` of a small untrained codec, and bitstreams of drawn pictures of several sizes."""
    from ..models.elic.configuration_elic import ElicConfig
    from ..models.elic.modeling_elic import ElicModel

    config = ElicConfig(
        hidden_channels=4,
        latent_channels=6,
        group_channels=[2, 4],
        context_channels=[4, 4],
        aggregation_channels=[4, 4],
        kernel_size=3,
        max_pixels=2**16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ElicModel(config).eval()
        corpus = []
        for contrast in (1, 1000):  # the second makes large symbols and escapes
            model.g_a[0].weight.data *= contrast
            for size in ((64, 64), (1, 1), (40, 100), (128, 128), (200, 70), (256, 256)):
                smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size, mode="bilinear")
                pictures = torch.cat([smooth, torch.rand(1, 3, *size)])
                corpus += model.compress(pictures)
                corpus += model.compress(pictures, gain=[-0.75, 2.5], gain_maps=[GainMap(((-1, 0), (1, 1))), None])
    model.decompress(corpus[:1])  # compiles what is not compiled yet, before any case is timed
    return lambda data: model.decompress([data]), corpus
