"""Files of the benchmarks: references and results, joined on their ids.

VQA v2    references  {"annotations": [{"question_id", "question_type", "answer_type", "answers": [{"answer"}]}]}
          results     [{"question_id", "answer"}]
POPE      references  {"question_id", "text", "label"} on each line
          results     {"question_id", "answer"} on each line, or {"question", "answer"} in the same order
captions  references  {"annotations": [{"image_id", "caption"}]}
          results     [{"image_id", "caption"}]
RefCOCO   references  [{"ref_id", "bbox"}]
          results     [{"ref_id", "bbox"}] or [{"ref_id", "answer"}]
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .scores import Box, Id, VqaQuestion, check_box, check_same_ids, parse_box


__all__ = ["BOX_UNITS", "load_captions", "load_pope", "load_rec", "load_vqa"]

BOX_UNITS = ("pixels", "normalized")

FilePath = str | os.PathLike[str]
Record = Mapping[str, Any]
Value = TypeVar("Value")


def load_vqa(
    references: FilePath, results: FilePath, *, questions: FilePath | None = None
) -> tuple[dict[Id, VqaQuestion], dict[Id, str]]:
    """Questions and predicted answers of VQA v2, for `score_vqa`.

    Args:
        references: `v2_mscoco_SPLIT_annotations.json`.
        results: What the evaluation server takes.
        questions: `v2_OpenEnded_mscoco_SPLIT_questions.json`: must have the ids of the references. Scores do not
            depend on it.

    Returns:
        Both by question id.

    Raises:
        ValueError: If a file is not of that format, or ids are missing, double or unknown.
    """
    known = _by_id(_listed(references, "annotations"), "question_id", references, _vqa_question)
    if questions is not None:
        asked = _by_id(_listed(questions, "questions"), "question_id", questions, lambda record: record)
        if asked.keys() != known.keys():
            some = sorted(map(repr, asked.keys() ^ known.keys()))[:3]
            raise ValueError(
                f"{questions} and {references} differ in their question ids, such as {', '.join(some)}. Give the "
                "files of one split."
            )
    predictions = _by_id(_listed(results), "question_id", results, _text_of("answer"))
    check_same_ids(known, predictions)
    return known, predictions


def load_pope(references: FilePath, results: FilePath) -> tuple[dict[Id, str], dict[Id, str]]:
    """Labels and answers of POPE, for `score_pope`.

    Args:
        references: One of POPE's question files, such as `coco_pope_random.json`; JSON lines.
        results: JSON lines with a `question_id` each, or without any, as POPE's own evaluator takes them: then in the
            order of the references, and each `question` is compared with the reference's `text`, whatever its case.

    Returns:
        Both by question id.

    Raises:
        ValueError: If a file is not of that format, ids are missing, double or unknown, or questions are in another
            order.
    """
    asked = _lines(references)
    labels = _by_id(asked, "question_id", references, _text_of("label"))
    answers = _lines(results)
    if not any("question_id" in record for record in answers):
        _check_order(asked, answers, references, results)
        answers = [{**answer, "question_id": ask["question_id"]} for ask, answer in zip(asked, answers, strict=True)]
    predictions = _by_id(answers, "question_id", results, _text_of("answer"))
    check_same_ids(labels, predictions)
    return labels, predictions


def load_captions(references: FilePath, results: FilePath) -> tuple[dict[Id, list[str]], dict[Id, str]]:
    """References and predicted captions of COCO, for `captions.score_captions`.

    Args:
        references: `captions_SPLIT.json`, with any number of captions per image.
        results: One caption per image.

    Returns:
        Both by image id.

    Raises:
        ValueError: If a file is not of that format, or ids are missing, double or unknown.
    """
    known: dict[Id, list[str]] = {}
    for key, caption in _pairs(_listed(references, "annotations"), "image_id", references, _text_of("caption")):
        known.setdefault(key, []).append(caption)
    predictions = _by_id(_listed(results), "image_id", results, _text_of("caption"))
    check_same_ids(known, predictions)
    return known, predictions


def load_rec(
    references: FilePath, results: FilePath, *, box_unit: str = "pixels"
) -> tuple[dict[Id, Box], dict[Id, Box | None]]:
    """True and predicted boxes of referring expressions, for `score_rec`.

    Args:
        references: Records with `ref_id`, one per expression, and `bbox`: left, top, width, height in pixels. For
            normalized answers also the picture's `width` and `height`.
        results: Records with `ref_id`, and `bbox` as the references or `answer`, a text with `[x1, y1, x2, y2]`.
        box_unit: Of boxes in texts: `"pixels"`, or `"normalized"` for fractions of width and height; see `parse_box`.

    Returns:
        Both by ref id: left, top, width, height in pixels; `None` where a text has no box.

    Raises:
        ValueError: If a file is not of that format, ids are missing, double or unknown, or if all texts look as if
            they were in the other unit.
    """
    if box_unit not in BOX_UNITS:
        raise ValueError(f"`box_unit` must be one of {BOX_UNITS}, got {box_unit!r}.")
    records, answers = _listed(references), _listed(results)
    boxes = _by_id(records, "ref_id", references, _true_box)
    sizes = _by_id(records, "ref_id", references, _size) if box_unit == "normalized" else {}
    predictions = _by_id(
        answers, "ref_id", results, lambda answer: _predicted_box(answer, sizes.get(answer["ref_id"]))
    )
    check_same_ids(boxes, predictions)
    _check_unit(answers, box_unit, results)
    return boxes, predictions


def _read(path: FilePath) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}. Give a JSON file in UTF-8.") from None


def _listed(path: FilePath, key: str | None = None) -> list[Record]:
    """The records of a JSON file: a list, or the list under `key`."""
    try:
        content = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}. Only POPE's files have one JSON object per line.") from None
    records = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(records, list) or (key is not None and records is content):
        shape = "a list of objects" if key is None else f'an object with a list "{key}"'
        raise ValueError(f"{path} must hold {shape}, but holds {_shape(content)}. Is it the right file?")
    return _objects(path, records)


def _lines(path: FilePath) -> list[Record]:
    """The records of a file with one JSON object per line."""
    records = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        try:
            records += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}. POPE has one object per line.") from None
    return _objects(path, records)


def _objects(path: FilePath, records: list[object]) -> list[Record]:
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"Record {number} of {path} must be a JSON object, but is {_shape(record)}.")
    return records


def _shape(content: object) -> str:
    if isinstance(content, dict):
        return f"an object with {', '.join(map(repr, content)) or 'nothing'}"
    return "a list" if isinstance(content, list) else repr(content)


def _pairs(
    records: Sequence[Record], key: str, path: FilePath, convert: Callable[[Record], Value]
) -> list[tuple[Id, Value]]:
    """The id under `key` and the converted rest of each record; errors name the file and the id."""
    pairs = []
    for number, record in enumerate(records):
        name = record.get(key)
        if not isinstance(name, int | str):
            raise ValueError(f'Record {number} of {path} needs a number or text "{key}", got {name!r}.')
        try:
            pairs.append((name, convert(record)))
        except ValueError as error:
            raise ValueError(f"{path}, {key} {name!r}: {error}") from None
    return pairs


def _by_id(records: Sequence[Record], key: str, path: FilePath, convert: Callable[[Record], Value]) -> dict[Id, Value]:
    """`_pairs` as a dictionary, where no id may be double."""
    values: dict[Id, Value] = {}
    for name, value in _pairs(records, key, path, convert):
        if name in values:
            raise ValueError(f"{path} has {key} {name!r} twice. Keep one record for each.")
        values[name] = value
    return values


def _text_of(key: str) -> Callable[[Record], str]:
    """Reads the text under `key`."""

    def read(record: Record) -> str:
        text = record.get(key)
        if not isinstance(text, str):
            raise ValueError(f'"{key}" must be a text, got {text!r}.')
        return text

    return read


def _vqa_question(record: Record) -> VqaQuestion:
    answers = record.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise ValueError(f'"answers" must be a list of objects, got {answers!r}. Results go to the other argument.')
    return VqaQuestion(
        answers=tuple(map(_text_of("answer"), answers)),
        answer_type=_text_of("answer_type")(record),
        question_type=_text_of("question_type")(record),
    )


def _check_order(asked: Sequence[Record], answers: Sequence[Record], references: FilePath, results: FilePath) -> None:
    """Makes sure that answers without ids are in the order of the questions."""
    way_out = "Give each answer the question_id of its question."
    if len(asked) != len(answers):
        raise ValueError(
            f"{results} has {len(answers)} answers without ids, {references} has {len(asked)} questions. {way_out}"
        )
    for number, (ask, answer) in enumerate(zip(asked, answers, strict=True), 1):
        question, repeated = _text_of("text")(ask), answer.get("question")
        if not isinstance(repeated, str) or repeated.lower() != question.lower():
            raise ValueError(
                f"Answer {number} of {results} is to the question {repeated!r}, question {number} of {references} is "
                f"{question!r}. {way_out}"
            )


def _true_box(record: Record) -> Box:
    box = check_box(record.get("bbox"), name='"bbox"')
    if box[2] * box[3] == 0:
        raise ValueError(f'"bbox" must have an area, got {list(box)}.')
    return box


def _size(record: Record) -> tuple[int, int]:
    size = record.get("width"), record.get("height")
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f'normalized boxes need the picture\'s "width" and "height" in pixels, got {size}.')
    return size


def _predicted_box(record: Record, size: tuple[int, int] | None) -> Box | None:
    if ("bbox" in record) == ("answer" in record):
        raise ValueError(f'needs either "bbox" or "answer", has {", ".join(map(repr, record))}.')
    if "bbox" in record:
        return check_box(record["bbox"], name='"bbox"')
    return parse_box(_text_of("answer")(record), size=size)


def _check_unit(answers: Sequence[Record], box_unit: str, path: FilePath) -> None:
    """Refuses results whose boxes in texts are all within [0, 1], or all outside, against what was stated."""
    boxes = [box for answer in answers if "answer" in answer and (box := parse_box(answer["answer"])) is not None]
    are_fractions = [left + width <= 1 and top + height <= 1 for left, top, width, height in boxes]
    if boxes and box_unit == "pixels" and all(are_fractions):
        raise ValueError(f"All boxes in the texts of {path} end within [0, 1]: they are normalized, not pixels.")
    if boxes and box_unit == "normalized" and not any(are_fractions):
        raise ValueError(f"No box in the texts of {path} ends within [0, 1]: they are not normalized, but pixels.")
