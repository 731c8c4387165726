"""Packs the tiny LLaVA: language model and projector; its CLIP stays in the packaged comneck-tiny-clip.

python scripts/pack_llava.py --llava runs/llava/model --output src/comneck_hf/pretrained/comneck-tiny-llava

The result is a LLaVA whose pooling of visual tokens can be switched on, since that class finds its tower in a CLIP's
file.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, HfArgumentParser

import comneck_hf
from comneck_hf.models.llavolta.modeling_llavolta import LlavoltaForConditionalGeneration


TOWER, CLIP_TOWER = "vision_tower.", "vision_model."


@dataclass
class Arguments:
    """What to pack and where."""

    llava: str = field(metadata={"help": "folder of the trained LLaVA"})
    output: str = field(metadata={"help": "folder to write"})
    clip: str = field(default="comneck-tiny-clip", metadata={"help": "packaged CLIP that it was trained with"})


def main(args: Arguments) -> None:
    clip_file, folder = Path(comneck_hf.pretrained(args.clip), "model.safetensors"), Path(args.output)
    llava = AutoModelForImageTextToText.from_pretrained(args.llava).half()
    if not isinstance(llava, LlavoltaForConditionalGeneration):
        comneck_hf.pool_visual_tokens(llava)
    llava.set_visual_pooling(pool_layer=1, pool_stride=1)
    llava.save_pretrained(folder)
    AutoProcessor.from_pretrained(args.llava).save_pretrained(folder)
    tensors, clip = load_file(folder / "model.safetensors"), load_file(clip_file)
    tower = {name: value for name, value in tensors.items() if name.startswith(TOWER)}
    for name, value in tower.items():
        if not torch.equal(value, clip[name.replace(TOWER, CLIP_TOWER, 1)].half()):
            raise ValueError(f"{args.llava} was trained with another CLIP than {args.clip}: {name} differs.")
    own = {name: value for name, value in tensors.items() if name not in tower}
    save_file(own, folder / "own.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    shared = [name for name in clip if name.startswith(CLIP_TOWER)]
    names = {**dict.fromkeys(own, "own.safetensors"), **dict.fromkeys(shared, os.path.relpath(clip_file, folder))}
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
