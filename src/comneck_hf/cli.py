"""The `comneck` command.

Exit codes: 0 all went well, 1 an input failed (one line on stderr says why), 2 wrong usage. Results go to stdout, with
`--json` as JSON; progress bars and errors go to stderr. Nothing heavy is imported before a command runs.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__


if TYPE_CHECKING:
    import torch

    from .labels import ZeroShotClassifier
    from .models.comneck.modeling_comneck import ComNeckModel

__all__ = ["app"]

DEFAULT_MODEL = "comneck-tiny-d1-q2"
DEFAULT_CLIP = "comneck-tiny-clip"
DEFAULT_FIGURE = Path("comneck_demo.png")

app = typer.Typer(
    name="comneck",
    help="Pictures to bitstreams, bitstreams to CLIP features, labels and pictures.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class Dtype(StrEnum):
    """Floating types that the networks can run in; the entropy coding is integer and the same in all."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[str, typer.Option("--model", help="Folder, Hub id or packaged model.")]
ClipOption = Annotated[str, typer.Option("--clip", help="CLIP whose text tower names the labels.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Type of the float networks.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no result lines.")]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite files that exist.")]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Files that go through the networks together.")]
InterpolateOption = Annotated[
    bool, typer.Option("--interpolate", help="Accept other latent sizes than the neck's; positions are interpolated.")
]
BitstreamArguments = Annotated[list[Path], typer.Argument(metavar="FILE.cnk...", help=".cnk files, or folders.")]


def _one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns the user's mistakes into one line on stderr and exit code 1."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError) as error:
            _complain(error)
            raise typer.Exit(1) from None

    return wrapped


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Pictures to bitstreams, bitstreams to CLIP features, labels and pictures."""
    if version:
        typer.echo(f"comneck_hf {__version__}")
        raise typer.Exit


@app.command()
@_one_line_errors
def encode(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, or folders of pictures.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; for one picture also FILE.cnk.")] = Path(),
    model: ModelOption = DEFAULT_MODEL,
    no_crop: Annotated[bool, typer.Option("--no-crop", help="Code whole pictures, at full size.")] = False,
    batch_size: BatchOption = 16,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Code pictures into .cnk files.

    Pictures are resized and cropped as the model expects, so that its features can be computed from them. Whole
    pictures (--no-crop) can always be decoded; features need --interpolate.
    """
    from .files import BITSTREAM_SUFFIX, PICTURE_SUFFIXES, find_files, name_outputs, read_picture
    from .loading import load_codec, load_image_processor

    files = find_files(images, suffixes=PICTURE_SUFFIXES)
    targets = _claim(name_outputs(files, output, suffixes=(BITSTREAM_SUFFIX,)), force)
    codec = _load(load_codec, model, device, dtype)
    processor = load_image_processor(model, crop=not no_crop)

    def encode_batch(batch: Sequence[tuple[Path, Path]]) -> Iterator[dict[str, Any]]:
        jobs, pictures = [], []
        for source, target in batch:
            try:
                picture = processor(images=read_picture(source), return_tensors="pt")["pixel_values"][0]
                _check_pixels(picture, source, codec.config.max_pixels)
            except (ValueError, OSError) as error:
                yield _failure(source, error)
            else:
                jobs.append((source, target, *picture.shape[-2:]))
                pictures.append(picture)
        bitstreams = codec.compress(pictures) if pictures else []
        for (source, target, height, width), bitstream in zip(jobs, bitstreams, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(bitstream)
            yield {"input": str(source), "output": str(target), **_size_facts(len(bitstream), height, width)}

    pairs = [(source, target) for (source, _), target in zip(files, targets, strict=True)]
    _finish(_progress(pairs, batch_size, encode_batch, quiet), _encode_line, quiet, as_json)


@app.command()
@_one_line_errors
def decode(
    bitstreams: BitstreamArguments,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; for one file also a picture.")] = Path(),
    model: ModelOption = DEFAULT_MODEL,
    batch_size: BatchOption = 16,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode .cnk files into pictures of their original size (PNG, or what the suffix of -o says)."""
    from .files import BITSTREAM_SUFFIX, PICTURE_SUFFIXES, find_files, name_outputs
    from .loading import load_codec
    from .streams import decode_files, save_pictures

    files = find_files(bitstreams, suffixes=(BITSTREAM_SUFFIX,))
    targets = _claim(name_outputs(files, output, suffixes=PICTURE_SUFFIXES), force)
    codec = _load(load_codec, model, device, dtype)

    def decode_batch(batch: Sequence[tuple[Path, Path]]) -> Iterator[dict[str, Any]]:
        results = decode_files(codec, [source for source, _ in batch])
        for (source, target), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                yield _failure(source, result)
            else:
                save_picture(codec, result, target)
                yield {"input": str(source), "output": str(target), "height": result.height, "width": result.width}

    pairs = [(source, target) for (source, _), target in zip(files, targets, strict=True)]
    _finish(_progress(pairs, batch_size, decode_batch, quiet), _decode_line, quiet, as_json)
