"""Packs trained comneck-tiny models for the repository: what coding and features need, and no tensor twice.

python scripts/pack_family.py --models runs/tiny/d?-q?/model --output weights
python scripts/pack_family.py --models runs/tiny/cotam/model --output weights --codec weights/comneck-tiny-d1-q3

The float entropy networks are left out, whose integer twins code, and in d3 g_s, which nothing trained. CLIP's layers
stay in the packaged comneck-tiny-clip, and the codec of a CoTAM in the d1 model that has the same: the index of each
model points there, and `from_pretrained` follows it.
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
    codec: str | None = field(default=None, metadata={"help": "packed model that has the same codec"})


def pack(source: Path, output: Path, clip_file: Path, codec_file: Path | None) -> Path:
    """Writes one model; returns its folder."""
    config = AutoConfig.from_pretrained(source)
    config.codec_config._name_or_path = ""  # a folder of this machine
    config.codec_config.build_entropy_networks = False
    config.codec_config.build_synthesis = config.curve != "d3"
    tensors = load_file(source / "model.safetensors")
    with torch.device("meta"):
        kept = AutoModel.from_config(config).state_dict()
    tensors = {key: value for key, value in tensors.items() if key in kept}
    places: dict[str, Path] = {}
    for file, part in ((clip_file, "vision_model.encoder"), (codec_file, "codec.")):
        others = load_file(file) if file is not None else {}
        found = [key for key, value in tensors.items() if key in others and torch.equal(value, others[key])]
        if file is not None and not any(key.startswith(part) for key in found):
            raise ValueError(f"{source} was trained with another CLIP or codec than that of {file.parent}.")
        places |= dict.fromkeys(found, file)
    folder = output / f"comneck-tiny-{config.curve}-q{config.quality}"
    folder.mkdir(parents=True, exist_ok=True)
    own = {key: value for key, value in tensors.items() if key not in places}
    save_file(own, folder / "own.safetensors", metadata={"format": "pt"})
    names = dict.fromkeys(own, "own.safetensors") | {
        key: os.path.relpath(file, folder) for key, file in places.items()
    }
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    config.save_pretrained(folder)
    processor = (source / "preprocessor_config.json").read_text(encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(processor, encoding="utf-8")
    return folder


def main(args: Arguments) -> list[Path]:
    clip_file = Path(comneck_hf.pretrained(args.clip)) / "model.safetensors"
    codec_file = Path(args.codec) / "own.safetensors" if args.codec else None
    return [pack(Path(source), Path(args.output), clip_file, codec_file) for source in args.models]


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
