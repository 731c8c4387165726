"""Packs trained comneck-tiny models for the repository: what coding and features need, and no tensor twice.

python scripts/pack_family.py --models runs/tiny/d?-q?/model runs/tiny/cotam/model --output weights

The float entropy networks are left out, whose integer twins code, and in d3 g_s, which nothing trained. CLIP's layers
stay in the packaged comneck-tiny-clip: the index of each model points there, and `from_pretrained` follows it.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, HfArgumentParser

import comneck_hf


@dataclass
class Arguments:
    """What to pack and where."""

    models: list[str] = field(metadata={"help": "folders of trained models"})
    output: str = field(default="weights", metadata={"help": "gets one folder per model"})
    clip: str = field(default="comneck-tiny-clip", metadata={"help": "packaged CLIP that they were trained with"})


def pack(source: Path, output: Path, clip_file: Path) -> Path:
    """Writes one model; returns its folder."""
    config = AutoConfig.from_pretrained(source)
    config.codec_config._name_or_path = ""  # a folder of this machine
    config.codec_config.build_entropy_networks = False
    config.codec_config.build_synthesis = config.curve != "d3"
    tensors, clip = load_file(source / "model.safetensors"), load_file(clip_file)
    with torch.device("meta"):
        kept = AutoModel.from_config(config).state_dict()
    tensors = {key: value for key, value in tensors.items() if key in kept}
    shared = [key for key, value in tensors.items() if key in clip and torch.equal(value, clip[key])]
    if not any(key.startswith("vision_model.encoder") for key in shared):
        raise ValueError(f"{source} was trained with another CLIP than {clip_file.parent.name}.")
    folder = output / f"comneck-tiny-{config.curve}-q{config.quality}"
    folder.mkdir(parents=True, exist_ok=True)
    own = {key: value for key, value in tensors.items() if key not in shared}
    save_file(own, folder / "own.safetensors", metadata={"format": "pt"})
    names = {**dict.fromkeys(own, "own.safetensors"), **dict.fromkeys(shared, os.path.relpath(clip_file, folder))}
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    config.save_pretrained(folder)
    processor = (source / "preprocessor_config.json").read_text(encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(processor, encoding="utf-8")
    return folder


def main(args: Arguments) -> list[Path]:
    clip_file = Path(comneck_hf.pretrained(args.clip)) / "model.safetensors"
    return [pack(Path(source), Path(args.output), clip_file) for source in args.models]


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
