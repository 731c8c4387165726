"""`comneck eval` and `comneck plot`: accuracy over real bytes, beside baselines, and figures of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import (
    DeviceOption,
    Dtype,
    DtypeOption,
    ForceOption,
    JsonOption,
    QuietOption,
    one_line_errors,
    placement,
    print_json,
)


if TYPE_CHECKING:
    from ..evaluation.measurements import Point
    from .evaluation_parts import Parts

__all__ = ["evaluate", "plot"]

TASKS = ("zero-shot", "distortion", "naming", "questions", "few-shot", "few-shot-leaky")
BASELINE_HELP = (
    "original; reconstruction; codec=FOLDER or codec=NAME=FOLDER; post-processing=FOLDER; jpeg, webp, avif or jxl, "
    "also at one quality (jpeg:10) or within a number of bytes (jpeg@400). Repeat it for more."
)


DataOption = Annotated[str, typer.Option("--data", help="Labelled pictures: folder or Hub id that `datasets` loads.")]
ModelsOption = Annotated[list[str] | None, typer.Option("--model", "-m", help="ComNeck models; repeat for more.")]
BaselineOption = Annotated[list[str] | None, typer.Option("--baseline", help=BASELINE_HELP)]
TaskOption = Annotated[list[str] | None, typer.Option("--task", help=f"{', '.join(TASKS)}; repeat for more.")]
SplitOption = Annotated[str, typer.Option("--split", help="Of the data.")]
PicturesOption = Annotated[int, typer.Option("--pictures", min=1, help="At most so many of the split.")]
ResizeOption = Annotated[
    bool, typer.Option("--resize", help="Bring shorter sides to the model's size, instead of cutting the middle.")
]
ClipOption = Annotated[str, typer.Option("--clip", help="CLIP that the models were made from.")]
LlavaOption = Annotated[str | None, typer.Option("--llava", help="Answers in all tasks but the first two.")]
QuestionsDataOption = Annotated[
    str | None, typer.Option("--questions-data", help="Data with columns questions and answers, split test.")
]
QuestionsOption = Annotated[int, typer.Option("--questions", min=1, help="At most so many of them.")]
EpisodesOption = Annotated[int, typer.Option("--episodes", min=1, help="Of few-shot classification.")]
DistortionDataOption = Annotated[
    str | None, typer.Option("--distortion-data", help="Folder of pictures of any size, for the task distortion.")
]
GainsOption = Annotated[
    list[float] | None,
    typer.Option("--gain", help="Octaves by which models and their codecs quantize finer; repeat for more."),
]
AgainstOption = Annotated[
    list[str] | None, typer.Option("--against", help="Curve that others are compared with [reconstruction]; repeat.")
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")]
WorkDirOption = Annotated[
    Path | None, typer.Option("--work-dir", help="Keeps what is done, by default OUTPUT without suffix.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pictures at a time.")]
ProcessesOption = Annotated[int, typer.Option("--num-proc", min=1, help="Picture files coded at a time.")]


@one_line_errors
def evaluate(
    data: DataOption,
    model: ModelsOption = None,
    baseline: BaselineOption = None,
    task: TaskOption = None,
    split: SplitOption = "validation",
    pictures: PicturesOption = 1_000_000,
    resize: ResizeOption = False,
    clip: ClipOption = "comneck-tiny-clip",
    llava: LlavaOption = None,
    questions_data: QuestionsDataOption = None,
    questions: QuestionsOption = 2000,
    episodes: EpisodesOption = 500,
    distortion_data: DistortionDataOption = None,
    gain: GainsOption = None,
    against: AgainstOption = None,
    output: OutputOption = Path("evaluation.json"),
    work_dir: WorkDirOption = None,
    batch_size: BatchOption = 64,
    num_proc: ProcessesOption = 1,
    force: ForceOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure models and baselines: bytes, quality and accuracy, with intervals; interrupted runs go on."""
    from ..evaluation.measurements import measure_all
    from .evaluation_parts import Parts, process
    from .files import refuse_existing

    refuse_existing([] if force else [output])
    parts = Parts(
        models=model or ["comneck-tiny-d1-q2"],
        clip=clip,
        data=data,
        split=split,
        pictures=pictures,
        resize=resize,
        llava=llava,
        questions_data=questions_data,
        questions=questions,
        episodes=episodes,
        distortion_data=distortion_data,
        gains=gain or (),
        num_proc=num_proc,
        **placement(device, dtype),
    )
    rank, world_size = process()  # under torchrun the processes share the pictures
    options = {"batch_size": batch_size, "device": parts.device, "rank": rank, "world_size": world_size}
    points = measure_all(
        parts.baselines(baseline or ["original", "reconstruction"]),
        [parts.task(name) for name in task or ["zero-shot"]],
        folder=work_dir or output.with_suffix(""),
        progress=not quiet,
        **options,
    )
    if rank == 0:
        _report(parts, points, against or (), output, quiet, as_json)


@one_line_errors
def plot(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS.json", help="Of `comneck eval`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Figure; its suffix says the format.")] = Path(
        "evaluation.png"
    ),
    value: Annotated[
        str | None, typer.Option("--value", help="top1, top5, accuracy, psnr-rgb, ms-ssim-rgb; accuracy by default.")
    ] = None,
    rate: Annotated[str, typer.Option("--rate", help="bytes, bpp or tokens.")] = "bytes",
    force: ForceOption = False,
) -> None:
    """Draw what `comneck eval` measured: accuracy or quality over the rate, with intervals.

    Files that measured the same task on the same pictures share a panel.
    """
    from ..evaluation.plots import plot_curves, task_title
    from .files import refuse_existing

    if not force:
        refuse_existing([output])
    panels: dict[str, Any] = {}
    settings: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in results:
        content = _read_results(file)
        for task, found in content["tasks"].items():
            title = task_title(task, found)
            setting = {**content.get("setting", {}), **found}
            _check_same(title, settings.setdefault(title, (file, setting)), (file, setting))
            systems, _ = panels.setdefault(title, ([], value or found["value"]))
            systems += _new_systems(systems, found["systems"], file.stem)
    plot_curves(panels, output, rate=rate)
    typer.echo(str(output))


def _read_results(file: Path) -> dict[str, Any]:
    """Raises `ValueError` if `comneck eval` did not write the file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no JSON ({error}); give a file of `comneck eval`.") from None
    if not isinstance(content, dict) or "tasks" not in content:
        raise ValueError(f"{file} has no `tasks`; it is no file of `comneck eval`.")
    return content


def _check_same(title: str, first: tuple[Path, dict[str, Any]], other: tuple[Path, dict[str, Any]]) -> None:
    """Raises `ValueError` if two files, each with its settings, asked something else under the same title."""
    (first_file, setting), (file, found) = first, other
    known = [name for name in ("split", "side", "resize", "clip", "llava") if name in setting and name in found]
    differ = [f"{name} {setting[name]!r} and {found[name]!r}" for name in known if setting[name] != found[name]]
    if differ:
        raise ValueError(f"{first_file} and {file} both have {title!r}, with {', '.join(differ)}. Draw them apart.")


def _new_systems(drawn: list[dict[str, Any]], found: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """Systems that are not drawn yet; one that is called as another gets the name of its file, too."""
    names, known = {system["name"] for system in drawn}, [_without_times(system) for system in drawn]
    return [
        {**system, "name": f"{system['name']} ({source})"} if system["name"] in names else system
        for system in found
        if _without_times(system) not in known
    ]


def _without_times(system: dict[str, Any]) -> dict[str, Any]:
    results = {name: values for name, values in system["results"].items() if not name.endswith("_seconds")}
    return {**system, "results": results}


def _report(
    parts: "Parts", points: "list[Point]", anchors: Sequence[str], output: Path, quiet: bool, as_json: bool
) -> None:
    from ..evaluation.measurements import summarize
    from .evaluation_parts import environment

    tasks = {name: {**parts.data_of(name), **values} for name, values in summarize(points, anchors=anchors).items()}
    results = {"setting": {**parts.setting(), **environment()}, "tasks": tasks}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if as_json:
        print_json(results)
    elif not quiet:
        typer.echo(f"{_table(results['tasks'])}\n\nresults: {output}")


def _table(tasks: dict[str, Any]) -> str:
    """One line per point, for a terminal."""
    from ..evaluation.plots import task_title

    lines = []
    for task, found in tasks.items():
        value = found["value"]
        lines += ["", task_title(task, found)]
        lines.append(f"{'':28}{'bytes':>10}{'bpp':>8}{'PSNR':>8}{value:>12}  95 % interval")
        for system in found["systems"]:
            columns = system["results"]
            blank = [None] * len(columns["quality"])
            for place, quality in enumerate(columns["quality"]):
                shown = [
                    " " * width
                    if columns.get(name, blank)[place] is None
                    else f"{columns[name][place]:{width}.{digits}f}"
                    for name, width, digits in (("bytes", 10, 1), ("bpp", 8, 3), ("psnr-rgb", 8, 2), (value, 12, 2))
                ]
                interval = columns.get(f"{value}_interval", blank)[place]
                bounds = "  {:.1f} to {:.1f}".format(*interval) if interval else ""
                point = f"{system['name']} {quality}"
                lines.append(f"{point:28}{''.join(shown)}{bounds}")
        anchors = [key.removeprefix("against_") for key in found if key.startswith("against_")]
        for anchor in anchors:
            for name, compared in found[f"against_{anchor}"].items():
                lines += [f"{name} against {anchor}: {line}" for line in _comparison(compared)]
    return "\n".join(lines[1:])


def _comparison(compared: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in compared.items():
        value, _, kind = name.partition("_")
        if isinstance(found, str):
            lines.append(f"no {name.replace('_', ' ')}: {found}")
            continue
        interval = "" if found["interval"] is None else " ({:+.1f} to {:+.1f})".format(*found["interval"])
        span = f"between {found['low']:.4g} and {found['high']:.4g}"
        if kind == "bd_rate":
            beaten = f"; points that others beat, left out: {found['left_out']}" if found["left_out"] else ""
            lines.append(f"{found['percent']:+.1f} %{interval} of the bytes at equal {value}, {span}{beaten}")
        else:
            lines.append(f"{found['difference']:+.2f}{interval} {value} at equal bytes, {span}")
    return lines
