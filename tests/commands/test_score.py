"""`comneck score` as a user types it."""

import json
import sys

import pytest
from typer.testing import CliRunner

from comneck_hf.cli import app


PEOPLE = [{"answer": "red"}] * 2 + [{"answer": "blue"}] * 8


@pytest.fixture
def score(tmp_path):
    """Runs the command on references and results, written as JSON or, from a tuple, as JSON lines."""

    def run(task, references, results, *words):
        for name, content in (("references", references), ("results", results)):
            text = "\n".join(map(json.dumps, content)) if isinstance(content, tuple) else json.dumps(content)
            (tmp_path / name).write_text(text)
        files = ["--references", str(tmp_path / "references"), "--results", str(tmp_path / "results")]
        return CliRunner().invoke(app, ["score", task, *files, *words])

    return run


VQA = {"annotations": [{"question_id": 1, "answers": PEOPLE, "answer_type": "other", "question_type": "what color"}]}


def test_vqa_in_percent(score, tmp_path):
    results = [{"question_id": 1, "answer": "Red."}]
    (tmp_path / "questions").write_text(json.dumps({"questions": [{"question_id": 1}]}))
    asked = ["--questions", str(tmp_path / "questions")]
    assert score("vqa", VQA, results, *asked).stdout.split() == (
        ["vqa:", "1", "predictions", "overall", "60.00", "%", "other", "60.00", "%"]
    )
    report = json.loads(score("vqa", VQA, results, "--json").stdout)
    assert report["per_question_type"] == {"what color": pytest.approx(60)}
    assert (report["task"], report["predictions"]) == ("vqa", 1)
    assert "per_question" not in report


def test_pope_from_lines(score):
    references = tuple({"question_id": key, "text": "?", "label": label} for key, label in ((1, "yes"), (2, "no")))
    results = tuple({"question_id": key, "answer": "Yes, there is."} for key in (1, 2))
    report = json.loads(score("pope", references, results, "--json").stdout)
    assert (report["accuracy"], report["recall"], report["yes_ratio"]) == (0.5, 1, 1)


def test_rec_with_normalized_boxes(score):
    references = [{"ref_id": 1, "bbox": [10, 20, 30, 40], "width": 100, "height": 200}]
    results = [{"ref_id": 1, "answer": "[0.1, 0.1, 0.4, 0.3]"}]
    result = score("rec", references, results, "--boxes", "normalized")
    assert result.stdout.split() == (
        ["rec:", "1", "predictions", "accuracy", "1.0000", "mean_iou", "1.0000", "num_unreadable", "0"]
    )
    result = score("rec", references, results)
    assert result.exit_code == 1
    assert "they are normalized, not pixels" in result.stderr


def test_captions_without_the_extra_are_one_line(score, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    captions = [{"image_id": key, "caption": "a dog"} for key in (1, 2)]
    result = score("captions", {"annotations": captions}, captions)
    assert result.exit_code == 1
    assert result.stderr == 'Error: Captions need an extra: pip install "comneck_hf[eval]"\n'


def test_bad_files_are_one_line(score):
    result = score("vqa", VQA, [])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: 1 of 1 ids have no prediction")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--questions", "file"], ["--boxes", "normalized"]])
def test_options_of_other_tasks_are_wrong_usage(score, words):
    result = score("pope", (), (), *words)
    assert result.exit_code == 2
    assert "not pope" in result.stderr
