"""Do bitstreams of one setting decode to the same latents in every other? Settings, and the comparison itself.

A setting is a way to run the codec: threads, batch size, backend switches, precision, instruction sets, device. The
encoder may decide other symbols under another setting; what counts is that every decoder returns the encoder's
latents, bit for bit.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ..coding.gain_map import GainMap
from ..models.elic.modeling_elic import ElicModel
from .compressai_reference import CompressAICodec


# Environment variables that limit the CPU's instruction sets; they are read when torch and numba are loaded
ISA_ENVIRONMENT: dict[str, dict[str, str]] = {
    "native": {},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"},
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "",
    },
    "sse4": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "NUMBA_CPU_NAME": "nehalem",
        "NUMBA_CPU_FEATURES": "",
    },
}


@dataclass(frozen=True)
class Setting:
    """One way to run a codec.

    Attributes:
        name: Unique, for the report.
        threads: Of torch.
        batch_size: Pictures per call.
        executor: Of the integer networks; `None` for the default.
        onednn: Whether oneDNN may be used.
        reduced_products: Whether float32 products may use bf16 (CPU) or TF32 (GPU) factors, set globally.
        channels_last: Memory format of model and pictures.
        compiled: Whether the float parts of the encoder (g_a, h_a) are compiled.
        autocast: Whether an ambient bf16 autocast surrounds the calls.
        dtype: The model is cast to it.
        device: Where the model runs.
        isa: Key of `ISA_ENVIRONMENT`; other than native needs a process of its own.
    """

    name: str
    threads: int = 1
    batch_size: int = 8
    executor: str | None = None
    onednn: bool = True
    reduced_products: bool = False
    channels_last: bool = False
    compiled: bool = False
    autocast: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    isa: str = "native"


REFERENCE = Setting("1 thread, batch 1", batch_size=1)

CPU_SETTINGS = (
    REFERENCE,
    Setting("2 threads, batch 1", threads=2, batch_size=1),
    Setting("1 thread, batch 8"),
    Setting("2 threads, batch 64", threads=2, batch_size=64),
    Setting("oneDNN off", onednn=False),
    Setting("oneDNN off, 2 threads, batch 64", onednn=False, threads=2, batch_size=64),
    Setting("oneDNN off, float64", onednn=False, executor="float64"),
    Setting("bf16 products", reduced_products=True),
    Setting("bf16 products, float32", reduced_products=True, executor="float32"),
    Setting("channels last", channels_last=True),
    Setting("compiled encoder", compiled=True),
    Setting("bf16 autocast", autocast=True),
    Setting("bf16 autocast, float32, 2 threads", autocast=True, executor="float32", threads=2),
    Setting("bf16 model", dtype="bfloat16"),
    Setting("float32", executor="float32"),
    Setting("bfloat16", executor="bfloat16"),
    Setting("float64", executor="float64"),
    Setting("AVX-512 without VNNI", isa="avx512"),
    Setting("AVX-512 without VNNI, bfloat16, channels last", isa="avx512", executor="bfloat16", channels_last=True),
    Setting("AVX2", isa="avx2"),
    Setting("AVX2, float32, 2 threads", isa="avx2", executor="float32", threads=2),
    Setting("AVX2, float64, batch 64", isa="avx2", executor="float64", batch_size=64),
    Setting("SSE4", isa="sse4"),
    Setting("SSE4, float32, batch 64", isa="sse4", executor="float32", batch_size=64),
)

_CUDA_SETTINGS = (
    Setting("CUDA", device="cuda"),
    Setting("CUDA, TF32", device="cuda", reduced_products=True),
    Setting("CUDA, int8", device="cuda", executor="int8"),
    Setting("CUDA, bfloat16, batch 64", device="cuda", executor="bfloat16", batch_size=64),
    Setting("CUDA, bf16 model, TF32, autocast", device="cuda", dtype="bfloat16", reduced_products=True, autocast=True),
)


def all_settings() -> list[Setting]:
    """Settings of this machine: those of the GPU only where there is one."""
    return [*CPU_SETTINGS, *(_CUDA_SETTINGS if torch.cuda.is_available() else ())]


@contextmanager
def applied(setting: Setting) -> Iterator[None]:
    """Switches torch to a setting, and back afterwards. The instruction sets are the process's own."""
    products = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.cuda.matmul)
    before = (torch.get_num_threads(), [part.fp32_precision for part in products])
    torch.set_num_threads(setting.threads)
    device = torch.device(setting.device).type
    try:
        if setting.reduced_products:
            for part, precision in zip(products, ("bf16", "bf16", "tf32"), strict=True):
                part.fp32_precision = precision
        with (
            torch.backends.mkldnn.flags(enabled=setting.onednn),
            torch.autocast(device, dtype=torch.bfloat16, enabled=setting.autocast),
            torch.no_grad(),
        ):
            yield
    finally:
        torch.set_num_threads(before[0])
        for part, precision in zip(products, before[1], strict=True):
            part.fp32_precision = precision


def prepared(codec: ElicModel | CompressAICodec, setting: Setting) -> ElicModel | CompressAICodec:
    """Casts, moves and compiles a codec for a setting; in place."""
    codec = codec.to(setting.device, getattr(torch, setting.dtype)).eval()
    if setting.channels_last:
        codec = codec.to(memory_format=torch.channels_last)
    if isinstance(codec, ElicModel):
        codec.exact.executor = setting.executor
        if setting.compiled:
            codec.g_a.compile()
            codec.h_a.compile()
    return codec


@dataclass(frozen=True)
class Share:
    """What one setting encoded.

    Attributes:
        bitstreams: One per picture.
        latents: The encoder's, float32 `(pictures, channels, height, width)`.
    """

    bitstreams: list[bytes]
    latents: torch.Tensor

    def save(self, path: str | Path) -> None:
        """Writes the share as one safetensors file."""
        data = torch.frombuffer(bytearray(b"".join(self.bitstreams)), dtype=torch.uint8)
        lengths = torch.tensor([len(bitstream) for bitstream in self.bitstreams])
        save_file({"data": data, "lengths": lengths, "latents": self.latents}, path)

    @classmethod
    def load(cls, path: str | Path) -> "Share":
        """Reads what `save` wrote."""
        parts = load_file(path)
        pieces = parts["data"].split(parts["lengths"].tolist())
        return cls([piece.numpy().tobytes() for piece in pieces], parts["latents"])


@dataclass(frozen=True)
class Comparison:
    """What a decoder made of some bitstreams.

    Attributes:
        pictures: Decoded pictures.
        latents: Compared values.
        differing_pictures: Pictures with at least one value that differs from the encoder's.
        differing_latents: Values that differ.
        wrong_pictures: Pictures with a value off by more than half a quantization step: float rounding of the means
            does not explain that, only a wrong symbol does.
        errors: Pictures whose decoding raised an error or ended the process.
    """

    pictures: int = 0
    latents: int = 0
    differing_pictures: int = 0
    differing_latents: int = 0
    wrong_pictures: int = 0
    errors: int = 0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    @property
    def is_exact(self) -> bool:
        """Whether something was compared and everything agreed."""
        return self.latents > 0 and self.differing_pictures == 0 and self.errors == 0


def draw_gain(seed: str) -> tuple[float, GainMap | None]:
    """Gain in octaves and map of one picture: for half of the seeds 0 and none, as plain bitstreams have them."""
    source = random.Random(seed)
    if source.random() < 0.5:
        return 0.0, None
    rows, columns = source.randint(1, 8), source.randint(1, 8)
    cells = tuple(tuple(source.randint(-1, 1) for _ in range(columns)) for _ in range(rows))
    return source.uniform(-3, 2), GainMap(cells, step=source.randint(1, 4))


def encode_share(codec: ElicModel | CompressAICodec, pictures: torch.Tensor, setting: Setting) -> Share:
    """Encodes pictures under a setting, which must be `applied`; our codecs with the gains of `draw_gain`.

    Args:
        codec: Already `prepared`.
        pictures: uint8 `(count, 3, height, width)`, sides multiples of 64.
        setting: For the batch size and memory format.
    """
    bitstreams: list[bytes] = []
    latents = []
    for first, batch in zip(range(0, len(pictures), setting.batch_size), pictures.split(setting.batch_size)):
        pixel_values = batch.float() / 255
        if setting.channels_last:
            pixel_values = pixel_values.to(memory_format=torch.channels_last)
        options: dict[str, Any] = {}
        if isinstance(codec, ElicModel):
            drawn = [draw_gain(f"{setting.name} {index}") for index in range(first, first + len(batch))]
            options = {"gain": [gain for gain, _ in drawn], "gain_maps": [gain_map for _, gain_map in drawn]}
        latents.append(codec.encode(pixel_values, **options).latents.float().cpu())
        bitstreams += codec.compress(pixel_values, **options)
    return Share(bitstreams, torch.cat(latents).contiguous())


def compare(codec: ElicModel | CompressAICodec, share: Share, chosen: slice) -> Comparison:
    """Decodes some pictures of a share as one batch, under the setting that is `applied`.

    A batch that raises is decoded again picture by picture, to count the pictures that are at fault.
    """
    bitstreams, expected = share.bitstreams[chosen], share.latents[chosen]
    count = len(bitstreams)
    try:
        decoded = codec.decompress(bitstreams).float().cpu()
    except (ValueError, RuntimeError, IndexError):
        if count == 1:
            return Comparison(pictures=1, latents=expected.numel(), errors=1)
        first = chosen.start
        singles = (compare(codec, share, slice(index, index + 1)) for index in range(first, first + count))
        return sum(singles, Comparison())
    wrong = ~((decoded - expected).abs() <= 0.5)  # NaN is wrong, too
    differing = decoded.contiguous().view(torch.int32) != expected.contiguous().view(torch.int32)
    return Comparison(
        pictures=count,
        latents=expected.numel(),
        differing_pictures=int(differing.flatten(1).any(1).sum()),
        differing_latents=int(differing.sum()),
        wrong_pictures=int(wrong.flatten(1).any(1).sum()),
    )


def chunks(share: Share, batch_size: int) -> Iterator[slice]:
    """Batches of a share."""
    for first in range(0, len(share.bitstreams), batch_size):
        yield slice(first, min(first + batch_size, len(share.bitstreams)))


def for_compressai(settings: Sequence[Setting]) -> list[Setting]:
    """The settings that CompressAI's model has too: it is neither cast nor compiled, and has no executors."""
    return [
        setting
        for setting in settings
        if setting.executor is None and setting.dtype == "float32" and not setting.compiled
    ]


__all__ = [
    "CPU_SETTINGS",
    "ISA_ENVIRONMENT",
    "REFERENCE",
    "Comparison",
    "Setting",
    "Share",
    "all_settings",
    "applied",
    "chunks",
    "compare",
    "draw_gain",
    "encode_share",
    "for_compressai",
    "prepared",
]
