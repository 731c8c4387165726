"""Command lines of the training scripts: a YAML file first, if any, then flags that override it."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml
from transformers import HfArgumentParser


Arguments = TypeVar("Arguments")


@dataclass(kw_only=True)
class RunArguments:
    """What every training has: length, optimizers, folders, numbers, threads. The names are accelerate's."""

    output_dir: str = field(metadata={"help": "gets checkpoints/, best/, model/ and the log"})
    log_file: str | None = field(default=None, metadata={"help": "JSON log, by default OUTPUT_DIR/log.json"})
    steps: int = field(default=6000, metadata={"help": "optimizer steps of all stages together"})
    stages: list[str] = field(default_factory=list, metadata={"help": "run only these stages"})
    batch_size: int = field(default=32, metadata={"help": "pictures per process and forward pass"})
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = field(default=100, metadata={"help": "linear warm-up at the start of new optimizers"})
    weight_decay: float = 0.0
    max_grad_norm: float = field(default=1.0, metadata={"help": "of the main parameters, 0 for no clipping"})
    aux_learning_rate: float = field(default=1e-2, metadata={"help": "of the entropy bottleneck's medians"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    logging_steps: int = 50
    validation_steps: int = field(default=0, metadata={"help": "steps between validations, 0 for only at the end"})
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = field(default=1, metadata={"help": "checkpoints to keep"})
    resume_from_checkpoint: bool = field(
        default=False, metadata={"help": "go on from the last checkpoint in output_dir, if there is one"}
    )
    report_to: str | None = field(default=None, metadata={"help": "tensorboard, trackio or wandb"})
    push_to_hub: bool = False
    hub_model_id: str | None = field(default=None, metadata={"help": "repository, by default output_dir's name"})
    dataloader_num_workers: int = 0
    num_threads: int = field(default=0, metadata={"help": "CPU threads per process, 0 for torch's default"})
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation_steps", "checkpointing_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


@dataclass(kw_only=True)
class TeachingArguments(RunArguments):
    """What every training has whose teacher is a CLIP: pictures, models, validation."""

    data: str = field(metadata={"help": "Hub id or folder that `datasets` loads, with columns image and label"})
    reading: str = field(default="rows", metadata={"help": "memory, rows or stream"})
    validation_split: str = "validation"
    validation_pictures: int = field(default=500, metadata={"help": "pictures that are coded in a validation"})
    codec: str | None = field(default=None, metadata={"help": "folder or Hub id of the trained codec"})
    clip: str = field(metadata={"help": "folder or Hub id of the CLIP"})
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "of the CLIP and what trains behind it; on CPUs without AMX eager is faster in bf16"},
    )
    quality: int = field(default=2, metadata={"help": "operating point, 1 to 4"})
    preset: str = field(
        default="paper", metadata={"help": "paper or official; of necks also cross-entropy, distillation, cosine"}
    )
    smallest_crop: float = field(default=0.35, metadata={"help": "smallest share of the picture in a random crop"})
    jitter: float = field(default=0.0, metadata={"help": "largest change of brightness, contrast and saturation"})
    coded_variants: int = field(
        default=0,
        metadata={"help": "code this many crops of each picture once and train on them, 0 for fresh ones"},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "keeps coded crops, by default OUTPUT_DIR/cache"})
    gain_range: list[float] = field(
        default_factory=list,
        metadata={"help": "lowest and highest of the random gains that crops are coded with, in octaves"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.gain_range) not in (0, 2):
            raise ValueError(f"`gain_range` must be the lowest and the highest gain, got {self.gain_range}.")

    @property
    def cache_folder(self) -> Path:
        """Where coded crops are kept."""
        return Path(self.cache_dir or Path(self.output_dir) / "cache")


def parse_arguments(kind: type[Arguments], command_line: list[str] | None = None) -> Arguments:
    """Fills a dataclass from `[CONFIG.yaml] [--flag value ...]`.

    Args:
        kind: The dataclass; its fields are the flags and the keys of the YAML file.
        command_line: Words after the program's name; `sys.argv` by default.

    Raises:
        ValueError: If the YAML file has a key that is no field.
    """
    words = sys.argv[1:] if command_line is None else command_line
    parser = HfArgumentParser(kind)
    if words and words[0].endswith((".yaml", ".yml")):
        settings = yaml.safe_load(Path(words[0]).read_text()) or {}
        unknown = sorted(set(settings) - set(kind.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"{words[0]} has the unknown keys {unknown}; known are {sorted(kind.__dataclass_fields__)}."
            )
        for action in parser._actions:
            if action.dest in settings:
                action.default, action.required = settings[action.dest], False
        words = words[1:]
    return parser.parse_args_into_dataclasses(words)[0]


__all__ = ["RunArguments", "TeachingArguments", "parse_arguments"]
