"""The whole way of one picture: bytes, decoded picture, labels from the latents, and what each stage takes."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .. import ComNeckImageProcessorPil, ComNeckModel, ElicModel
from ..evaluation.file_formats import CodedPicture, picture_at_bytes, picture_at_psnr
from ..evaluation.metrics import bits_per_pixel, picture_psnr
from ..evaluation.plots import save_label_figure
from ..models.elic.inspection_elic import inspect_bitstream
from .files import to_image
from .labels import Label, ZeroShotClassifier


__all__ = ["DemoResult", "demo_photograph", "run_demo"]

PHOTOGRAPH = "astronaut.png"
REPEATS = 5


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured on one picture.

    Attributes:
        name: Name of the picture.
        original: What was coded: the picture after resize and crop, 8 bits.
        decoded: The picture that comes back, 8 bits.
        num_bytes: Size of the bitstream.
        psnr: Of the decoded picture, in dB.
        equal_psnr: The smallest JPEG at least as good.
        equal_bytes: The best JPEG that is not larger; quality 1 if none is that small.
        seconds: Time per stage, median of five runs.
        labels: The most probable labels by source: `"original"`, `"decoded"`, `"latents"`.
    """

    name: str
    original: Image.Image
    decoded: Image.Image
    num_bytes: int
    psnr: float
    equal_psnr: CodedPicture
    equal_bytes: CodedPicture
    seconds: dict[str, float]
    labels: dict[str, list[Label]]

    @property
    def bpp(self) -> float:
        """Bits per pixel of the bitstream."""
        return self._bpp(self.num_bytes)

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        width, height = self.original.size
        return {
            "picture": self.name,
            "height": height,
            "width": width,
            "bytes": self.num_bytes,
            "bpp": self.bpp,
            "psnr": _finite(self.psnr),
            "jpeg_at_equal_psnr": self._jpeg_numbers(self.equal_psnr),
            "jpeg_at_equal_bytes": self._jpeg_numbers(self.equal_bytes),
            "seconds": self.seconds,
            "labels": {source: [label._asdict() for label in labels] for source, labels in self.labels.items()},
        }

    def to_text(self) -> str:
        """The same as a table of a few lines."""
        width, height = self.original.size
        lines = [
            f"{self.name}, {width}x{height} pixels coded",
            "",
            f"{'':<22}{'bytes':>7}{'bpp':>8}{'PSNR':>10}",
            _size_line("comneck", self.num_bytes, self.bpp, self.psnr),
        ]
        for title, jpeg in (("equal PSNR", self.equal_psnr), ("equal bytes", self.equal_bytes)):
            size = len(jpeg.data)
            line = _size_line(f"JPEG, {title}", size, self._bpp(size), jpeg.psnr)
            lines.append(f"{line}   quality {jpeg.quality}, {size / self.num_bytes:.2f} x the bytes")
        if self.equal_psnr.psnr < self.psnr:
            lines.append("JPEG does not reach this PSNR at quality 95.")
        if len(self.equal_bytes.data) > self.num_bytes:
            lines.append("JPEG cannot be this small, not even at quality 1.")
        lines += ["", f"milliseconds (median of {REPEATS})"]
        lines += [f"  {stage:<34}{1000 * seconds:>8.2f}" for stage, seconds in self.seconds.items()]
        columns = [[f"from the {source}", *map(_label_cell, labels)] for source, labels in self.labels.items()]
        widths = [max(map(len, column)) + 3 for column in columns]
        lines += ["", "labels"]
        lines += [
            "  " + "".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in zip(*columns, strict=True)
        ]
        return "\n".join(lines)

    def save_figure(self, path: str | Path) -> None:
        """Draws original, decoded picture and JPEG at equal bytes, and the three lists of labels below."""
        jpeg = self.equal_bytes
        pictures = [
            ("original", self.original),
            (f"decoded from {self.num_bytes} bytes, {self.psnr:.1f} dB", self.decoded),
            (f"JPEG of {len(jpeg.data)} bytes (quality {jpeg.quality}), {jpeg.psnr:.1f} dB", jpeg.image),
        ]
        captions = {
            "original": "labels from the original (full CLIP)",
            "decoded": "labels from the decoded picture (full CLIP)",
            "latents": "labels from the latents (neck, no picture)",
        }
        charts = [(captions[source], labels) for source, labels in self.labels.items()]
        ratio = len(self.equal_psnr.data) / self.num_bytes
        title = (
            f"{self.name}: {self.num_bytes} bytes, {self.bpp:.3f} bpp; JPEG of equal PSNR has {ratio:.2f} x the bytes"
        )
        save_label_figure(path, pictures=pictures, labels=charts, title=title)

    def _bpp(self, num_bytes: int) -> float:
        width, height = self.original.size
        return bits_per_pixel(num_bytes, height=height, width=width)

    def _jpeg_numbers(self, jpeg: CodedPicture) -> dict[str, float | None]:
        size = len(jpeg.data)
        return {
            "bytes": size,
            "bpp": self._bpp(size),
            "psnr": _finite(jpeg.psnr),
            "quality": jpeg.quality,
            "ratio": size / self.num_bytes,
        }


def demo_photograph() -> Path:
    """The packaged photograph; its source and licence are in the README beside it."""
    return Path(__file__).resolve().parents[1] / "pretrained" / "photographs" / PHOTOGRAPH


@torch.no_grad()
def run_demo(
    image: Image.Image,
    *,
    name: str,
    model: ComNeckModel,
    image_processor: ComNeckImageProcessorPil,
    classifier: ZeroShotClassifier,
    num_labels: int = 3,
) -> DemoResult:
    """Codes a picture, decodes it, and labels it three ways.

    Args:
        image: RGB picture of any size.
        name: How to call it in the results.
        model: Codec, neck and tower.
        image_processor: The model's; it must crop to the size of the neck's latents.
        classifier: Made from the CLIP of the model.
        num_labels: How many labels to list.
    """
    pixel_values = image_processor(images=image, return_tensors="pt")["pixel_values"].to(model.device)
    bitstreams = model.compress(pixel_values)
    latents, gains = model.decompress(bitstreams), model.coded_gains(bitstreams)
    original, decoded = (
        to_image(pixel_values[0]),
        to_image(model.reconstruct(latents, size=pixel_values.shape[-2:], **gains)[0]),
    )
    embeds = {
        "original": classifier.embed_pictures([original]),
        "decoded": classifier.embed_pictures([decoded]),
        "latents": model(latents=latents, **gains).image_embeds,
    }
    distortion = picture_psnr(decoded, original)
    return DemoResult(
        name=name,
        original=original,
        decoded=decoded,
        num_bytes=len(bitstreams[0]),
        psnr=distortion,
        equal_psnr=picture_at_psnr(original, distortion),
        equal_bytes=picture_at_bytes(original, len(bitstreams[0])),
        seconds=_stage_seconds(model, pixel_values, bitstreams, latents),
        labels={source: classifier.top(embedding, num_labels)[0] for source, embedding in embeds.items()},
    )


def _stage_seconds(
    model: ComNeckModel, pixel_values: torch.Tensor, bitstreams: Sequence[bytes], latents: torch.Tensor
) -> dict[str, float]:
    if not isinstance(model.codec, ElicModel):
        raise ValueError(
            f"The demo shows the stages of ELIC and TIC codecs, this one is {model.codec.config.model_type!r}. Use "
            "`comneck encode`, `decode` and `classify`."
        )
    encoded = inspect_bitstream(model.codec, bitstreams[0]).encoded
    gains = model.coded_gains(bitstreams)
    coding = _median_seconds(lambda: model.codec.exact.pack(encoded), model.device)
    compressing = _median_seconds(lambda: model.compress(pixel_values), model.device)
    return {
        "edge: g_a and entropy networks": max(compressing - coding, 0.0),
        "edge: entropy coding": coding,
        "server: bytes to latents": _median_seconds(lambda: model.decompress(bitstreams), model.device),
        "server: neck and CLIP layers": _median_seconds(lambda: model(latents=latents, **gains), model.device),
        "picture, if wanted: g_s": _median_seconds(lambda: model.reconstruct(latents, **gains), model.device),
    }


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _size_line(title: str, num_bytes: int, bpp: float, distortion: float) -> str:
    return f"{title:<22}{num_bytes:>7}{bpp:>8.3f}{distortion:>7.2f} dB"


def _label_cell(label: Label) -> str:
    return f"{label.label} {100 * label.probability:.1f} %"


def _finite(value: float) -> float | None:
    """JSON has no infinity, the PSNR of equal pictures."""
    return value if math.isfinite(value) else None
