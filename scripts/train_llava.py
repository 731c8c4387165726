"""Trains a tiny LLaVA on pixels: easy-VQA's questions and the names of Caltech-101's pictures.

python scripts/train_llava.py configs/llava-tiny.yaml --data DATA/caltech101_144 --questions_data DATA/easy_vqa \
    --clip comneck-tiny-clip --output_dir runs/llava

`--pooling 4stage` trains it with LLaVolta's schedule. A run that was interrupted goes on when it is repeated.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    TrainingArguments,
    set_seed,
)

import comneck_hf
from comneck_hf.models.llavolta.modeling_llavolta import LlavoltaForConditionalGeneration
from comneck_hf.training.arguments import parse_arguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.conversations import PictureQuestions, load_questions, naming_pack
from comneck_hf.training.data import load_pack
from comneck_hf.training.llava import build_llava, llava_processor, train_llava, train_tokenizer
from comneck_hf.training.visual_pooling import VisualPoolingCallback


@dataclass(kw_only=True)
class LlavaArguments(TrainingArguments):
    """Data and sizes; everything else is transformers' `TrainingArguments`."""

    data: str = field(metadata={"help": "labelled pictures with the split train"})
    questions_data: str = field(metadata={"help": "easy-VQA pack with the split train"})
    clip: str = field(default="comneck-tiny-clip", metadata={"help": "packaged name or folder of the CLIP"})
    pooling: str | None = field(default=None, metadata={"help": "schedule: 4stage, three-stage, heavy or light"})
    llava: str | None = field(default=None, metadata={"help": "trained LLaVA to start from, instead of a fresh one"})
    picture_size: int = field(default=128, metadata={"help": "pixels of a picture before CLIP's processor"})
    smallest_crop: float = field(default=0.5, metadata={"help": "smallest share of a photograph in a random crop"})
    jitter: float = field(default=0.3, metadata={"help": "largest change of a photograph's colors"})
    max_turns: int = field(default=4, metadata={"help": "questions about a drawn picture at a time"})
    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_threads: int = field(default=0, metadata={"help": "CPU threads, 0 for torch's default"})


def build_model(
    args: LlavaArguments, dataset: PictureQuestions, clip: str
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A trained model, or a fresh one with a tokenizer for the data; and its processor."""
    if args.llava is not None:
        model = AutoModelForImageTextToText.from_pretrained(args.llava)
        return model, AutoProcessor.from_pretrained(args.llava)
    tokenizer = train_tokenizer(sorted(dataset.texts()), vocab_size=args.vocab_size)
    processor = llava_processor(CLIPImageProcessor.from_pretrained(clip), tokenizer)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    model = build_llava(CLIPModel.from_pretrained(clip), processor, **{name: getattr(args, name) for name in sizes})
    return model, processor


def main(args: LlavaArguments) -> None:
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    set_seed(args.seed)
    folder = args.clip if Path(args.clip).is_dir() else comneck_hf.pretrained(args.clip)
    augmentation = Augmentation(args.picture_size, smallest_crop=args.smallest_crop, jitter=args.jitter)
    packs = [
        naming_pack(load_pack(args.data, "train"), augmentation=augmentation),
        load_questions(args.questions_data, "train", size=args.picture_size, max_turns=args.max_turns),
    ]
    dataset = PictureQuestions(packs, seed=args.seed)
    model, processor = build_model(args, dataset, folder)
    callbacks = []
    if args.pooling:
        if not isinstance(model, LlavoltaForConditionalGeneration):
            comneck_hf.pool_visual_tokens(model, pool_stride=1)
        callbacks.append(VisualPoolingCallback(args.pooling))
    train_llava(model, processor, dataset, args, callbacks=callbacks)


if __name__ == "__main__":
    main(parse_arguments(LlavaArguments))
