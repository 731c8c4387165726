"""Encodes under every setting, decodes under every other, in worker processes; counts what differs.

A worker is this module run with a job file. It writes a line before and after each batch that it decodes, so that a
process that dies costs one batch: the parent counts it as an error and starts a worker for the rest.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..models.comneck.codec_owner import codec_from_pretrained
from ..models.elic.modeling_elic import ElicModel
from ..models.elic.restoration_elic import restore_entropy_networks
from .compressai_reference import CompressAICodec, to_compressai
from .exactness import ISA_ENVIRONMENT, Comparison, Setting, Share, applied, chunks, compare, encode_share, prepared


SYSTEMS = ("comneck_hf", "compressai")
_SETTINGS_PER_JOB = 6


@dataclass(frozen=True)
class Job:
    """Work for one process.

    Attributes:
        stage: `"encode"` or `"decode"`.
        system: One of `SYSTEMS`.
        codec: Model folder.
        folder: Where pictures, bitstreams and results lie.
        settings: Settings by their number in the whole list; all of one instruction set.
        encoders: Numbers of all settings that encode.
    """

    stage: str
    system: str
    codec: str
    folder: str
    settings: dict[int, Setting]
    encoders: list[int]

    def save(self, path: Path) -> None:
        """Writes the job file."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Job":
        """Reads what `save` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        settings = {int(number): Setting(**setting) for number, setting in fields.pop("settings").items()}
        return cls(settings=settings, **fields)


def check_exactness(
    codec: str | Path,
    pictures: torch.Tensor,
    *,
    folder: str | Path,
    encoders: Sequence[Setting],
    decoders: Sequence[Setting],
    system: str = "comneck_hf",
    processes: int = 2,
) -> dict[str, Any]:
    """Encodes each picture under one setting and decodes all of them under every setting.

    Args:
        codec: Folder with a codec, or with a model that contains one.
        pictures: uint8 `(count, 3, height, width)`, sides multiples of 64; divided evenly among the encoders.
        folder: Empty folder for bitstreams and results.
        encoders: Settings that encode.
        decoders: Settings that decode.
        system: `"comneck_hf"`, or `"compressai"` for CompressAI's `elic2022-chandelier` with the same weights.
        processes: Worker processes at a time.

    Returns:
        What results/exactness.json holds for one codec: counts in total, by decoder, and every pair of encoder and
        decoder that was not exact.
    """
    if system not in SYSTEMS:
        raise ValueError(f"`system` must be one of {SYSTEMS}, got {system!r}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"`folder` must be empty, but {folder} is not.")
    settings = list(dict.fromkeys([*encoders, *decoders]))
    numbers = [settings.index(setting) for setting in encoders]
    for number, part in zip(numbers, pictures.tensor_split(len(numbers)), strict=True):
        save_file({"pictures": part.contiguous()}, folder / f"pictures-{number}.safetensors")
    if system == "compressai":
        # CompressAI derives its tables from floats: they are derived once here, as if they came with a checkpoint
        save_file(to_compressai(_load_whole(codec)).state_dict(), folder / "compressai.safetensors")
    for stage, members in (("encode", encoders), ("decode", decoders)):
        whole = Job(stage, system, str(codec), str(folder), {settings.index(s): s for s in members}, numbers)
        _run_all(_divided(whole), processes)
    return _report(folder, settings, numbers, [settings.index(setting) for setting in decoders])


def _divided(whole: Job) -> list[Job]:
    """Jobs of few settings of one instruction set each."""
    jobs = []
    for _, group in groupby(whole.settings.items(), key=lambda item: item[1].isa):
        members = list(group)
        parts = (members[first : first + _SETTINGS_PER_JOB] for first in range(0, len(members), _SETTINGS_PER_JOB))
        jobs += [replace(whole, settings=dict(part)) for part in parts]
    return jobs


def _run_all(jobs: list[Job], processes: int) -> None:
    with ThreadPoolExecutor(processes) as pool:
        futures = [pool.submit(_run, job) for job in jobs]
        for future in tqdm(as_completed(futures), total=len(jobs), desc=f"{jobs[0].system}: {jobs[0].stage}"):
            future.result()


def _run(job: Job) -> None:
    """Runs a job in a process of its own; again, for what is left, after each crash while decoding."""
    numbers = "-".join(map(str, job.settings))
    path = Path(job.folder) / f"{job.stage}-{numbers}.json"
    job.save(path)
    isa = next(iter(job.settings.values())).isa
    # Threads that wait must not spin: several workers share the cores
    environment = {**os.environ, **ISA_ENVIRONMENT[isa], "OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}
    started = -1
    while True:
        command = [sys.executable, "-W", "ignore", "-m", __name__, str(path)]
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if outcome.returncode == 0:
            return
        before, started = started, sum(len(_decoded(job.folder, number)) for number in job.settings)
        if job.stage == "encode" or started == before or started == 0:
            raise RuntimeError(f"A worker ended with {outcome.returncode}:\n{outcome.stderr[-2000:]}")


def _decoded(folder: str | Path, number: int) -> dict[tuple[int, int], Comparison]:
    """Batches that a decoder began: (encoder, first picture) to what came out, an error where nothing did."""
    path = Path(folder) / f"decoded-{number}.jsonl"
    batches: dict[tuple[int, int], Comparison] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        entry = json.loads(line)
        batches[entry["encoder"], entry["first"]] = Comparison(**entry["comparison"])
    return batches


def _report(folder: Path, settings: list[Setting], encoders: list[int], decoders: list[int]) -> dict[str, Any]:
    by_decoder, inexact, total = {}, [], Comparison()
    for decoder in decoders:
        by_encoder = dict.fromkeys(encoders, Comparison())
        for (encoder, _), comparison in _decoded(folder, decoder).items():
            by_encoder[encoder] += comparison
        for encoder, comparison in by_encoder.items():
            if not comparison.is_exact:
                pair = {"encoder": settings[encoder].name, "decoder": settings[decoder].name}
                inexact.append({**pair, **asdict(comparison)})
        by_decoder[settings[decoder].name] = asdict(sum(by_encoder.values(), Comparison()))
        total = sum(by_encoder.values(), total)
    sizes = [len(b) for number in encoders for b in Share.load(folder / f"share-{number}.safetensors").bitstreams]
    return {
        "pictures": len(sizes),
        "bytes_per_picture": round(sum(sizes) / len(sizes), 1),
        "encoders": len(encoders),
        "decoders": len(decoders),
        "total": asdict(total),
        "exact": not inexact,
        "by_decoder": by_decoder,
        "inexact_pairs": inexact,
    }


# --- the worker ----------------------------------------------------------------------------------------------------


def _load_whole(source: str | Path) -> ElicModel:
    """With float networks, too, which CompressAI's needs."""
    return restore_entropy_networks(codec_from_pretrained(source))


def _load(job: Job) -> ElicModel | CompressAICodec:
    if job.system == "comneck_hf":
        return codec_from_pretrained(job.codec)
    model = to_compressai(_load_whole(job.codec))
    model.load_state_dict(load_file(Path(job.folder) / "compressai.safetensors"))
    return CompressAICodec(model)


def _encode(job: Job) -> None:
    for number, setting in job.settings.items():
        pictures = load_file(Path(job.folder) / f"pictures-{number}.safetensors")["pictures"]
        codec = prepared(_load(job), setting)
        with applied(setting):
            share = encode_share(codec, pictures, setting)
        share.save(Path(job.folder) / f"share-{number}.safetensors")


def _decode(job: Job) -> None:
    for number, setting in job.settings.items():
        begun = _decoded(job.folder, number)
        codec = prepared(_load(job), setting)
        with (Path(job.folder) / f"decoded-{number}.jsonl").open("a", encoding="utf-8") as log, applied(setting):
            for encoder in job.encoders:
                share = Share.load(Path(job.folder) / f"share-{encoder}.safetensors")
                for chosen in chunks(share, setting.batch_size):
                    if (encoder, chosen.start) in begun:
                        continue
                    count = chosen.stop - chosen.start
                    crashed = Comparison(pictures=count, latents=share.latents[chosen].numel(), errors=count)
                    _note(log, encoder, chosen.start, crashed)  # stands unless the next line replaces it
                    _note(log, encoder, chosen.start, compare(codec, share, chosen))


def _note(log: TextIO, encoder: int, first: int, comparison: Comparison) -> None:
    log.write(json.dumps({"encoder": encoder, "first": first, "comparison": asdict(comparison)}) + "\n")
    log.flush()


__all__ = ["SYSTEMS", "Job", "check_exactness"]


if __name__ == "__main__":
    worker_job = Job.load(Path(sys.argv[1]))
    {"encode": _encode, "decode": _decode}[worker_job.stage](worker_job)
