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
    """What every training has: length, folders, numbers, threads."""

    output_dir: str = field(metadata={"help": "where checkpoints and the model go"})
    log_file: str | None = field(default=None, metadata={"help": "JSON log, by default OUTPUT_DIR/log.json"})
    steps: int = 6000
    learning_rate: float = 1e-3
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    checkpointing_steps: int = 500
    resume_from_checkpoint: bool = field(default=False, metadata={"help": "go on from the checkpoint in output_dir"})
    num_threads: int = field(default=0, metadata={"help": "CPU threads, 0 for torch's default"})
    seed: int = 0


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


__all__ = ["RunArguments", "parse_arguments"]
