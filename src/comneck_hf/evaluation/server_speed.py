"""What a server pays from bytes to CLIP features: ComNeck beside what it replaces, side by side in one process."""

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..models.clip_inputs import clip_inputs
from ..models.comneck.configuration_comneck import ComNeckConfig
from ..models.elic.modeling_elic import ElicModel
from .benchmark import Task, interleaved_medians
from .complexity import SYSTEMS, Server
from .compressai_reference import CompressAICodec
from .file_formats import encode_picture
from .pictures import picture_tensor, tensor_picture


JPEG_QUALITY = 25
PARTS = tuple(dict.fromkeys(part for parts in SYSTEMS.values() for part in parts))


@dataclass(frozen=True)
class Form:
    """How the float networks run, on all sides alike.

    Attributes:
        dtype: Their type.
        is_optimized: Channels-last convolutions, and everything compiled.
    """

    dtype: torch.dtype = torch.float32
    is_optimized: bool = False

    @property
    def name(self) -> str:
        """For reports."""
        return str(self.dtype).removeprefix("torch.") + (", channels last, compiled" if self.is_optimized else "")

    def server(self, config: ComNeckConfig, codec: ElicModel | None = None) -> Server:
        """A server in this form; a given codec keeps its weights, and its type where only `g_s` changes."""
        server = Server.random(config, dtype=self.dtype, codec=codec)
        server.codec.g_s.to(self.dtype)
        if self.is_optimized:
            tower = server.tower
            modules: list[nn.Module] = [
                tower.neck,
                tower.embeddings,
                *tower.encoder.layers,
                server.codec.g_s,
                server.unet,
            ]
            for module in modules:
                module.to(memory_format=torch.channels_last).compile()
        return server


def part_speed(server: Server, *, batch_sizes: Sequence[int] = (1, 8), repeats: int = 5) -> dict[str, Any]:
    """Time of the parts in which the systems differ.

    Args:
        server: Of `Form.server`.
        batch_sizes: Pictures per call.
        repeats: Rounds.

    Returns:
        By batch size: `ms_per_picture` of each part, and by system how many `times_comneck` its parts take.
    """
    report: dict[str, Any] = {}
    for size in batch_sizes:
        parts = server.parts(size)
        tasks: dict[str, Task] = {name: parts[name].run for name in PARTS}
        with torch.inference_mode():
            seconds = interleaved_medians(tasks, repeats=repeats)
        totals = {system: sum(seconds[part] for part in chosen) for system, chosen in SYSTEMS.items()}
        report[f"batch_{size}"] = {
            "ms_per_picture": {name: 1000 * value / size for name, value in seconds.items()},
            "times_comneck": {name: total / totals["ComNeck"] for name, total in totals.items()},
        }
    return report


def server_speed(
    server: Server, other: CompressAICodec, pictures: torch.Tensor, *, repeats: int = 3
) -> dict[str, Any]:
    """Bytes to CLIP features as a whole: ComNeck, Reconstruction, Post-processing, the authors' path, JPEG.

    The authors' path is ComNeck with CompressAI's entropy decoding. All sides get the same pictures in one batch; JPEG
    files have quality 25.

    Args:
        server: With a trained codec.
        other: The codec's weights in CompressAI.
        pictures: uint8 `(batch, 3, height, width)`.
        repeats: Rounds.

    Returns:
        `ms_per_picture` of each, and `times_comneck`.
    """
    tower, codec, dtype = server.tower, server.codec, server.tower.dtype
    size = server.config.vision_config.image_size
    bitstreams, theirs = codec.compress(pictures / 255), other.compress(pictures / 255)
    files = [encode_picture(tensor_picture(picture), quality=JPEG_QUALITY).data for picture in pictures]

    def see(pixel_values: torch.Tensor) -> torch.Tensor:
        return tower(pixel_values=clip_inputs(pixel_values.float(), size).to(dtype)).pooler_output

    def decoded() -> torch.Tensor:
        return codec.g_s(codec.decompress(bitstreams).to(dtype)).clamp(0, 1)

    def read_files() -> torch.Tensor:
        images = [picture_tensor(Image.open(io.BytesIO(data))) for data in files]
        return torch.stack(images) / 255

    tasks: dict[str, Task] = {
        "ComNeck": lambda: tower(latents=codec.decompress(bitstreams).to(dtype)).pooler_output,
        "Reconstruction": lambda: see(decoded()),
        "Post-processing": lambda: see(server.unet(decoded())),
        "authors' path": lambda: tower(latents=other.decompress(theirs).to(dtype)).pooler_output,
        "JPEG": lambda: see(read_files()),
    }
    with torch.inference_mode():
        seconds = interleaved_medians(tasks, repeats=repeats)
    return {
        "pictures": len(pictures),
        "ms_per_picture": {name: 1000 * value / len(pictures) for name, value in seconds.items()},
        "times_comneck": {name: value / seconds["ComNeck"] for name, value in seconds.items() if name != "ComNeck"},
    }


def part_memory(config: ComNeckConfig, *, batch_size: int = 1) -> dict[str, dict[str, float]]:
    """Memory of each part in MiB: its float32 `weights`, and what a first call takes beyond them (on Linux).

    Args:
        config: With a codec.
        batch_size: Pictures per call.
    """
    command = [sys.executable, "-c", f"from {__name__} import report_memory; report_memory()"]
    report = {}
    for name in PARTS:
        arguments = json.dumps([config.to_dict(), name, batch_size])
        result = subprocess.run(command, input=arguments, capture_output=True, text=True, check=True)
        report[name] = json.loads(result.stdout.splitlines()[-1])
    return report


def report_memory() -> None:
    """Reads configuration, part and batch size from stdin, and writes the part's memory to stdout."""
    fields, name, batch_size = json.load(sys.stdin)
    torch.set_num_threads(1)
    part = Server.random(ComNeckConfig.from_dict(fields)).parts(batch_size)[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident
    before = _resident_mib("VmRSS")
    with torch.inference_mode():
        part.run()
    memory = {"weights": 4 * part.num_params / 2**20, "first_call": _resident_mib("VmHWM") - before}
    sys.stdout.write(json.dumps(memory) + "\n")


def _resident_mib(name: str) -> float:
    """A line of Linux's account of this process, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


__all__ = ["Form", "part_memory", "part_speed", "report_memory", "server_speed"]
