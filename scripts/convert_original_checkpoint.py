"""Converts one of the authors' checkpoints; `comneck convert` does the same, with more options.

python scripts/convert_original_checkpoint.py --checkpoint d1_2.pth.tar --clip openai/clip-vit-large-patch14 \
    --output converted/comneck-d1-q2
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser

from comneck_hf.hub import DEFAULT_CLIP
from comneck_hf.hub.convert import convert_checkpoint


@dataclass
class Arguments:
    """What to convert, and into what."""

    checkpoint: str = field(metadata={"help": "path or URL"})
    output: str = field(metadata={"help": "folder to write"})
    clip: str = field(default=DEFAULT_CLIP, metadata={"help": "folder, Hub id, or file with OpenAI's names"})
    scenario: str | None = field(default=None, metadata={"help": "d1, d2 or d3; else from the file name"})
    quality: int | None = field(default=None, metadata={"help": "1 to 4; else from the file name"})
    pictures: str | None = field(default=None, metadata={"help": "folder of 16 photographs, for the integer networks"})


def main(args: Arguments) -> None:
    report = convert_checkpoint(
        args.checkpoint,
        args.output,
        clip=args.clip,
        scenario=args.scenario,
        quality=args.quality,
        pictures=args.pictures,
        progress=True,
    )
    print(report.to_text())


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
