"""What the benchmarks of multimodal language models report: VQA accuracy, POPE, referring expressions.

Each function gives what the benchmark's own evaluator gives on the same answers. `score_files` reads their files,
`captions` scores captions.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


__all__ = [
    "Box",
    "Id",
    "PopeScores",
    "RecScores",
    "VqaQuestion",
    "VqaScores",
    "box_iou",
    "check_box",
    "check_same_ids",
    "normalize_answer",
    "parse_box",
    "pope_answer",
    "score_pope",
    "score_rec",
    "score_vqa",
    "vqa_accuracy",
]

Id = int | str
Box = tuple[float, float, float, float]  # left, top, width, height

NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
NUMBER_WORDS["none"] = "0"
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
LOOSE_PERIOD = re.compile(r"\.(?!\d)")
MAX_LOOSE_PERIODS = 32  # the evaluator hands a flag to `re.sub` where the count belongs

CONTRACTIONS = """
ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't oughtn't shan't
shouldn't wasn't weren't won't wouldn't couldn't've hadn't've mightn't've shouldn't've wouldn't've
could've might've must've not've should've they've we've what've where've who've would've you've
he'd how'd it'd someone'd something'd there'd they'd where'd who'd you'd
he'd've it'd've she'd've somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've you'd've
how'll it'll somebody'll someone'll something'll they'll what'll who'll why'll you'll
he's how's somebody's someone's that's there's what's when's where's who's why's
there're they're what're why're you're ma'am o'clock 'ow's'at 'twas y'all y'all'll y'all'd've
"""


def _misspellings(words: Sequence[str]) -> dict[str, str]:
    """Contractions with any one of their apostrophes left out, and what they stand for."""
    apostrophes = ((word, index) for word in words for index, letter in enumerate(word) if letter == "'")
    # One entry of the evaluator is the other way round.
    return {word[:index] + word[index + 1 :]: word for word, index in apostrophes} | {"somebody'd": "somebodyd"}


MISSPELLINGS = _misspellings(CONTRACTIONS.split())

NUMBER = r"\s*(-?(?:\d+\.?\d*|\.\d+))\s*"
BOX_IN_TEXT = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")


def check_same_ids(references: Mapping[Id, object], predictions: Mapping[Id, object]) -> None:
    """Makes sure that there is exactly one prediction for each reference.

    Raises:
        ValueError: If there are no references, or ids are missing or unknown.
    """
    if not references:
        raise ValueError("There is nothing to score: the references are empty. Check the file.")
    if missing := [key for key in references if key not in predictions]:
        raise ValueError(
            f"{len(missing)} of {len(references)} ids have no prediction, such as {_some(missing)}. Predict all of "
            "them: scores of a part do not compare with published ones."
        )
    if unknown := [key for key in predictions if key not in references]:
        raise ValueError(
            f"{len(unknown)} predictions have ids that the references lack, such as {_some(unknown)}; those have ids "
            f"such as {_some(list(references))}. Both must be of the same split, with ids of the same type."
        )


def _some(keys: Sequence[Id]) -> str:
    return ", ".join(map(repr, keys[:3]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _percent(values: Sequence[float]) -> float:
    return 100 * sum(values) / len(values)  # in the evaluator's order, so that rounding agrees with it


@dataclass(frozen=True)
class VqaQuestion:
    """What VQA v2 knows about a question.

    Attributes:
        answers: Of ten people.
        answer_type: `"yes/no"`, `"number"` or `"other"`.
        question_type: Its first words, such as `"what color is the"`.
    """

    answers: tuple[str, ...]
    answer_type: str
    question_type: str


@dataclass(frozen=True)
class VqaScores:
    """VQA accuracies in percent. The evaluator shows them rounded to two places.

    Attributes:
        overall: Mean over all questions.
        per_answer_type: Mean over the questions of each answer type.
        per_question_type: Mean over the questions of each question type.
        per_question: Of each question, by its id.
    """

    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_question: dict[Id, float]


def normalize_answer(text: str) -> str:
    """A short answer as the VQA evaluator compares it.

    Punctuation goes, except for apostrophes, colons and periods before a digit: without a trace where it stands beside
    a space or where the text has a comma between digits, else for a space. Then lower case, number words up to ten as
    digits, no articles, and apostrophes where contractions lack them.
    """
    has_number_comma, stripped = COMMA_IN_NUMBER.search(text) is not None, text
    for mark in PUNCTUATION:
        is_loose = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if is_loose or has_number_comma else " ")
    stripped = LOOSE_PERIOD.sub("", stripped, count=MAX_LOOSE_PERIODS)
    words = [NUMBER_WORDS.get(word, word) for word in stripped.lower().split()]
    return " ".join(MISSPELLINGS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy of one answer, 0 to 1: min(1, equal answers / 3), averaged over leaving out each person in turn.

    Answers are normalized only where the people disagree. Where all of them gave the same answer, it must be met to
    the letter, upper and lower case included: the evaluator does so since March 2021.

    Args:
        prediction: The answer to score.
        answers: Of the people, four or more (VQA v2 has ten).

    Raises:
        ValueError: If there are fewer than four answers, with which 1 cannot be reached.

    References:
        Antol et al., VQA (2015), and Goyal et al., Making the V in VQA matter (2017); the evaluator at
        https://github.com/GT-Vision-Lab/VQA, commit a013f00.
    """
    if len(answers) < 4:
        raise ValueError(f"VQA accuracy needs four answers of people or more (VQA v2 has ten), got {len(answers)}.")
    prediction, *answers = (text.replace("\n", " ").replace("\t", " ").strip() for text in (prediction, *answers))
    if len(set(answers)) > 1:
        prediction, *answers = map(normalize_answer, (prediction, *answers))
    count = answers.count(prediction)
    return _mean([min(1, (count - (answer == prediction)) / 3) for answer in answers])


def score_vqa(questions: Mapping[Id, VqaQuestion], predictions: Mapping[Id, str]) -> VqaScores:
    """VQA accuracy over all questions, per answer type and per question type, in percent; see `vqa_accuracy`.

    Raises:
        ValueError: If ids are missing or unknown, or a question has too few answers.
    """
    check_same_ids(questions, predictions)
    scores = {key: vqa_accuracy(predictions[key], question.answers) for key, question in questions.items()}
    by_answer: dict[str, list[float]] = {}
    by_question: dict[str, list[float]] = {}
    for key, question in questions.items():
        by_answer.setdefault(question.answer_type, []).append(scores[key])
        by_question.setdefault(question.question_type, []).append(scores[key])
    return VqaScores(
        overall=_percent(list(scores.values())),
        per_answer_type={kind: _percent(values) for kind, values in by_answer.items()},
        per_question_type={kind: _percent(values) for kind, values in by_question.items()},
        per_question={key: 100 * score for key, score in scores.items()},
    )


@dataclass(frozen=True)
class PopeScores:
    """POPE's five numbers, all 0 to 1. "Yes" is the positive class; a quotient with nothing below is 0.

    Attributes:
        accuracy: Share of right answers.
        precision: Right among the answers "yes".
        recall: Answers "yes" among the objects that are there.
        f1: Harmonic mean of precision and recall.
        yes_ratio: Share of answers "yes".
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


def pope_answer(text: str) -> str:
    """`"yes"` or `"no"`, by POPE's rule: "no" if "No", "no" or "not" is a word before the first period, else "yes".

    Words end at spaces, commas are ignored. So an empty answer and "NO!" are "yes".
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def score_pope(labels: Mapping[Id, str], predictions: Mapping[Id, str]) -> PopeScores:
    """Whether a model sees objects that are not there (Li et al., POPE, 2023).

    Args:
        labels: `"yes"` or `"no"` by question id.
        predictions: Free text by question id; `pope_answer` reads it.

    Raises:
        ValueError: If ids are missing or unknown, or for another label.
    """
    check_same_ids(labels, predictions)
    for key, label in labels.items():
        if label not in ("yes", "no"):
            raise ValueError(f'The label of question {key!r} is {label!r}; POPE has "yes" and "no".')
    said_yes = {key for key in labels if pope_answer(predictions[key]) == "yes"}
    is_yes = {key for key, label in labels.items() if label == "yes"}
    hits = len(said_yes & is_yes)
    return PopeScores(
        accuracy=(len(labels) - len(said_yes ^ is_yes)) / len(labels),
        precision=hits / len(said_yes) if said_yes else 0.0,
        recall=hits / len(is_yes) if is_yes else 0.0,
        f1=2 * hits / (len(said_yes) + len(is_yes)) if said_yes or is_yes else 0.0,
        yes_ratio=len(said_yes) / len(labels),
    )


@dataclass(frozen=True)
class RecScores:
    """How well boxes of referring expressions are met, all 0 to 1 except for the count.

    Attributes:
        accuracy: Share of boxes with an intersection over union of 0.5 or more.
        mean_iou: Mean intersection over union.
        num_unreadable: Predictions without a box; their intersection over union is 0.
        per_expression: Intersection over union by id.
    """

    accuracy: float
    mean_iou: float
    num_unreadable: int
    per_expression: dict[Id, float]


def check_box(box: Sequence[float], *, name: str) -> Box:
    """`box` as floats: left, top, width, height.

    Args:
        box: Four finite numbers, the last two not negative.
        name: What to call it in errors.

    Raises:
        ValueError: If it is none.
    """
    try:
        left, top, width, height = map(float, box)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be four numbers [left, top, width, height], got {box!r}.") from None
    if not all(map(math.isfinite, (left, top, width, height))) or min(width, height) < 0:
        raise ValueError(
            f"{name} must be finite with a width and height of 0 or more, got {list(box)}. Boxes are "
            "[left, top, width, height], as COCO has them, not two corners."
        )
    return left, top, width, height


def box_iou(box: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes, 0 to 1; 0 where both are empty.

    Args:
        box, other: Left, top, width, height in the same unit.

    Raises:
        ValueError: If one is not a box.
    """
    left, top, width, height = check_box(box, name="box")
    other_left, other_top, other_width, other_height = check_box(other, name="other")
    shared_width = min(left + width, other_left + other_width) - max(left, other_left)
    shared_height = min(top + height, other_top + other_height) - max(top, other_top)
    shared = max(shared_width, 0.0) * max(shared_height, 0.0)
    union = width * height + other_width * other_height - shared
    return shared / union if union > 0 else 0.0


def parse_box(text: str, *, size: tuple[int, int] | None = None) -> Box | None:
    """The first `[x1, y1, x2, y2]` of a text, as left, top, width, height in pixels.

    Args:
        text: An answer; x1, y1 is the corner at the top left.
        size: Width and height of the picture in pixels, if the coordinates are fractions of them, 0 to 1. Without it
            they are pixels. Boxes in a picture that was padded for the model must be mapped back before.

    Returns:
        `None` if there are no such brackets, the box has no area, or fractions lie outside [0, 1].
    """
    match = BOX_IN_TEXT.search(text)
    if match is None:
        return None
    left, top, right, bottom = map(float, match.groups())
    if right <= left or bottom <= top:
        return None
    if size is None:
        return left, top, right - left, bottom - top
    if min(left, top) < 0 or max(right, bottom) > 1:
        return None
    width, height = size
    return left * width, top * height, (right - left) * width, (bottom - top) * height


def score_rec(boxes: Mapping[Id, Sequence[float]], predictions: Mapping[Id, Sequence[float] | None]) -> RecScores:
    """Accuracy of referring expression comprehension (RefCOCO: Yu et al., 2016): boxes met with an IoU of 0.5 or more.

    Args:
        boxes: The true boxes by id: left, top, width, height.
        predictions: In the same unit; `None` where the answer had no box.

    Raises:
        ValueError: If ids are missing or unknown, or one is not a box.
    """
    check_same_ids(boxes, predictions)
    overlaps = {
        key: 0.0 if (prediction := predictions[key]) is None else box_iou(box, prediction)
        for key, box in boxes.items()
    }
    return RecScores(
        accuracy=_mean([overlap >= 0.5 for overlap in overlaps.values()]),
        mean_iou=_mean(list(overlaps.values())),
        num_unreadable=sum(prediction is None for prediction in predictions.values()),
        per_expression=overlaps,
    )
