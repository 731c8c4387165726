"""The speed measurements, on a small codec and few pictures: what they report, not how fast it is."""

import pytest
import torch

from comneck_hf.evaluation.benchmark import coder_speed, decompress_speed, interleaved_medians
from comneck_hf.evaluation.compressai_reference import CompressAICodec, to_compressai
from comneck_hf.models.elic.quantization_elic import synthetic_pictures


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return (synthetic_pictures(64, 9) * 255).round().to(torch.uint8)


def test_medians_leave_the_first_round_out():
    ticks = iter([0.0, 100.0, 0.0, 1.0, 0.0, 3.0, 0.0, 2.0])
    assert interleaved_medians({"task": lambda: None}, repeats=3, clock=lambda: next(ticks)) == {"task": 2.0}


def test_the_coder_is_compared_on_the_same_symbols_alone_and_in_a_batch(trained_codec, pictures):
    report = coder_speed(trained_codec, pictures, repeats=1)
    channels = trained_codec.config.latent_channels * 16 + trained_codec.config.hidden_channels
    assert report["symbols_per_picture"] == channels
    assert 0 < report["bits_over_ideal_percent"] < 20  # a few hundred bits a picture, 24 of them for the check
    for size in (1, 8):
        batch = report[f"batch_{size}"]
        names = {"encode", "decode", "CompressAI encode", "CompressAI decode", "ans encode", "ans decode"}
        assert set(batch["ms_per_picture"]) == names
        milliseconds = batch["ms_per_picture"]
        assert batch["decode_ratio"] == pytest.approx(milliseconds["CompressAI decode"] / milliseconds["decode"])
    assert set(report["two_threads"]) == {"batch_8"}
    assert set(report["two_threads"]["batch_8"]) == {"encode_ratio", "decode_ratio"}


def test_decoding_is_measured_for_every_executor_and_batch_size(trained_codec, pictures):
    other = CompressAICodec(to_compressai(trained_codec))
    report = decompress_speed(trained_codec, other, pictures, executors=["float32"], batch_sizes=(1, 2), repeats=1)
    assert set(report) == {"batch_1", "batch_2"}
    assert set(report["batch_1"]["ms_per_picture"]) == {"float32", "CompressAI"}
    assert set(report["batch_2"]["times_as_fast"]) == {"float32"}
    assert trained_codec.exact.executor is None
