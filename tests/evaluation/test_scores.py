"""Scores computed by hand, and those of the benchmarks' own evaluators on their own files."""

import json
import random

import pytest

from comneck_hf.evaluation.score_files import load_pope, load_rec, load_vqa
from comneck_hf.evaluation.scores import (
    VqaQuestion,
    box_iou,
    normalize_answer,
    parse_box,
    pope_answer,
    score_pope,
    score_rec,
    score_vqa,
    vqa_accuracy,
)


NORMALIZED = {
    "The Cat": "cat",
    "a dog, an owl": "dog owl",
    "two": "2",
    "None": "0",
    "NO!": "no",
    "red/blue": "red blue",
    "red / blue": "red blue",
    "t-shirt": "t shirt",
    "1,000": "1000",
    "red/green 1,000": "redgreen 1000",  # a comma within a number makes all marks vanish
    "3.5 miles.": "3.5 miles",
    "U.S.": "us",
    "yes" + 40 * ".": "yes" + 8 * ".",  # the evaluator stops after 32
    "dont": "don't",
    "couldntve": "couldntve",
    "couldnt've": "couldn't've",
    "oclock": "o'clock",
    "10:30": "10:30",
    "": "",
    "the": "",
}


def answers(**counts):
    return [answer for answer, count in counts.items() for _ in range(count)]


def shuffled(predictions, seed=0):
    """The same predictions, each for another id."""
    values = list(predictions.values())
    random.Random(seed).shuffle(values)
    return dict(zip(predictions, values, strict=True))


@pytest.mark.parametrize("text", NORMALIZED)
def test_an_answer_is_normalized_as_the_evaluator_does(text):
    assert normalize_answer(text) == NORMALIZED[text]


@pytest.mark.parametrize("count, accuracy", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_accuracy_grows_with_the_people_who_agree(count, accuracy):
    """Two of ten: without one of them 1/3, without one of the others 2/3: (2 * 1/3 + 8 * 2/3) / 10."""
    assert vqa_accuracy("red", answers(red=count, blue=10 - count)) == pytest.approx(accuracy)


def test_answers_are_normalized_only_where_people_disagree():
    assert vqa_accuracy("The Red!", answers(red=9, blue=1)) == 1
    assert vqa_accuracy("red", answers(red=5, Red=5)) == 1
    assert vqa_accuracy("Red", answers(red=10)) == 0
    assert vqa_accuracy("\tred\n", answers(red=10)) == 1


def test_accuracy_needs_four_people():
    assert vqa_accuracy("red", answers(red=4)) == 1
    with pytest.raises(ValueError, match="four answers of people or more .* got 3"):
        vqa_accuracy("red", answers(red=3))


def test_vqa_scores_are_means_in_percent_by_type():
    questions = {
        1: VqaQuestion(tuple(answers(yes=10)), "yes/no", "is the"),
        2: VqaQuestion(tuple(answers(red=2, blue=8)), "other", "what color"),
        3: VqaQuestion(tuple(answers(red=1, blue=9)), "other", "what"),
    }
    scores = score_vqa(questions, {3: "red", 2: "red", 1: "yes"})
    assert scores.per_question == pytest.approx({1: 100, 2: 60, 3: 30})
    assert scores.overall == pytest.approx(190 / 3)
    assert scores.per_answer_type == pytest.approx({"yes/no": 100, "other": 45})
    assert scores.per_question_type == pytest.approx({"is the": 100, "what color": 60, "what": 30})


@pytest.mark.parametrize(
    "text, answer",
    [
        ("yes", "yes"),
        ("no", "no"),
        ("No, there is none.", "no"),
        ("There is not a dog", "no"),
        ("Yes. But no cat.", "yes"),
        ("nothing", "yes"),
        ("NO!", "yes"),
        ("", "yes"),
    ],
)
def test_free_text_is_yes_or_no_by_the_rule_of_pope(text, answer):
    assert pope_answer(text) == answer


def test_pope_counts_yes_as_positive():
    """Three hits, two false alarms, one miss, four right refusals."""
    labels = dict(enumerate(["yes"] * 4 + ["no"] * 6))
    predictions = dict(enumerate(["yes", "yes", "Yes, it is.", "no"] + ["yes"] * 2 + ["no"] * 4))
    scores = score_pope(labels, predictions)
    assert (scores.accuracy, scores.precision, scores.recall, scores.yes_ratio) == (0.7, 0.6, 0.75, 0.5)
    assert scores.f1 == pytest.approx(2 / 3)


def test_pope_without_any_yes_has_no_division_by_zero():
    scores = score_pope({1: "no", 2: "no"}, {1: "no", 2: "no"})
    assert (scores.accuracy, scores.precision, scores.recall, scores.f1) == (1, 0, 0, 0)


def test_pope_refuses_other_labels():
    with pytest.raises(ValueError, match="label of question 2 is 'maybe'"):
        score_pope({1: "no", 2: "maybe"}, {1: "no", 2: "no"})


def test_overlap_of_boxes():
    assert box_iou((0, 0, 10, 10), (5, 0, 10, 10)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 10, 10), (2, 2, 5, 5)) == 0.25
    assert box_iou((0, 0, 10, 10), (10, 0, 10, 10)) == box_iou((0, 0, 10, 10), (30, 40, 1, 1)) == 0
    assert box_iou((1, 2, 0, 0), (1, 2, 0, 0)) == 0


@pytest.mark.parametrize(
    "box, message",
    [
        ((1, 2, 3), "must be four numbers"),
        ("text", "must be four numbers"),
        (None, "must be four numbers"),
        ((10, 10, -5, 3), "not two corners"),
        ((0, 0, float("nan"), 3), "must be finite"),
    ],
)
def test_what_is_no_box_is_refused(box, message):
    with pytest.raises(ValueError, match=message):
        box_iou((0, 0, 1, 1), box)


@pytest.mark.parametrize(
    "text, size, box",
    [
        ("[10, 20, 30, 60]", None, (10, 20, 20, 40)),
        ("It is at [10.5,20, 30.5, 60.], I think, or [1, 1, 2, 2].", None, (10.5, 20, 20, 40)),
        ("[-5, 0, 5, 10]", None, (-5, 0, 10, 10)),
        ("[0.25, 0.5, .75, 1]", (200, 100), (50, 50, 100, 50)),
        ("[0.25, 0.5, 1.5, 1]", (200, 100), None),
        ("[30, 20, 10, 60]", None, None),
        ("[10, 20, 30]", None, None),
        ("10, 20, 30, 60", None, None),
        ("I cannot see it.", None, None),
    ],
)
def test_a_box_is_read_from_text(text, size, box):
    assert parse_box(text, size=size) == box


def test_boxes_count_from_half_an_overlap():
    boxes = {"a": (0, 0, 10, 10), "b": (0, 0, 10, 10), "c": (0, 0, 10, 10), "d": (0, 0, 10, 10)}
    scores = score_rec(boxes, {"a": (0, 0, 10, 10), "b": (0, 0, 10, 5), "c": (0, 0, 10, 4.9), "d": None})
    assert scores.accuracy == 0.5
    assert scores.mean_iou == pytest.approx((1 + 0.5 + 0.49) / 4)
    assert scores.num_unreadable == 1
    assert scores.per_expression["d"] == 0


@pytest.mark.parametrize(
    "references, predictions, message",
    [
        ({}, {}, "nothing to score"),
        ({1: "no", 2: "no"}, {1: "no"}, "1 of 2 ids have no prediction, such as 2"),
        ({1: "no"}, {1: "no", 7: "no"}, "1 predictions have ids that the references lack, such as 7"),
        ({1: "no"}, {"1": "no"}, "1 of 1 ids have no prediction"),
    ],
)
def test_ids_must_be_the_same(references, predictions, message):
    with pytest.raises(ValueError, match=message):
        score_pope(references, predictions)


def test_vqa_as_the_official_evaluator(official_format):
    golden = json.loads((official_format / "golden_scores.json").read_text())["vqa_v2_1000"]
    questions, predictions = load_vqa(
        official_format / "v2_mscoco_train2014_1000_annotations.json",
        official_format / "v2_OpenEnded_mscoco_train2014_1000_results.json",
        questions=official_format / "v2_OpenEnded_mscoco_train2014_1000_questions.json",
    )
    scores = score_vqa(questions, predictions)
    assert round(scores.overall, 2) == golden["overall"]
    for mine, theirs in (("per_answer_type", "perAnswerType"), ("per_question_type", "perQuestionType")):
        rounded = {kind: round(value, 2) for kind, value in getattr(scores, mine).items()}
        assert rounded == pytest.approx(golden[theirs], abs=1e-9)
    assert score_vqa(questions, shuffled(predictions)).overall < 25


@pytest.mark.parametrize("name", ["random", "popular", "adversarial"])
def test_pope_as_the_official_evaluator(official_format, tmp_path, name):
    golden = json.loads((official_format / "golden_scores.json").read_text())["pope"][name]
    references = official_format / golden["file"]
    ids = [json.loads(line)["question_id"] for line in references.read_text().splitlines()]
    rules = {
        "always_yes": lambda key: "yes",
        "yes_when_question_id_mod_3_is_not_0": lambda key: "Yes, there is." if key % 3 else "No, there is not.",
    }
    for rule, answer in rules.items():
        lines = [json.dumps({"question_id": key, "answer": answer(key)}) for key in ids]
        (tmp_path / "results.json").write_text("\n".join(lines))
        labels, predictions = load_pope(references, tmp_path / "results.json")
        scores = score_pope(labels, predictions)
        assert {key: getattr(scores, key) for key in golden[rule]} == pytest.approx(golden[rule], abs=1e-4)
    assert score_pope(labels, labels).f1 == 1
    assert 0.45 < score_pope(labels, shuffled(labels)).accuracy < 0.55


def test_rec_as_a_plain_overlap(official_format, tmp_path):
    golden = json.loads((official_format / "golden_scores.json").read_text())["refcoco_unc_testA_50"]
    references = official_format / golden["file"]
    records = json.loads(references.read_text())
    choices = {
        "first_detector_box": lambda record: record["detector_boxes"][0],
        "best_detector_box": lambda record: max(
            record["detector_boxes"], key=lambda box: box_iou(box, record["bbox"])
        ),
    }
    for name, choice in choices.items():
        results = [{"ref_id": record["ref_id"], "bbox": choice(record)} for record in records]
        (tmp_path / "results.json").write_text(json.dumps(results))
        boxes, predictions = load_rec(references, tmp_path / "results.json")
        scores = score_rec(boxes, predictions)
        assert scores.mean_iou == pytest.approx(golden[name]["mean_iou"], abs=1e-4)
        assert scores.accuracy == pytest.approx(golden[name]["acc_at_0_5"], abs=1e-4)
    assert score_rec(boxes, boxes).accuracy == 1
    assert score_rec(boxes, shuffled(predictions)).accuracy < 0.3
