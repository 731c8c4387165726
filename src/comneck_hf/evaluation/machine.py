"""What a measurement ran on, for the JSON files in results/."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
_PACKAGES = ("comneck_hf", "torch", "transformers", "numba", "numpy", "compressai", "pillow")
_EXTRAS = ("pillow-jxl-plugin",)


def cpu_flags() -> list[str]:
    """The instruction sets of this CPU that matter here; empty where the system does not tell."""
    text = _cpuinfo("flags")
    return [flag for flag in _CPU_FLAGS if flag in text.split()]


def describe_machine() -> dict[str, Any]:
    """CPU model, instruction sets, cores, GPU and package versions. No host name."""
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cpu_flags": cpu_flags(),
        "cpu_cores": torch.multiprocessing.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES} | _found(_EXTRAS),
    }


def _found(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


__all__ = ["cpu_flags", "describe_machine"]
