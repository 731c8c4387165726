"""Files of the benchmarks, and what is refused."""

import json

import pytest

from comneck_hf.evaluation.score_files import load_captions, load_pope, load_rec, load_vqa


@pytest.fixture
def write(tmp_path):
    """Writes a file: a list of objects as JSON lines if the name ends so, anything else as JSON, a text as it is."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content)
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(record) + "\n" for record in content))
        else:
            path.write_text(json.dumps(content))
        return path

    return write


def vqa_record(key, **changes):
    people = [{"answer": "yes", "answer_id": number} for number in range(1, 11)]
    return {"question_id": key, "answers": people, "answer_type": "yes/no", "question_type": "is", **changes}


POPE = [{"question_id": key, "text": f"Is there a {name}?", "label": "yes"} for key, name in ((1, "dog"), (2, "cat"))]
REC = [{"ref_id": key, "bbox": [10, 20, 30, 40], "width": 100, "height": 200} for key in (1, 2)]


def test_vqa_is_joined_by_question(write):
    references = write("references.json", {"annotations": [vqa_record(1), vqa_record(2)]})
    results = write("results.json", [{"question_id": 2, "answer": "no"}, {"question_id": 1, "answer": "yes"}])
    asked = write("questions.json", {"questions": [{"question_id": 2}, {"question_id": 1}]})
    questions, predictions = load_vqa(references, results, questions=asked)
    assert questions[2].answers == ("yes",) * 10
    assert (questions[2].answer_type, questions[2].question_type) == ("yes/no", "is")
    assert predictions == {1: "yes", 2: "no"}


@pytest.mark.parametrize(
    "results, message",
    [
        ([], "2 of 2 ids have no prediction, such as 1, 2"),
        ([{"question_id": 1, "answer": "yes"}], "1 of 2 ids have no prediction, such as 2"),
        ([{"question_id": key, "answer": "yes"} for key in (1, 2, 3)], "the references lack, such as 3"),
        ([{"question_id": key, "answer": "yes"} for key in (1, 2, 2)], "results.json has question_id 2 twice"),
        ([{"answer": "yes"}], 'Record 0 of .*results.json needs a number or text "question_id", got None'),
        ([{"question_id": 1, "answer": 3}], 'results.json, question_id 1: "answer" must be a text, got 3'),
        ([{"question_id": 1}], '"answer" must be a text, got None'),
        (["yes"], "Record 0 of .* must be a JSON object, but is 'yes'"),
        ({"annotations": []}, "must hold a list of objects, but holds an object with 'annotations'"),
        ("[{", "results.json is not JSON"),
    ],
)
def test_results_of_vqa_are_checked(write, results, message):
    references = write("references.json", {"annotations": [vqa_record(1), vqa_record(2)]})
    with pytest.raises(ValueError, match=message):
        load_vqa(references, write("results.json", results))


@pytest.mark.parametrize(
    "references, message",
    [
        ({"annotations": []}, "nothing to score"),
        ({"annotations": [vqa_record(1), vqa_record(1)]}, "references.json has question_id 1 twice"),
        ({"annotations": [vqa_record(1, answers=["yes"])]}, '"answers" must be a list of objects'),
        ({"annotations": [vqa_record(1, answers=[{}])]}, '"answer" must be a text'),
        ({"annotations": [vqa_record(1, answer_type=None)]}, '"answer_type" must be a text, got None'),
        ([vqa_record(1)], 'must hold an object with a list "annotations", but holds a list'),
        ({"questions": []}, "holds an object with 'questions'"),
    ],
)
def test_references_of_vqa_are_checked(write, references, message):
    results = write("results.json", [{"question_id": 1, "answer": "yes"}])
    with pytest.raises(ValueError, match=message):
        load_vqa(write("references.json", references), results)


def test_questions_of_another_split_are_refused(write):
    references = write("references.json", {"annotations": [vqa_record(1)]})
    results = write("results.json", [{"question_id": 1, "answer": "yes"}])
    asked = write("questions.json", {"questions": [{"question_id": 1}, {"question_id": 5}]})
    with pytest.raises(ValueError, match="differ in their question ids, such as 5"):
        load_vqa(references, results, questions=asked)


def test_pope_is_joined_by_question(write):
    results = write("results.jsonl", [{"question_id": 2, "answer": "no"}, {"question_id": 1, "answer": "yes"}])
    labels, predictions = load_pope(write("references.jsonl", POPE), results)
    assert labels == {1: "yes", 2: "yes"}
    assert predictions == {1: "yes", 2: "no"}


def test_pope_without_ids_is_joined_in_order(write):
    answers = [{"question": "is there a dog?", "answer": "yes"}, {"question": "Is there a cat?", "answer": "no"}]
    _, predictions = load_pope(write("references.jsonl", POPE), write("results.jsonl", answers))
    assert predictions == {1: "yes", 2: "no"}


@pytest.mark.parametrize(
    "results, message",
    [
        ([{"question_id": 1, "answer": "yes"}], "1 of 2 ids have no prediction"),
        ([{"question_id": 1, "answer": "yes"}] * 2, "results.jsonl has question_id 1 twice"),
        (
            [{"question_id": 1, "answer": "yes"}, {"answer": "no"}],
            'Record 1 of .* needs a number or text "question_id"',
        ),
        ([{"question": "Is there a dog?", "answer": "yes"}], "has 1 answers without ids, .* has 2 questions"),
        (
            [{"question": f"Is there a {name}?", "answer": "yes"} for name in ("cat", "dog")],
            r"Answer 1 of .* is to the question 'Is there a cat\?'",
        ),
        ([{"answer": "yes"}, {"answer": "no"}], "is to the question None"),
        ('{"question_id": 1, "answer": "yes"}\n{"question_id"', "line 2 is not JSON"),
        ('[{"question_id": 1, "answer": "yes"}]', "Record 0 of .* must be a JSON object, but is a list"),
    ],
)
def test_results_of_pope_are_checked(write, results, message):
    with pytest.raises(ValueError, match=message):
        load_pope(write("references.jsonl", POPE), write("results.jsonl", results))


def test_captions_are_grouped_by_image(write):
    captions = [{"image_id": key, "id": number, "caption": f"text {number}"} for number, key in enumerate((4, 7, 4))]
    results = write("results.json", [{"image_id": 7, "caption": "b"}, {"image_id": 4, "caption": "a"}])
    references, predictions = load_captions(write("references.json", {"annotations": captions}), results)
    assert references == {4: ["text 0", "text 2"], 7: ["text 1"]}
    assert predictions == {4: "a", 7: "b"}


@pytest.mark.parametrize(
    "results, message",
    [
        ([], "1 of 1 ids have no prediction, such as 4"),
        ([{"image_id": 4, "caption": "a"}] * 2, "results.json has image_id 4 twice"),
        ([{"image_id": 4, "caption": "a"}, {"image_id": 5, "caption": "a"}], "the references lack, such as 5"),
        ([{"image_id": 4, "caption": None}], 'image_id 4: "caption" must be a text'),
    ],
)
def test_results_of_captions_are_checked(write, results, message):
    references = write("references.json", {"annotations": [{"image_id": 4, "caption": "text"}]})
    with pytest.raises(ValueError, match=message):
        load_captions(references, write("results.json", results))


def test_boxes_come_as_boxes_or_in_texts(write):
    results = [{"ref_id": 2, "answer": "At [10, 20, 40, 60]."}, {"ref_id": 1, "bbox": [1, 2, 3, 4]}]
    boxes, predictions = load_rec(write("references.json", REC), write("results.json", results))
    assert boxes == {1: (10, 20, 30, 40), 2: (10, 20, 30, 40)}
    assert predictions == {1: (1, 2, 3, 4), 2: (10, 20, 30, 40)}


def test_normalized_boxes_are_fractions_of_the_picture(write):
    results = [{"ref_id": 1, "answer": "[0.1, 0.1, 0.4, 0.3]"}, {"ref_id": 2, "answer": "nowhere"}]
    references = write("references.json", REC)
    _, predictions = load_rec(references, write("results.json", results), box_unit="normalized")
    assert predictions[1] == pytest.approx((10, 20, 30, 40))
    assert predictions[2] is None


@pytest.mark.parametrize(
    "results, box_unit, message",
    [
        ([{"ref_id": 1, "bbox": [1, 2, 3, 4]}], "pixels", "1 of 2 ids have no prediction, such as 2"),
        ([{"ref_id": key, "bbox": [1, 2, 3, 4]} for key in (1, 2, 2)], "pixels", "has ref_id 2 twice"),
        ([{"ref_id": key, "bbox": [1, 2, 3, 4]} for key in (1, 2, 3)], "pixels", "lack, such as 3"),
        ([{"ref_id": 1, "bbox": [9, 9, 3, -4]}], "pixels", 'ref_id 1: "bbox" must be finite'),
        ([{"ref_id": 1}], "pixels", 'needs either "bbox" or "answer", has \'ref_id\''),
        ([{"ref_id": 1, "answer": "a", "bbox": [1, 2, 3, 4]}], "pixels", 'needs either "bbox" or "answer"'),
        ([{"ref_id": key, "answer": "[0, 0, 0.5, 1]"} for key in (1, 2)], "pixels", "they are normalized, not pixels"),
        (
            [{"ref_id": key, "answer": "[0, 0, 5, 10]"} for key in (1, 2)],
            "normalized",
            "are not normalized, but pixels",
        ),
        ([{"ref_id": 1, "bbox": [1, 2, 3, 4]}], "percent", "`box_unit` must be one of .* got 'percent'"),
    ],
)
def test_results_of_rec_are_checked(write, results, box_unit, message):
    with pytest.raises(ValueError, match=message):
        load_rec(write("references.json", REC), write("results.json", results), box_unit=box_unit)


@pytest.mark.parametrize(
    "record, box_unit, message",
    [
        ({"ref_id": 1, "bbox": [1, 2, 0, 4]}, "pixels", '"bbox" must have an area'),
        ({"ref_id": 1}, "pixels", '"bbox" must be four numbers'),
        ({"ref_id": 1, "bbox": [1, 2, 3, 4]}, "normalized", 'need the picture\'s "width" and "height"'),
    ],
)
def test_references_of_rec_are_checked(write, record, box_unit, message):
    results = write("results.json", [{"ref_id": 1, "answer": "[0, 0, 1, 1]"}])
    with pytest.raises(ValueError, match=message):
        load_rec(write("references.json", [record]), results, box_unit=box_unit)


def test_what_is_no_text_is_refused(write, tmp_path):
    (tmp_path / "picture.json").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="picture.json is not a text file"):
        load_captions(tmp_path / "picture.json", write("results.json", []))
    with pytest.raises(FileNotFoundError, match="absent"):
        load_captions(tmp_path / "absent.json", write("results.json", []))
