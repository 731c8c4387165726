"""Speed beside CompressAI: both sides in one process, interleaved, medians of repeats.

Single-thread times are process CPU times, because the machine may be shared; ratios are what counts.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from ..coding.rans import TableCoder
from ..coding.tables import CodingTables, ideal_bits
from ..models.elic.exact_elic import EncodedLatents
from ..models.elic.modeling_elic import ElicModel
from .compressai_reference import CompressAICodec


Task = Callable[[], object]
_COMPARED_PICTURES = 8
_SHARED_BATCHES = (8, 32, 128)


def interleaved_medians(
    tasks: dict[str, Task], *, repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Median seconds of each task; one round runs every task once, after a round that is not counted.

    Args:
        tasks: What to run, by name.
        repeats: Counted rounds.
        clock: Seconds; CPU time of the process by default.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(repeats + 1):
        for name, task in tasks.items():
            begin = clock()
            task()
            elapsed = clock() - begin
            if number:
                seconds[name].append(elapsed)
    return {name: median(values) for name, values in seconds.items()}


# --- the coder alone -------------------------------------------------------------------------------------------------


def coder_speed(codec: ElicModel, pictures: torch.Tensor, *, repeats: int) -> dict[str, Any]:
    """Symbols per second of our coder and of CompressAI's path, on the same symbols and tables.

    CompressAI is called as its ELIC calls it: the hyper-latents once, every group's anchors and non-anchors, each
    through `EntropyModel.compress` and `decompress`. `ans` is its C++ coder with everything in lists beforehand and
    one stream for each picture. Both sides code the same 8 pictures: one after the other, and as one batch.

    Args:
        codec: Its tables and symbols are used.
        pictures: uint8 `(count, 3, height, width)`, of which the first 8 are used for the comparison with CompressAI
            and all for the size; threads share batches of 8, 32 and 128 of them, as far as there are so many.
        repeats: Rounds.
    """
    encoded = [_encode(codec, picture[None]) for picture in pictures]
    coder = TableCoder(codec.exact.tables.tables())
    symbols = np.concatenate([part.symbols.numpy() for part in encoded])
    indexes = np.concatenate([part.indexes.numpy() for part in encoded])
    segments = _segments(codec, pictures.shape[-2:])
    payloads = coder.encode(symbols, indexes)
    bits, ideal = 8 * sum(map(len, payloads)), ideal_bits(symbols, indexes, coder.tables)
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "symbols_per_picture": symbols.shape[1],
        "bits_per_picture": bits / len(payloads),
        "bits_over_ideal_percent": 100 * (bits / ideal - 1),
    }
    for size in (1, _COMPARED_PICTURES):
        batches = [slice(first, first + size) for first in range(0, _COMPARED_PICTURES, size)]
        parts = []
        for batch in batches:
            ours = _our_tasks(coder, symbols[batch], indexes[batch], segments)
            parts.append(ours | _compressai_tasks(coder.tables, codec, symbols[batch], indexes[batch], segments))
        seconds = interleaved_medians({name: _all_of(parts, name) for name in parts[0]}, repeats=repeats)
        report[f"batch_{size}"] = _coder_report(seconds, symbols[:_COMPARED_PICTURES].size)
    report["two_threads"] = {
        f"batch_{size}": _thread_speed(coder, symbols[:size], indexes[:size], segments, repeats=repeats)
        for size in _SHARED_BATCHES
        if size <= len(symbols)
    }
    return report


def _all_of(parts: list[dict[str, Task]], name: str) -> Task:
    return lambda: [part[name]() for part in parts]


def _coder_report(seconds: dict[str, float], count: int) -> dict[str, Any]:
    return {
        "ms_per_picture": {name: 1000 * value / _COMPARED_PICTURES for name, value in seconds.items()},
        "million_symbols_per_second": {name: count / value / 1e6 for name, value in seconds.items()},
        "encode_ratio": seconds["CompressAI encode"] / seconds["encode"],
        "decode_ratio": seconds["CompressAI decode"] / seconds["decode"],
        "encode_ratio_to_ans": seconds["ans encode"] / seconds["encode"],
        "decode_ratio_to_ans": seconds["ans decode"] / seconds["decode"],
    }


def _encode(codec: ElicModel, picture: torch.Tensor) -> EncodedLatents:
    with torch.no_grad():
        y = codec.g_a(picture.float() / 255)
        return codec.exact.encode(y, (codec.h_a(y) - codec.entropy_bottleneck.medians[:, None, None]).round())


def _segments(codec: ElicModel, size: torch.Size) -> list[slice]:
    """Where the hyper-latents and every group's two passes lie in a picture's symbols."""
    positions = size[0] // 16 * (size[1] // 16)
    lengths = [codec.config.hidden_channels * positions // 16]
    lengths += [channels * positions // 2 for channels in codec.config.group_channels for _ in range(2)]
    ends = np.cumsum(lengths).tolist()
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def _our_tasks(coder: TableCoder, symbols: np.ndarray, indexes: np.ndarray, segments: list[slice]) -> dict[str, Task]:
    payloads = coder.encode(symbols, indexes)
    parts = [np.ascontiguousarray(indexes[:, segment]) for segment in segments]

    def decode() -> None:
        decoder = coder.decoder(payloads)
        for part in parts:
            decoder.decode(part)
        decoder.finish()

    return {"encode": lambda: coder.encode(symbols, indexes), "decode": decode}


def _compressai_tasks(
    tables: CodingTables, codec: ElicModel, symbols: np.ndarray, indexes: np.ndarray, segments: list[slice]
) -> dict[str, Task]:
    from compressai import ans

    scales = len(tables) - codec.config.hidden_channels
    gaussian, prior = _entropy_model(tables, 0, scales), _entropy_model(tables, scales, len(tables))
    models = [prior] + [gaussian] * (len(segments) - 1)
    values = [torch.from_numpy(symbols[:, segment]).float() for segment in segments]
    chosen = [torch.from_numpy(indexes[:, segment]).int() for segment in segments]
    chosen[0] -= scales
    means = [torch.zeros_like(value) for value in values]
    calls = list(zip(models, values, chosen, means, strict=True))
    strings = [model.compress(value, index, mean) for model, value, index, mean in calls]
    rows, lengths, offsets = _table_lists(tables, 0, len(tables))
    flat = list(zip(symbols.tolist(), indexes.tolist(), strict=True))
    streams = [ans.RansEncoder().encode_with_indexes(*picture, rows, lengths, offsets) for picture in flat]
    return {
        "CompressAI encode": lambda: [model.compress(value, index, mean) for model, value, index, mean in calls],
        "CompressAI decode": lambda: [
            model.decompress(string, index, means=mean)
            for (model, _, index, mean), string in zip(calls, strings, strict=True)
        ],
        "ans encode": lambda: [
            ans.RansEncoder().encode_with_indexes(*picture, rows, lengths, offsets) for picture in flat
        ],
        "ans decode": lambda: [
            ans.RansDecoder().decode_with_indexes(stream, picture[1], rows, lengths, offsets)
            for stream, picture in zip(streams, flat, strict=True)
        ],
    }


def _table_lists(tables: CodingTables, first: int, last: int) -> tuple[list[list[int]], list[int], list[int]]:
    rows = tables.cdfs.split((tables.lengths + 1).tolist())[first:last]
    return [row.tolist() for row in rows], [row.numel() for row in rows], tables.offsets[first:last].tolist()


def _entropy_model(tables: CodingTables, first: int, last: int) -> nn.Module:
    """CompressAI's entropy model with some of our tables, padded to a matrix as CompressAI keeps them."""
    from compressai.entropy_models import EntropyModel

    rows, lengths, offsets = _table_lists(tables, first, last)
    model = EntropyModel()
    model._quantized_cdf = torch.tensor([row + [0] * (max(lengths) - len(row)) for row in rows], dtype=torch.int32)
    model._cdf_length = torch.tensor(lengths, dtype=torch.int32)
    model._offset = torch.tensor(offsets, dtype=torch.int32)
    return model


def _thread_speed(
    coder: TableCoder, symbols: np.ndarray, indexes: np.ndarray, segments: list[slice], *, repeats: int
) -> dict[str, float]:
    """How much faster two threads code a batch than one, in wall time (least of the repeats)."""
    seconds: dict[tuple[str, int], list[float]] = {}
    tasks = _our_tasks(coder, symbols, indexes, segments)
    threads = torch.get_num_threads()
    try:
        for _ in range(repeats):
            for name, task in tasks.items():
                for number in (1, 2):
                    torch.set_num_threads(number)
                    begin = time.perf_counter()
                    task()
                    seconds.setdefault((name, number), []).append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return {f"{name}_ratio": min(seconds[name, 1]) / min(seconds[name, 2]) for name in tasks}


# --- whole calls -----------------------------------------------------------------------------------------------------


def decompress_speed(
    codec: ElicModel,
    other: CompressAICodec,
    pictures: torch.Tensor,
    *,
    executors: Sequence[str],
    batch_sizes: Sequence[int] = (1, 8),
    repeats: int,
) -> dict[str, Any]:
    """Bytes to latents, without g_s on both sides, in ms per picture, for each batch size and executor.

    Args:
        codec, other: The same weights on both sides.
        pictures: uint8 `(count, 3, height, width)`, at least as many as the largest batch.
        executors: Executors of the integer networks.
        batch_sizes: Pictures per call.
        repeats: Rounds.
    """
    torch.set_num_threads(1)
    report: dict[str, Any] = {}
    for size in batch_sizes:
        pixel_values = pictures[:size].float() / 255
        with torch.no_grad():
            ours, theirs = codec.compress(pixel_values), other.compress(pixel_values)
            tasks: dict[str, Task] = {name: lambda name=name: _decompress(codec, ours, name) for name in executors}
            tasks["CompressAI"] = lambda: other.decompress(theirs)
            seconds = interleaved_medians(tasks, repeats=repeats)
        report[f"batch_{size}"] = _against(seconds, "CompressAI", size)
    codec.exact.executor = None
    return report


def _decompress(codec: ElicModel, bitstreams: list[bytes], executor: str) -> torch.Tensor:
    codec.exact.executor = executor
    return codec.decompress(bitstreams)


def compress_speed(
    codec: ElicModel, other: CompressAICodec, pictures: torch.Tensor, *, variants: dict[str, ElicModel], repeats: int
) -> dict[str, Any]:
    """Picture to bytes of one picture, in ms.

    Args:
        codec: The codec as loaded.
        other: The same weights in CompressAI.
        pictures: uint8 `(count, 3, height, width)`; the first is used.
        variants: Further forms of the codec by name, such as one in channels-last format.
        repeats: Rounds.
    """
    torch.set_num_threads(1)
    pixel_values = pictures[:1].float() / 255
    forms = {"float32": codec, **variants}
    tasks: dict[str, Task] = {name: lambda form=form: form.compress(pixel_values) for name, form in forms.items()}
    tasks["CompressAI"] = lambda: other.compress(pixel_values)
    with torch.no_grad():
        seconds = interleaved_medians(tasks, repeats=repeats)
    return _against(seconds, "CompressAI", 1)


def _against(seconds: dict[str, float], base: str, count: int) -> dict[str, Any]:
    return {
        "ms_per_picture": {name: 1000 * value / count for name, value in seconds.items()},
        "times_as_fast": {name: seconds[base] / value for name, value in seconds.items() if name != base},
    }


# --- starting up -----------------------------------------------------------------------------------------------------

_CLASSES = "from transformers import AutoImageProcessor, AutoModel, CLIPImageProcessor, CLIPModel"
_IMPORT_TIME = "import time; begin = time.process_time(); {}; print(time.process_time() - begin)"
_COMMAND_TIME = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], capture_output=True, check=True); "
    "usage = resource.getrusage(resource.RUSAGE_CHILDREN); print(usage.ru_utime + usage.ru_stime)"
)


def start_seconds(*, repeats: int) -> dict[str, float]:
    """CPU seconds of imports and of `comneck --help`, each in a new process; medians."""
    programs = {
        "transformers' Auto and CLIP classes": [_IMPORT_TIME.format(_CLASSES)],
        "comneck_hf": [_IMPORT_TIME.format("import comneck_hf")],
        "comneck_hf beyond those classes": [f"{_CLASSES}; {_IMPORT_TIME.format('import comneck_hf')}"],
        "comneck --help": [_COMMAND_TIME, str(Path(sys.executable).with_name("comneck")), "--help"],
        "python": [_COMMAND_TIME, sys.executable, "-c", "pass"],
    }

    def seconds(program: list[str]) -> float:
        command = [sys.executable, "-c", *program]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    return {name: median(seconds(program) for _ in range(repeats)) for name, program in programs.items()}


__all__ = [
    "coder_speed",
    "compress_speed",
    "decompress_speed",
    "interleaved_medians",
    "start_seconds",
]
