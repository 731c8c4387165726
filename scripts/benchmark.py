"""Speed and size beside CompressAI, on one core, as ratios of medians: results/benchmark.json.

python scripts/benchmark.py --pictures DATA/imagenet_sample_256 --kodak DATA/kodak [--compile]
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms.v2.functional import center_crop
from transformers import HfArgumentParser

from comneck_hf import ComNeckConfig, CotamConfig, CotamModel
from comneck_hf.commands.loading import resolve_model
from comneck_hf.evaluation.benchmark import coder_speed, compress_speed, decompress_speed, start_seconds
from comneck_hf.evaluation.compressai_reference import CompressAICodec, to_compressai
from comneck_hf.evaluation.cotam_speed import cotam_speed
from comneck_hf.evaluation.exactness import ISA_ENVIRONMENT
from comneck_hf.evaluation.machine import cpu_flags, describe_machine
from comneck_hf.evaluation.pictures import load_picture_folder, load_pictures
from comneck_hf.evaluation.reference_codec import TRAINING_PICTURES, load_reference_codec
from comneck_hf.evaluation.server_speed import Form, part_memory, part_speed, server_speed
from comneck_hf.evaluation.size import summarize_sizes
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.restoration_elic import restore_entropy_networks


NO_BF16 = "not measured: this CPU has no bf16 instructions"


@dataclass
class Arguments:
    """Pictures, codecs and repeats."""

    pictures: str = field(metadata={"help": "imagenet_sample_256; its first pictures train the reference codec"})
    kodak: str = field(metadata={"help": "folder with the Kodak pictures"})
    codec: str = field(default="runs/reference-codec", metadata={"help": "full-width codec, trained when missing"})
    tiny_codec: str = field(default="comneck-tiny-d1-q2", metadata={"help": "trained model"})
    size_pictures: int = field(default=200, metadata={"help": "pictures of 256x256 whose sizes are taken"})
    repeats: int = 15
    compile: bool = field(default=False, metadata={"help": "also measure compiled networks (minutes more)"})
    server_repeats: int = field(default=3, metadata={"help": "rounds of the parts at the size of ViT-L/14"})
    parts: list[str] = field(
        default_factory=lambda: ["coder", "decompress", "avx512", "compress", "server", "cotam", "start", "size"]
    )
    output: str = "results/benchmark.json"


def measure_decompress(args: Arguments, codec: ElicModel, pictures: torch.Tensor) -> dict[str, Any]:
    executors = ["int8", "float32", "float64"] + (["bfloat16"] if "amx_bf16" in cpu_flags() else [])
    other = CompressAICodec(to_compressai(codec))
    return decompress_speed(codec, other, pictures, executors=executors, repeats=args.repeats)


def has_bf16() -> bool:
    """Whether products in bf16 are faster than in float32 here."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpu_flags())


def measure_compress(args: Arguments, codec: ElicModel, pictures: torch.Tensor) -> dict[str, Any]:
    def form(dtype: torch.dtype, *, compiled: bool) -> ElicModel:
        model = ElicModel.from_pretrained(args.codec, dtype=dtype).eval().to(memory_format=torch.channels_last)
        if compiled:
            model.g_a.compile()
        return model

    variants = {"float32, channels last": form(torch.float32, compiled=False)}
    if has_bf16():
        variants["bf16, channels last"] = form(torch.bfloat16, compiled=False)
    if args.compile:
        for name in list(variants):
            variants[f"{name}, compiled"] = form(variants[name].dtype, compiled=True)
    other = CompressAICodec(to_compressai(codec))
    report = compress_speed(codec, other, pictures, variants=variants, repeats=max(3, args.repeats // 3))
    return report if has_bf16() else {**report, "bf16": NO_BF16}


def measure_limited(args: Arguments) -> dict[str, Any]:
    """The decompression part again, in a process whose oneDNN is limited to AVX-512 without VNNI and AMX."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "part.json"
        options = {name: str(getattr(args, name)) for name in ("pictures", "kodak", "codec", "repeats")}
        command = [sys.executable, __file__, "--parts", "decompress", "--output", str(output)]
        command += [text for name, value in options.items() for text in (f"--{name}", value)]
        limit = {"ONEDNN_MAX_CPU_ISA": ISA_ENVIRONMENT["avx512"]["ONEDNN_MAX_CPU_ISA"]}
        subprocess.run(command, env={**os.environ, **limit}, check=True)
        return json.loads(output.read_text(encoding="utf-8"))["decompress"]


def measure_server(args: Arguments, pictures: torch.Tensor) -> dict[str, Any]:
    """From bytes to features at the size of ViT-L/14; weights of CLIP, neck and U-Net are random."""
    forms = [Form(dtype, form) for dtype in (torch.float32, torch.bfloat16) for form in (False, True)]
    if not has_bf16():
        forms = [form for form in forms if form.dtype == torch.float32]
    report: dict[str, Any] = {"memory_mib": part_memory(ComNeckConfig())}
    for form in forms:
        if form.is_optimized and not args.compile:
            continue
        codec = ElicModel.from_pretrained(args.codec).eval()
        other = CompressAICodec(to_compressai(codec))
        server = form.server(ComNeckConfig(), codec)
        report[form.name] = {
            "parts": part_speed(server, repeats=args.server_repeats),
            "batch_1": server_speed(server, other, pictures[:1], repeats=args.server_repeats),
            "batch_8": server_speed(server, other, pictures[:8], repeats=args.server_repeats),
        }
    return report if has_bf16() else {**report, "bfloat16": NO_BF16}


def measure_cotam(args: Arguments, codec: ElicModel) -> dict[str, Any]:
    """Guide and adapter at the size of ViT-L/14 with 336 pixels, whose weights are random; pictures of 384 pixels."""
    vision = {"image_size": 336, "latent_channels": codec.config.latent_channels}
    model = CotamModel(CotamConfig(codec_config=codec.config, vision_config=vision)).eval()
    model.codec = codec
    kodak = [center_crop(picture, [384, 384]) for picture in load_picture_folder(args.kodak, limit=4)]
    pictures = torch.stack(kodak) / 255
    return {f"batch_{size}": cotam_speed(model, pictures[:size], repeats=args.server_repeats) for size in (1, 4)}


def measure_size(args: Arguments, codec: ElicModel) -> dict[str, Any]:
    squares = load_pictures(args.pictures, start=TRAINING_PICTURES, stop=TRAINING_PICTURES + args.size_pictures)
    sets = {"kodak": load_picture_folder(args.kodak), "imagenet_sample_256": list(squares)}
    tiny_codec = ElicModel.from_pretrained(resolve_model(args.tiny_codec)).eval()
    codecs = {"full_width": codec, "tiny": restore_entropy_networks(tiny_codec)}
    return {
        name: {pictures: summarize_sizes(model, sets[pictures]) for pictures in sets} for name, model in codecs.items()
    }


def main(args: Arguments) -> None:
    torch.set_num_threads(1)
    codec = load_reference_codec(args.codec, args.pictures)
    pictures = load_pictures(args.pictures, start=TRAINING_PICTURES, stop=TRAINING_PICTURES + 128)
    measures = {
        "coder": lambda: coder_speed(codec, pictures, repeats=args.repeats),
        "decompress": lambda: measure_decompress(args, codec, pictures),
        "avx512": lambda: measure_limited(args),
        "compress": lambda: measure_compress(args, codec, pictures),
        "server": lambda: measure_server(args, pictures),
        "cotam": lambda: measure_cotam(args, codec),
        "start": lambda: start_seconds(repeats=5),
        "size": lambda: measure_size(args, codec),
    }
    report = {"machine": describe_machine(), "threads": 1, "repeats": args.repeats}
    if Path(args.output).exists():
        earlier = json.loads(Path(args.output).read_text(encoding="utf-8"))
        if report.items() <= earlier.items():  # the same machine, versions and repeats: its other parts stay
            report = earlier
    for part in args.parts:
        report[part] = measures[part]()
        print(part, json.dumps(report[part], indent=1))
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
