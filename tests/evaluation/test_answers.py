"""Answers about pictures, and what pooling saves."""

import pytest
from PIL import Image
from transformers import LlamaConfig

from comneck_hf.evaluation.answers import Question, spread
from comneck_hf.evaluation.plots import plot_speedups, plot_strides
from comneck_hf.evaluation.pooling_speed import measure_pooling, random_llava
from comneck_hf.models.llavolta.pooling_llavolta import compression_ratio


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


def test_strides_are_drawn(tmp_path):
    rows = [
        {"task": task, "trained": name, "pool_stride": stride, "accuracy": 50.0, "interval": [45.0, 56.0]}
        for task in ("naming", "questions")
        for name in ("with", "without")
        for stride in (1, 8)
    ]
    plot_strides(rows, tmp_path / "both.png")
    plot_strides(rows[:4], tmp_path / "one.png")
    sizes = [Image.open(tmp_path / f"{name}.png").size for name in ("both", "one")]
    assert sizes[0] == (2 * sizes[1][0], sizes[1][1])
