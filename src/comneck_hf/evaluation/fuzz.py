"""Fuzzing of bitstream decoders: broken bitstreams by number, run in processes that may crash or hang.

Every case has a number; number and seed give its bytes, so that `mutated(number, corpus, seed=seed)` brings any failure
back. A decoder passes if it returns finite latents or raises `BitstreamError` for all of them.
"""

import multiprocessing
import os
import random
import resource
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from ..coding.bitstream import BITSTREAM_VERSION, MAGIC, Bitstream, BitstreamError


__all__ = ["MUTATIONS", "FuzzReport", "Target", "fuzz", "mutated", "run_cases", "tiny_codec_target"]

Target = Callable[[bytes], torch.Tensor]

_BLOCK = 500  # cases between two messages of a worker
_WARM_UP = 0.2  # share of a worker's cases after which its memory should no longer grow
_STALLED_S = 60.0  # a worker that sleeps burns no CPU time; this ends it
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


# --- mutations ----------------------------------------------------------------------------------------------------


def _damaged(source: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """One to four edits: flip, replace, cut, append, remove, repeat, splice."""
    result = bytearray(data)
    for _ in range(source.randint(1, 4)):
        size = len(result)
        at, span = source.randrange(size + 1), source.randint(1, 12)
        edit = source.randrange(7)
        if edit == 0 and size:
            result[at % size] ^= 1 << source.randrange(8)
        elif edit == 1:
            result[at : at + span] = source.randbytes(min(span, size - at))
        elif edit == 2:
            del result[at:]
        elif edit == 3:
            result += source.randbytes(span) if source.random() < 0.5 else bytes(span)
        elif edit == 4:
            del result[at : at + span]
        elif edit == 5:
            result[at:at] = result[at : at + span]
        else:
            other = source.choice(corpus)
            result[at:] = other[source.randrange(len(other)) :]
    return bytes(result)


def _one_bit(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    data = bytearray(source.choice(corpus))
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(data)


def _truncated(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    data = source.choice(corpus)
    return data[: source.randrange(len(data))]


def _edited(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    return _damaged(source, source.choice(corpus), corpus)


def _spliced(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    first, second = source.choice(corpus), source.choice(corpus)
    return first[: source.randrange(len(first))] + second[source.randrange(len(second)) :]


def _noise(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    return source.randbytes(source.randrange(300))


def _noise_behind_magic(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    return MAGIC + bytes([BITSTREAM_VERSION]) + source.randbytes(source.randrange(300))


def _header(source: random.Random, corpus: Sequence[bytes]) -> bytes:
    """Any byte of the header, behind a checksum that fits."""
    data = bytearray(source.choice(corpus)[:-4])
    for _ in range(source.randint(1, 3)):
        data[source.randrange(12)] = source.choice([0, 1, 127, 128, 255, source.randrange(256)])
    return _with_checksum(bytes(data))


def _repaired(edit: Callable[[random.Random, Bitstream, list[bytes]], dict[str, Any]]) -> Callable[..., bytes]:
    """A mutation that changes fields of a valid bitstream and packs them with a checksum that fits."""

    def mutation(source: random.Random, corpus: Sequence[bytes]) -> bytes:
        bitstream = Bitstream.parse(source.choice(corpus))
        payloads = [Bitstream.parse(data).payload for data in source.choices(corpus, k=2)]
        fields = {**vars(bitstream), **edit(source, bitstream, payloads)}
        return Bitstream(**fields).pack()

    return mutation


def _random_side(source: random.Random) -> int:
    return min(int(2 ** source.uniform(0, 28)), 2**28 - 1)


def _any_size(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"height": _random_side(source), "width": source.choice([bitstream.width, _random_side(source)])}


def _small_size(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"height": source.randint(1, 200), "width": source.randint(1, 200)}


def _other_fingerprint(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"fingerprint": bitstream.fingerprint ^ 1 << source.randrange(32)}


def _payload_bit(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"payload": _one_bit(source, payloads)}


def _payload_edited(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"payload": _damaged(source, bitstream.payload, payloads)}


def _payload_spliced(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    return {"payload": _spliced(source, payloads)}


def _payload_noise(source: random.Random, bitstream: Bitstream, payloads: list[bytes]) -> dict[str, Any]:
    noise = source.randbytes(source.randrange(300))
    return {"payload": source.choice([noise, noise, bytes(len(noise)), b"\xff" * len(noise)])}


MUTATIONS: dict[str, tuple[int, Callable[[random.Random, Sequence[bytes]], bytes]]] = {
    "one bit flipped": (10, _one_bit),
    "truncated": (10, _truncated),
    "edited": (20, _edited),
    "spliced": (10, _spliced),
    "random": (5, _noise),
    "random behind magic": (10, _noise_behind_magic),
    "header, checksum repaired": (5, _header),
    "sizes, checksum repaired": (4, _repaired(_any_size)),
    "small sizes, checksum repaired": (3, _repaired(_small_size)),
    "fingerprint, checksum repaired": (3, _repaired(_other_fingerprint)),
    "payload bit flipped, checksum repaired": (5, _repaired(_payload_bit)),
    "payload edited, checksum repaired": (6, _repaired(_payload_edited)),
    "payload spliced, checksum repaired": (5, _repaired(_payload_spliced)),
    "payload random, checksum repaired": (4, _repaired(_payload_noise)),
}
"""Name -> weight and function. With a repaired checksum, a bitstream reaches the header checks and the decoder."""

_NAMES = tuple(MUTATIONS)
_WEIGHTS = tuple(weight for weight, _ in MUTATIONS.values())


def mutated(number: int, corpus: Sequence[bytes], *, seed: int = 0) -> tuple[str, bytes]:
    """Mutation and bytes of one case.

    Args:
        number: Number of the case.
        corpus: Valid bitstreams of one model.
        seed: Seed of the whole run.
    """
    source, name = _drawn(number, seed)
    return name, MUTATIONS[name][1](source, corpus)


def _drawn(number: int, seed: int) -> tuple[random.Random, str]:
    source = random.Random(number << 32 | seed)
    return source, source.choices(_NAMES, _WEIGHTS)[0]


def _with_checksum(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


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
        context = multiprocessing.get_context("spawn")
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
            if time.monotonic() - self.heard > _STALLED_S:
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
        self.process.join()
        if not self.left:
            return False
        number, code = self.current.value, self.process.exitcode
        if number < 0:
            raise RuntimeError(f"A fuzzing worker ended with exit code {code} before its first case.")
        hung = code == -signal.SIGPROF or time.monotonic() - self.heard > _STALLED_S
        report.add_failure(number, _drawn(number, self.seed)[1], "hang" if hung else "crash", f"exit code {code}")
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
        for size in ((64, 64), (1, 1), (40, 100), (128, 128), (200, 70), (256, 256)):
            smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8), size, mode="bicubic")
            # Values far beyond a picture's make large symbols and escapes.
            corpus += model.compress(torch.stack([smooth[0], 1000 * torch.randn(3, *size)]))
    return lambda data: model.decompress([data]), corpus
