"""Answers about pictures, and what pooling saves."""

import pytest
from transformers import LlamaConfig

from comneck_hf.evaluation.answers import Question, score_answers, spread, wilson_interval
from comneck_hf.evaluation.plots import plot_answers, plot_speedups
from comneck_hf.evaluation.pooling_speed import measure_pooling, random_llava
from comneck_hf.models.llavolta.pooling_llavolta import compression_ratio


def test_right_answers_are_counted_whatever_their_case():
    questions = [Question(0, "what?", "Windsor chair"), Question(0, "what?", "cup"), Question(1, "what?", "cup")]
    scored = score_answers(["windsor chair", "cups", "cup"], questions)
    assert scored["accuracy"] == pytest.approx(200 / 3)
    low, high = scored["interval"]
    assert low < scored["accuracy"] < high


def test_the_interval_is_wilsons():
    """Newcombe (1998), table 1: 81 of 263, and 0 of 20."""
    assert wilson_interval(81, 263) == pytest.approx((25.53, 36.62), abs=0.01)
    assert wilson_interval(0, 20) == pytest.approx((0, 16.11), abs=0.01)


def test_questions_are_spread_over_all_of_them():
    questions = [Question(index, "what?", "") for index in range(10)]
    assert [question.picture for question in spread(questions, 4)] == [0, 2, 5, 7]
    assert spread(questions, 20) == questions


def test_a_cache_shrinks_as_the_formula_says(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    llava = random_llava(LlamaConfig(vocab_size=50, **sizes))
    results = measure_pooling(llava, [(1, 1), (1, 8), (2, 4)], visual_tokens=64, text_tokens=8, repeats=1)
    whole, heavy, light = results["settings"]
    one_token = 2 * 4 * 32  # keys and values in float32
    assert whole["cache_bytes"] == 4 * 72 * one_token
    assert heavy["cache_bytes"] == (72 + 3 * 16) * one_token
    assert light["cache_bytes"] == (2 * 72 + 2 * 24) * one_token
    for row in results["settings"]:
        assert row["token_layers_ratio"] == pytest.approx(whole["cache_bytes"] / row["cache_bytes"])
        assert row["prefill_seconds"] > 0 and row["training_seconds"] > 0
    assert heavy["compression_ratio"] == compression_ratio(4, 64, pool_layer=1, pool_stride=8) == 256 / 88
    assert whole["prefill_speedup"] == whole["training_speedup"] == 1
    assert all(parameter.grad is None for parameter in llava.parameters())
    plot_speedups(results["settings"], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_answers_are_drawn(tmp_path):
    task = {"accuracy": 50.0, "interval": [45.0, 56.0]}
    rows = [{"source": "original", "vqa": task}]
    rows += [
        {"source": source, "scenario": scenario, "bytes_per_picture": size, "vqa": task}
        for source in ("latents", "reconstruction")
        for scenario in ("d1", "d3")
        for size in (200, 400)
    ]
    plot_answers(rows, tmp_path / "figure.png", tasks={"vqa": "questions"})
    assert (tmp_path / "figure.png").stat().st_size > 5000
