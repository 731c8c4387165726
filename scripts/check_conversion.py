"""Converts a full-size checkpoint in the authors' layout and measures it: results/conversion.json.

python scripts/check_conversion.py --output results/conversion.json

The authors' files are not ours to pass on, so the weights are random: shapes, names and sizes are theirs.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, HfArgumentParser

from comneck_hf.evaluation.machine import describe_machine
from comneck_hf.hub.convert import REPORT_FILE
from comneck_hf.hub.export import export_checkpoint
from comneck_hf.models.comneck.configuration_comneck import ComNeckConfig
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.configuration_elic import ElicConfig


@dataclass
class Arguments:
    """Where the result goes."""

    output: str = field(default="results/conversion.json", metadata={"help": "JSON file"})


def write_inputs(folder: Path) -> tuple[Path, Path]:
    """A checkpoint of the authors' sizes and a CLIP ViT-L/14, both with random weights."""
    torch.manual_seed(0)
    model = ComNeckModel(ComNeckConfig(codec_config=ElicConfig().to_dict()))
    model.codec.g_a[13].weight.data *= 30  # latents of several quantization steps
    torch.save({"epoch": 59, **export_checkpoint(model)}, folder / "d1_2.pth.tar")
    config = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    )
    config.projection_dim = 768
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "clip")
    return folder / "d1_2.pth.tar", folder / "clip"


def main(args: Arguments) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint, clip = write_inputs(folder)
        words = ["convert", str(checkpoint), "-o", str(folder / "model"), "--clip", str(clip)]
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", "from comneck_hf.cli import app; app()", *words], check=True)
        seconds = time.monotonic() - start
        report = json.loads((folder / "model" / REPORT_FILE).read_text(encoding="utf-8"))
        result = {
            "machine": describe_machine(),
            "setting": "authors' layout and sizes, random weights, CLIP ViT-L/14 as a transformers folder",
            "checkpoint_megabytes": checkpoint.stat().st_size / 1e6,
            "seconds": round(seconds, 1),
            "peak_gigabytes": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2),
            "report": {**report, "source": checkpoint.name, "unused": len(report["unused"])},
        }
    Path(args.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
