"""Measures a ComNeck model: zero-shot accuracy of originals, decoded pictures and latents, and rate-distortion.

python scripts/evaluate.py --data DATA/caltech101_144 --kodak DATA/kodak --output results/comneck_tiny.json
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, CLIPModel

import comneck_hf
from comneck_hf.evaluation.pictures import load_picture_folder
from comneck_hf.evaluation.plots import plot_rate_distortion
from comneck_hf.evaluation.rate_accuracy import measure_accuracy, measure_rate_distortion
from comneck_hf.training.arguments import parse_arguments
from comneck_hf.training.data import load_pack
from comneck_hf.training.zero_shot import load_class_prompts, zero_shot_weights


@dataclass
class EvaluationArguments:
    """Model, data and output."""

    data: str = field(metadata={"help": "labelled image data set with a validation split"})
    kodak: str = field(metadata={"help": "folder of the Kodak pictures"})
    model: str = field(default="comneck-tiny-d1-q2", metadata={"help": "packaged name or folder"})
    clip: str = field(default="comneck-tiny-clip", metadata={"help": "packaged name or folder of its CLIP"})
    output: str = "results/comneck_tiny.json"
    figure: str = "results/comneck_tiny_rate_distortion.png"
    distortion_pictures: int = field(default=200, metadata={"help": "validation pictures in the distortion figures"})


def main(args: EvaluationArguments) -> None:
    folders = [name if Path(name).is_dir() else comneck_hf.pretrained(name) for name in (args.model, args.clip)]
    model = AutoModel.from_pretrained(folders[0]).eval()
    clip = CLIPModel.from_pretrained(folders[1]).eval()
    pack, prompts = load_pack(args.data, "validation"), load_class_prompts(folders[1])
    weights = zero_shot_weights(
        clip,
        AutoTokenizer.from_pretrained(folders[1]),
        class_names=list(pack.class_names),
        templates=prompts.templates,
    )
    side = model.config.codec_config.downsampling_factor * model.config.vision_config.latent_grid[0]
    margin = (pack.images.shape[-1] - side) // 2
    images = pack.images[..., margin : margin + side, margin : margin + side].contiguous()
    step = max(1, len(images) // args.distortion_pictures)
    results = {
        "setting": {
            "model": Path(args.model).name,
            "data": Path(args.data).name,
            "split": "validation",
            "crop": side,
            "prompts": len(prompts.templates),
            "torch": torch.__version__,
        },
        "accuracy": measure_accuracy(model, clip, images, pack.labels, zero_shot_weights=weights),
        "rate_distortion": {
            "kodak": measure_rate_distortion(model.codec, load_picture_folder(args.kodak)),
            Path(args.data).name: measure_rate_distortion(model.codec, images[::step]),
        },
    }
    Path(args.output).write_text(json.dumps(results, indent=1) + "\n")
    plot_rate_distortion(results["rate_distortion"], args.figure, name=Path(args.model).name)


if __name__ == "__main__":
    main(parse_arguments(EvaluationArguments))
