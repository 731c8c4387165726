"""What `comneck info` and `comneck env` tell: facts as dictionaries for JSON, and the same as text."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .. import Bitstream, ElicModel, __version__
from ..coding.gain_map import GAINS_PER_OCTAVE
from ..evaluation.metrics import bits_per_pixel


__all__ = ["bitstream_facts", "bitstream_text", "environment_facts", "environment_text"]

PACKAGES = ("torch", "torchvision", "transformers", "safetensors", "numpy", "numba", "pillow", "compressai")


def bitstream_facts(data: bytes, *, codec: PreTrainedModel | None = None) -> dict[str, Any]:
    """Sizes, origin and integrity of a bitstream, and what its bits are spent on.

    Args:
        data: Content of a `.cnk` file.
        codec: The codec it may have been written by. Without one, or with another one, the container alone is read.

    Returns:
        `segments` lists symbols, bits under the integer tables and bits the float likelihoods estimate; it is there
        only if the codec wrote the bitstream and has such tables.

    Raises:
        BitstreamError: If the bitstream is damaged.
    """
    container = Bitstream.parse(data)
    height, width = container.height, container.width
    facts: dict[str, Any] = {
        "version": data[3],
        "height": height,
        "width": width,
        "bytes": len(data),
        "payload_bytes": len(container.payload),
        "bpp": bits_per_pixel(len(data), height=height, width=width),
        "fingerprint": f"{container.fingerprint:08x}",
        "integrity": "checksum",
        **_gain_facts(container),
    }
    if codec is None:
        return facts
    facts["model_fingerprint"] = f"{codec.fingerprint:08x}"
    facts["model_matches"] = container.fingerprint == codec.fingerprint
    if facts["model_matches"]:
        facts |= _decoded_facts(data, codec)
    return facts


def _gain_facts(container: Bitstream) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if container.gain:
        facts["gain"] = container.gain / GAINS_PER_OCTAVE
    if container.gain_map is not None:
        facts["gain_map"] = {"step": container.gain_map.step / 4, "levels": container.gain_map.gain_index}
    return facts


def _decoded_facts(data: bytes, codec: PreTrainedModel) -> dict[str, Any]:
    from ..models.elic.inspection_elic import inspect_bitstream

    factor = codec.config.downsampling_factor
    if not isinstance(codec, ElicModel):
        shape = codec.decompress([data]).shape[1:]
        size = {"coded_height": factor * shape[1], "coded_width": factor * shape[2]}
        return {"integrity": "checksum, decoded symbols", **size, "latents": list(shape)}
    report = inspect_bitstream(codec, data)
    return {
        "integrity": "checksum, decoded symbols, same bytes when encoded again",
        "coded_height": factor * report.latents.shape[2],
        "coded_width": factor * report.latents.shape[3],
        "latents": list(report.latents.shape[1:]),
        "estimated_bytes": sum(segment.estimated_bits for segment in report.segments) / 8,
        "segments": [
            {
                "name": segment.name,
                "symbols": segment.symbols,
                "bits": segment.bits,
                "estimated_bits": segment.estimated_bits,
            }
            for segment in report.segments
        ],
    }


def bitstream_text(facts: Mapping[str, Any], *, name: str, model: str) -> str:
    """`bitstream_facts` for a terminal.

    Args:
        facts: What `bitstream_facts` returned.
        name: Name of the file.
        model: Name of the model that was asked, or an empty string.
    """
    lines = [
        f"{name}: comneck bitstream, version {facts['version']}",
        f"  picture      {facts['width']}x{facts['height']} pixels",
        f"  size         {facts['bytes']} bytes, {facts['payload_bytes']} of them entropy-coded",
        f"  rate         {facts['bpp']:.4f} bits per pixel",
        f"  fingerprint  {facts['fingerprint']}",
        f"  integrity    {facts['integrity']}",
    ]
    if "gain" in facts:
        lines.append(f"  gain         {facts['gain']:+.2f} octaves")
    if "gain_map" in facts:
        rows, step = facts["gain_map"]["levels"], facts["gain_map"]["step"]
        lines.append(f"  gain map     {len(rows)}x{len(rows[0])} cells, {step:g} octaves a level")
        lines += ["    " + "".join(_level_sign(level) for level in row) for row in rows]
    if "model_matches" in facts:
        verdict = "wrote it" if facts["model_matches"] else f"has {facts['model_fingerprint']} and cannot decode it"
        lines.append(f"  model        {model} {verdict}")
    if "latents" in facts:
        shape = "x".join(map(str, facts["latents"]))
        lines.append(f"  latents      {shape}, of {facts['coded_width']}x{facts['coded_height']} pixels")
    if "segments" in facts:
        lines.append(f"  estimate     {facts['estimated_bytes']:.1f} bytes by the float likelihoods")
        lines += ["", f"  {'segment':<12}{'symbols':>9}{'bits':>11}{'estimate':>11}{'share':>9}"]
        for part in facts["segments"]:
            share = part["bits"] / (8 * facts["bytes"])
            estimate = f"{part['estimated_bits']:.1f}" if part["symbols"] else ""
            lines.append(f"  {part['name']:<12}{part['symbols']:>9}{part['bits']:>11.1f}{estimate:>11}{share:>9.1%}")
    return "\n".join(lines)


def _level_sign(level: int) -> str:
    """One character for a level of a gain map: 0 is a dot, negative levels are letters."""
    if level == 0:
        return "."
    return f"{level:x}" if level > 0 else chr(ord("a") + 15 + -level)


def environment_facts() -> dict[str, Any]:
    """Versions, processor, threads, devices, the executor of the integer networks, and packaged models."""
    import torch

    from ..coding.exact import resolve_executor

    cpu, gpus = torch.device("cpu"), torch.cuda.device_count() if torch.cuda.is_available() else 0
    root = Path(__file__).resolve().parents[1] / "pretrained"
    return {
        "comneck_hf": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{package: _version(package) for package in PACKAGES},
        "torch": torch.__version__,  # with the build's suffix, such as +cpu
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(gpus)],
        "executor_cpu": resolve_executor(None, cpu),
        "executor_gpu": resolve_executor(None, torch.device("cuda")) if gpus else None,
        "packaged_models": sorted(path.parent.name for path in root.glob("*/config.json")),
    }


def environment_text(facts: Mapping[str, Any]) -> str:
    """`environment_facts` for a terminal, or for a bug report."""
    shown = {name: ", ".join(value) if isinstance(value, list) else value for name, value in facts.items()}
    return "\n".join(f"{name:<16}{value if value not in ('', None) else '-'}" for name, value in shown.items())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
