"""Trains the tiny CLIP teacher from scratch on photographs of classes and on drawn shapes.

python scripts/train_clip.py --data DATA/caltech101_144 --shapes_data DATA/easy_vqa --output_dir runs/clip \
    --log_file results/train_clip_tiny.json
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser

from comneck_hf.training.clip import save_clip
from comneck_hf.training.clip_trainer import ClipTrainer, ClipTrainingArguments
from comneck_hf.training.data import load_pack, load_shapes_pack
from comneck_hf.training.zero_shot import ClassPrompts


TEMPLATES_FILE = Path(__file__).with_name("prompt_templates.json")


@dataclass
class RunArguments:
    """Data, folders and threads of one run."""

    data: str = field(metadata={"help": "classification pack with the splits train and validation"})
    shapes_data: str = field(metadata={"help": "easy-VQA pack with the splits train and test"})
    output_dir: str = field(metadata={"help": "folder of the checkpoint and of the trained model"})
    log_file: str | None = field(default=None, metadata={"help": "JSON log, by default OUTPUT_DIR/log.json"})
    templates_file: str = field(default=str(TEMPLATES_FILE), metadata={"help": "JSON list of prompt templates"})
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "a checkpoint.pt to go on from"})
    num_threads: int = field(default=1, metadata={"help": "CPU threads"})


def main(run: RunArguments, args: ClipTrainingArguments) -> None:
    torch.set_num_threads(run.num_threads)
    photos = load_pack(run.data, "train")
    size = photos.images.shape[-1]
    trainer = ClipTrainer(
        args,
        train=(photos, load_shapes_pack(run.shapes_data, "train", size=size)),
        validation=(load_pack(run.data, "validation"), load_shapes_pack(run.shapes_data, "test", size=size)),
        templates=json.loads(Path(run.templates_file).read_text(encoding="utf-8")),
    )
    output = Path(run.output_dir)
    history = trainer.train(output, checkpoint=run.resume_from_checkpoint)
    prompts = ClassPrompts(trainer.templates, trainer.class_names)
    save_clip(trainer.model, output / "model", tokenizer=trainer.tokenizer, prompts=prompts)
    final = {"accuracy": trainer.evaluate(args.resolutions[-1]), "num_parameters": trainer.model.num_parameters()}
    log = {"config": asdict(args), "final": final, "epochs": history}
    Path(run.log_file or output / "log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*HfArgumentParser((RunArguments, ClipTrainingArguments)).parse_args_into_dataclasses())
