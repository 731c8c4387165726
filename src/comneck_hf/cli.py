"""The `comneck` command.

Exit codes: 0 all went well, 1 an input failed (one line on stderr says why), 2 wrong usage. Results go to stdout, with
`--json` as JSON; progress bars and errors go to stderr. Nothing heavy is imported before a command runs.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import __version__
from .commands import answer, hub, score
from .commands import encode as encoding
from .commands import evaluate as evaluation
from .commands.terminal import (
    DEFAULT_CLIP,
    DEFAULT_LLAVA,
    DEFAULT_MODEL,
    BatchOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ForceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    RoiOption,
    coding_line,
    in_batches,
    one_line_errors,
    placement,
    print_json,
    report,
)


if TYPE_CHECKING:
    import torch

    from .commands.labels import ZeroShotClassifier
    from .commands.streams import FileResult

__all__ = ["app"]

DEFAULT_FIGURE = Path("comneck_demo.png")

app = typer.Typer(
    name="comneck",
    help="Pictures to bitstreams; bitstreams to CLIP features, labels and pictures.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


ClipOption = Annotated[str, typer.Option("--clip", help="CLIP that the model was made from; its text tower labels.")]
TopOption = Annotated[int, typer.Option("--top", min=1, help="How many labels to list.")]
LabelsOption = Annotated[str | None, typer.Option("--labels", help='Own labels: "cat, dog, a red car".')]
InterpolateOption = Annotated[
    bool, typer.Option("--interpolate", help="Accept latents of other sizes than the neck's.")
]
BitstreamsArgument = Annotated[list[Path], typer.Argument(metavar="FILE.cnk", help=".cnk files, or folders of them.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"comneck_hf {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pictures to bitstreams; bitstreams to CLIP features, labels and pictures."""


app.command()(encoding.encode)


@app.command()
@one_line_errors
def decode(
    bitstreams: BitstreamsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; for one file also a picture file.")] = Path(),
    model: ModelOption = DEFAULT_MODEL,
    batch_size: BatchOption = 16,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Decode .cnk files into pictures of their original size: PNG, or what the suffix of -o says.

    Pictures in tiles, as LLaVA-NeXT reads them, are put together and enlarged again.
    """
    from .commands.files import BITSTREAM_SUFFIX, PICTURE_SUFFIXES, pair_files
    from .commands.loading import load_codec
    from .commands.streams import decode_files

    pairs = pair_files(bitstreams, output, reads=[BITSTREAM_SUFFIX], writes=PICTURE_SUFFIXES, overwrite=force)
    codec = load_codec(model, **placement(device, dtype))
    results = in_batches(pairs, batch_size, lambda batch: decode_files(codec, batch), quiet)
    report(results, coding_line, quiet, as_json)


@app.command()
@one_line_errors
def features(
    bitstreams: BitstreamsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Safetensors file.")] = Path("features.safetensors"),
    model: ModelOption = DEFAULT_MODEL,
    interpolate: InterpolateOption = False,
    batch_size: BatchOption = 16,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write CLIP features of .cnk files, without decoding pictures.

    The file holds image_embeds, pooler_output, last_hidden_state and latents, one row per input in the order given;
    its metadata lists the inputs.
    """
    from safetensors.torch import save_file

    from .commands.files import BITSTREAM_SUFFIX, find_files, refuse_existing
    from .commands.loading import load_model
    from .commands.streams import concatenate_features, feature_tensors

    paths = [path for path, _ in find_files(bitstreams, suffixes=[BITSTREAM_SUFFIX])]
    if not force:
        refuse_existing([output])
    comneck = load_model(model, **placement(device, dtype))
    batches = in_batches(
        paths, batch_size, lambda batch: [feature_tensors(comneck, batch, interpolate=interpolate)], quiet
    )
    tensors = concatenate_features(batches)
    output.parent.mkdir(parents=True, exist_ok=True)
    names = [str(path) for path in paths]
    save_file(tensors, output, metadata={"model": model, "files": json.dumps(names)})
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if as_json:
        print_json({"output": str(output), "files": names, "shapes": shapes})
    elif not quiet:
        typer.echo(f"{output}  " + "  ".join(f"{name} {shape}" for name, shape in shapes.items()))


@app.command()
@one_line_errors
def classify(
    bitstreams: BitstreamsArgument,
    labels: LabelsOption = None,
    top: TopOption = 5,
    model: ModelOption = DEFAULT_MODEL,
    clip: ClipOption = DEFAULT_CLIP,
    interpolate: InterpolateOption = False,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Label .cnk files zero-shot, straight from their latents."""
    from .commands.files import BITSTREAM_SUFFIX, find_files
    from .commands.loading import load_model
    from .commands.streams import classify_files

    paths = [path for path, _ in find_files(bitstreams, suffixes=[BITSTREAM_SUFFIX])]
    where = placement(device, dtype)
    classifier = _load_classifier(clip, labels, where["device"])
    comneck = load_model(model, **where)

    results = in_batches(
        paths,
        batch_size,
        lambda batch: classify_files(comneck, classifier, batch, count=top, interpolate=interpolate),
        quiet,
    )
    report(results, _labels_line, quiet, as_json)


@app.command()
@one_line_errors
def ask(
    bitstream: Annotated[Path, typer.Argument(metavar="FILE.cnk", help="A .cnk file, or a folder of them.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help='Such as "what is in the picture?".')],
    llava: Annotated[
        str, typer.Option("--llava", help="LLaVA that answers: folder, Hub id or packaged name.")
    ] = DEFAULT_LLAVA,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="ComNeck to attach to a LLaVA that was trained on pixels.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = 64,
    batch_size: BatchOption = 16,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Ask a multimodal LLM about .cnk files, straight from their latents.

    A LLaVA that was trained on pixels gets the tower of --model, whose neck must have been made for its CLIP. The
    packaged one knows colors and shapes of drawings and the names of Caltech-101.
    """
    from .commands.ask import answer_files, load_llava
    from .commands.files import BITSTREAM_SUFFIX, find_files

    paths = [path for path, _ in find_files([bitstream], suffixes=[BITSTREAM_SUFFIX])]
    language_model, processor = load_llava(llava, model, **placement(device, dtype))
    results = in_batches(
        paths,
        batch_size,
        lambda batch: answer_files(language_model, processor, batch, question, max_new_tokens=max_new_tokens),
        quiet,
    )
    report(results, lambda result: f"{result.input}  {result.answer}", quiet, as_json)


@app.command()
@one_line_errors
def info(
    bitstream: Annotated[Path, typer.Argument(metavar="FILE.cnk", help="A .cnk file.")],
    model: ModelOption = DEFAULT_MODEL,
    no_model: Annotated[bool, typer.Option("--no-model", help="Read the container only.")] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Show sizes, rate, origin, integrity and the bits per segment of a .cnk file.

    Bits of symbols are their ideal code length under the model's integer tables; "coder" is what the file has beyond
    that: the coder's state with the check of the decoded symbols. Of a picture in tiles every tile is listed.
    """
    from .commands.containers import container_facts, container_text, is_container
    from .commands.loading import load_codec
    from .commands.reports import bitstream_facts, bitstream_text

    data = bitstream.read_bytes()
    to_facts, to_text = (container_facts, container_text) if is_container(data) else (bitstream_facts, bitstream_text)
    to_facts(data)  # a damaged container is reported without loading a model
    codec = None if no_model else load_codec(model, **placement(device, Dtype.float32))
    facts = to_facts(data, codec=codec)
    if as_json:
        print_json({"input": str(bitstream), "model": None if no_model else model, **facts})
    else:
        typer.echo(to_text(facts, name=str(bitstream), model=model))


@app.command()
@one_line_errors
def demo(
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="A picture; a packaged one if left out.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The figure to write.")] = DEFAULT_FIGURE,
    top: TopOption = 3,
    labels: LabelsOption = None,
    roi: RoiOption = None,
    model: ModelOption = DEFAULT_MODEL,
    clip: ClipOption = DEFAULT_CLIP,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    as_json: JsonOption = False,
) -> None:
    """Send one picture all the way, beside JPEG: bytes, quality, times, labels, and a figure.

    Labels come from the original and the decoded picture through the full CLIP, and from the latents through neck and
    remaining layers. With --roi the picture is coded with and without the region instead, at equal bytes. A figure
    under its default name is overwritten, any other only with --force.
    """
    from .commands.demo import demo_photograph, run_demo
    from .commands.files import refuse_existing
    from .commands.loading import load_codec, load_image_processor, load_model
    from .commands.maps import parse_box
    from .commands.region_demo import run_region_demo
    from .models.comneck.image_sources import read_picture

    if output != DEFAULT_FIGURE and not force:
        refuse_existing([output])
    source = demo_photograph() if image is None else image
    picture = read_picture(source)
    where = placement(device, dtype)
    coding = {"name": source.name, "image_processor": load_image_processor(model)}
    if roi:
        boxes = [parse_box(box) for box in roi]
        result = run_region_demo(picture, boxes, codec=load_codec(model, **where), **coding)
    else:
        classifier = _load_classifier(clip, labels, where["device"])
        result = run_demo(picture, model=load_model(model, **where), classifier=classifier, num_labels=top, **coding)
    output.parent.mkdir(parents=True, exist_ok=True)
    result.save_figure(output)
    if as_json:
        print_json({**result.to_dict(), "input": str(source), "figure": str(output), "model": model})
    else:
        typer.echo(f"{result.to_text()}\n\nfigure: {output}")


app.command()(hub.convert)
app.command()(hub.export)
app.command()(hub.push)
app.command("eval")(evaluation.evaluate)
app.command()(evaluation.plot)
app.command()(answer.answer)
app.command()(score.score)


@app.command()
@one_line_errors
def complexity(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A ComNeck model; the paper's sizes if left out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count parameters and multiply-adds of ComNeck and of what it replaces, part by part, without weights."""
    from . import ComNeckConfig
    from .commands.loading import load_model_config
    from .evaluation.complexity import complexity_report, complexity_table, count_complexity

    counts = count_complexity(ComNeckConfig() if model is None else load_model_config(model))
    if as_json:
        print_json(complexity_report(counts, is_paper_size=model is None))
    else:
        typer.echo(complexity_table(counts, is_paper_size=model is None))


@app.command()
@one_line_errors
def env(as_json: JsonOption = False) -> None:
    """Show versions, processor, threads and the executor of the integer networks, for bug reports."""
    from .commands.reports import environment_facts, environment_text

    facts = environment_facts()
    if as_json:
        print_json(facts)
    else:
        typer.echo(environment_text(facts))


def _load_classifier(clip: str, labels: str | None, device: "torch.device") -> "ZeroShotClassifier":
    from .commands.labels import ZeroShotClassifier
    from .hub.names import resolve_model

    names = None
    if labels is not None:
        names = [name.strip() for name in labels.split(",") if name.strip()]
        if not names:
            raise typer.BadParameter('names no label; write --labels "cat, dog".', param_hint="--labels")
    return ZeroShotClassifier.from_pretrained(resolve_model(clip), class_names=names, device=device)


def _labels_line(result: "FileResult") -> str:
    labels = ", ".join(f"{label} {100 * probability:.1f} %" for label, probability in result.labels)
    return f"{result.input}  {labels}"
