"""What all commands share: options, one-line errors, progress bars, output as text or JSON."""

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer


if TYPE_CHECKING:
    from .streams import FileResult

DEFAULT_MODEL = "comneck-tiny-d1-q2"
DEFAULT_CLIP = "comneck-tiny-clip"
DEFAULT_LLAVA = "comneck-tiny-llava"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Dtype(StrEnum):
    """Floating types of the networks. Entropy coding is in integers and the same for all."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[str, typer.Option("--model", "-m", help="Folder, Hub id or packaged model.")]
BatchOption = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Files coded together.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Type of the float networks.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no result lines.")]
RoiOption = Annotated[
    list[str] | None,
    typer.Option("--roi", metavar="X0,Y0,X1,Y1", help="More bits in this box, in pixels of the picture; repeatable."),
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Overwrite files that exist.")]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turns mistakes of the user into one line on stderr and exit code 1."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, OSError, ImportError) as error:
            complain(str(error))
            raise typer.Exit(1) from None

    return wrapped


def silence_libraries() -> None:
    """Keeps back messages of the libraries, which are not for users of a command."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def placement(device: str, dtype: Dtype) -> dict[str, Any]:
    """Keyword arguments for loading; silences the libraries."""
    import torch

    from .loading import resolve_device

    silence_libraries()
    try:
        return {"device": resolve_device(device), "dtype": getattr(torch, dtype.value)}
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from None


def in_batches(
    items: Sequence[Item], batch_size: int, work: Callable[[Sequence[Item]], list[Result]], quiet: bool
) -> list[Result]:
    """Results of all batches in order, with a progress bar if there is more than one item."""
    from tqdm.auto import tqdm

    results: list[Result] = []
    with tqdm(total=len(items), unit="file", disable=quiet or len(items) == 1) as bar:
        for first in range(0, len(items), batch_size):
            batch = items[first : first + batch_size]
            results += work(batch)
            bar.update(len(batch))
    return results


def report(
    results: "Sequence[FileResult]", to_line: "Callable[[FileResult], str]", quiet: bool, as_json: bool
) -> None:
    """Prints one line or one JSON object per input; errors on stderr, with exit code 1."""
    if as_json:
        print_json([result.to_dict() for result in results])
    for result in results:
        if result.error is not None:
            complain(f"{result.input}: {result.error}")
        elif not (quiet or as_json):
            typer.echo(to_line(result))
    if any(result.error is not None for result in results):
        raise typer.Exit(1)


def coding_line(result: "FileResult") -> str:
    """What was coded or decoded, and its size."""
    size = f"{result.bytes} bytes, {result.width}x{result.height} pixels, {result.bpp:.3f} bpp"
    return f"{result.input} -> {result.output}  {size}"


def print_json(value: object) -> None:
    """JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def complain(message: str) -> None:
    """One line on stderr."""
    typer.echo(f"Error: {' '.join(message.split())}", err=True)


__all__ = [
    "DEFAULT_CLIP",
    "DEFAULT_LLAVA",
    "DEFAULT_MODEL",
    "BatchOption",
    "DeviceOption",
    "Dtype",
    "DtypeOption",
    "ForceOption",
    "JsonOption",
    "ModelOption",
    "QuietOption",
    "RoiOption",
    "coding_line",
    "complain",
    "in_batches",
    "one_line_errors",
    "placement",
    "print_json",
    "report",
    "silence_libraries",
]
