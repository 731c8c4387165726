"""A guide that sees codec latents only, and how well it and simpler ones foretell where CLIP's first layers look.

python scripts/train_latent_guide.py --data DATA/caltech101_144 --output_dir runs/latent-guide
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from comneck_hf.commands.evaluation_parts import environment
from comneck_hf.commands.loading import load_codec, resolve_model
from comneck_hf.evaluation.intervals import bootstrap_interval, mean_of
from comneck_hf.models.cotam.guide_cotam import ShallowAttentionGuide
from comneck_hf.models.cotam.importance_cotam import quantize_importance
from comneck_hf.models.cotam.latent_guide_cotam import LatentGuide, latent_energy
from comneck_hf.training.arguments import parse_arguments
from comneck_hf.training.data import load_sample
from comneck_hf.training.latent_guide import GuideExamples, guide_examples, map_correlation, train_latent_guide


@dataclass(kw_only=True)
class Arguments:
    """Models, data, length and output."""

    data: str = field(metadata={"help": "pictures with the splits train and validation"})
    output_dir: str = field(metadata={"help": "gets latent_guide.safetensors"})
    model: str = field(default="comneck-tiny-d1-q2", metadata={"help": "model whose codec makes the latents"})
    clip: str = field(default="comneck-tiny-clip", metadata={"help": "CLIP whose attention is foretold"})
    layers: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of CLIP"})
    side: int = field(default=128, metadata={"help": "pixels per side of the pictures"})
    pictures: int = 2000
    validation_pictures: int = 500
    steps: int = 600
    hidden_channels: int = 32
    seed: int = 0
    output: str = "results/latent_guide_tiny.json"


def compare(predicted: torch.Tensor, examples: GuideExamples) -> dict[str, Any]:
    """Correlation with the targets and share of cells on the same level, with intervals over pictures."""
    levels, wanted = (
        torch.tensor([gain_map.gain_index for gain_map in quantize_importance(maps)])
        for maps in (predicted, examples.targets)
    )
    values = {
        "correlation": map_correlation(predicted, examples.targets).numpy(),
        "equal_levels": (levels == wanted).float().mean((1, 2)).numpy(),
    }
    result = {}
    for name, column in values.items():
        column = np.stack([column.astype(float), np.ones(len(column))])
        result[name] = {"mean": mean_of(column), "interval": list(bootstrap_interval(column))}
    return result


def main(args: Arguments) -> None:
    torch.manual_seed(args.seed)
    codec = load_codec(args.model)
    teacher = ShallowAttentionGuide.from_pretrained(resolve_model(args.clip), layers=args.layers)
    train, validation = (
        guide_examples(codec, teacher, load_sample(args.data, split, count, side=args.side).images)
        for split, count in (("train", args.pictures), ("validation", args.validation_pictures))
    )
    guide = LatentGuide(
        codec.config.latent_channels, hidden_channels=args.hidden_channels, fingerprint=codec.fingerprint
    )
    generator = torch.Generator().manual_seed(args.seed)
    loss = train_latent_guide(guide, train, steps=args.steps, generator=generator)
    with torch.no_grad():
        maps = {
            "mean map of the training pictures": train.targets.mean(0, keepdim=True).expand_as(validation.targets),
            "energy of the latents": latent_energy(validation.latents),
            "convolutions on the latents": guide(validation.latents),
        }
    results = {
        "setting": {
            "data": Path(args.data).name,
            "model": Path(args.model).name,
            "clip": Path(args.clip).name,
            "layers": args.layers,
            "pictures": {"train": len(train.targets), "validation": len(validation.targets)},
            "steps": args.steps,
            "parameters": sum(parameter.numel() for parameter in guide.parameters()),
            **environment(),
        },
        "train_loss": loss,
        "guides": {name: compare(predicted, validation) for name, predicted in maps.items()},
    }
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    guide.save(Path(args.output_dir) / "latent_guide.safetensors")
    Path(args.output).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(parse_arguments(Arguments))
