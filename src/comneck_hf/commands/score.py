"""The command that scores a file of results as the benchmarks' own evaluators do."""

from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .terminal import JsonOption, one_line_errors, print_json


if TYPE_CHECKING:
    from ..evaluation.captions import CaptionScores
    from ..evaluation.scores import PopeScores, RecScores, VqaScores

__all__ = ["score"]

PER_ITEM = ("per_question", "per_expression", "cider_per_image")


class Task(StrEnum):
    """Benchmarks whose files are read."""

    vqa = "vqa"
    pope = "pope"
    captions = "captions"
    rec = "rec"


class BoxUnit(StrEnum):
    """What coordinates in answers mean."""

    pixels = "pixels"
    normalized = "normalized"


@one_line_errors
def score(
    task: Annotated[Task, typer.Argument(help="VQA v2, POPE, COCO captions, or referring expressions (RefCOCO).")],
    references: Annotated[Path, typer.Option("--references", help="The benchmark's annotations.")],
    results: Annotated[Path, typer.Option("--results", help="What the model answered.")],
    questions: Annotated[
        Path | None, typer.Option("--questions", help="vqa: its questions, to check that they fit.")
    ] = None,
    boxes: Annotated[
        BoxUnit | None, typer.Option("--boxes", help="rec: unit of boxes in answers; pixels if left out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score results in a benchmark's own format, as its own evaluator does.

    vqa: accuracy in percent; per question type with --json. pope: "yes" is the positive class. captions: CIDEr, BLEU,
    ROUGE-L; needs the extra eval and Java. rec: boxes with an intersection over union of 0.5 or more.
    """
    if questions is not None and task != Task.vqa:
        raise typer.BadParameter(f"goes with vqa, not {task}.", param_hint="--questions")
    if boxes is not None and task != Task.rec:
        raise typer.BadParameter(f"goes with rec, not {task}.", param_hint="--boxes")
    count, scores = _scores(task, references, results, questions, boxes or BoxUnit.pixels)
    values = {name: value for name, value in asdict(scores).items() if name not in PER_ITEM}
    if as_json:
        files = {"references": str(references), "results": str(results)}
        print_json({"task": task.value, **files, "predictions": count, **values})
    else:
        typer.echo("\n".join([f"{task}: {count} predictions", *_lines(values, is_percent=task == Task.vqa)]))


def _scores(
    task: Task, references: Path, results: Path, questions: Path | None, boxes: BoxUnit
) -> "tuple[int, CaptionScores | PopeScores | RecScores | VqaScores]":
    """The number of predictions and their scores."""
    from ..evaluation import score_files, scores

    if task == Task.vqa:
        known, predictions = score_files.load_vqa(references, results, questions=questions)
        return len(known), scores.score_vqa(known, predictions)
    if task == Task.pope:
        labels, predictions = score_files.load_pope(references, results)
        return len(labels), scores.score_pope(labels, predictions)
    if task == Task.rec:
        true_boxes, predicted_boxes = score_files.load_rec(references, results, box_unit=boxes.value)
        return len(true_boxes), scores.score_rec(true_boxes, predicted_boxes)
    captions, predictions = score_files.load_captions(references, results)
    return len(captions), _caption_scores(captions, predictions)


def _caption_scores(
    references: Mapping[int | str, list[str]], predictions: Mapping[int | str, str]
) -> "CaptionScores":
    from ..evaluation.captions import score_captions

    try:
        return score_captions(references, predictions)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _lines(values: Mapping[str, Any], *, is_percent: bool) -> list[str]:
    shown = {**values, **values.get("per_answer_type", {})}
    return [
        f"  {name:<16}"
        + (str(value) if isinstance(value, int) else f"{value:.2f} %" if is_percent else f"{value:.4f}")
        for name, value in shown.items()
        if not isinstance(value, dict)
    ]
