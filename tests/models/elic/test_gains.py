"""Gains and gain maps of the codec: exactness, what they do to the rate and to regions, rate control."""

import copy
import itertools
import logging

import pytest
import torch

from comneck_hf.coding.bitstream import Bitstream
from comneck_hf.coding.exact import EXECUTORS
from comneck_hf.coding.gain_map import GainMap
from comneck_hf.models.elic.gains_elic import gain_grid
from comneck_hf.models.elic.inspection_elic import inspect_bitstream


CHECKS = GainMap(tuple(tuple((row + column) % 3 - 1 for column in range(8)) for row in range(8)))
ZEROS = GainMap(((0,) * 8,) * 8)


def payloads(bitstreams):
    return [Bitstream.parse(data).payload for data in bitstreams]


def test_gain_1_everywhere_gives_the_symbols_of_the_plain_stream(tiny_codec, pictures):
    plain = tiny_codec.compress(pictures)
    assert payloads(tiny_codec.compress(pictures, gain_maps=ZEROS)) == payloads(plain)
    assert tiny_codec.compress(pictures, gain=0.0) == plain
    y, z_symbols = tiny_codec._analyse(pictures)
    gains = torch.zeros(len(y), *y.shape[2:], dtype=torch.int64)
    assert torch.equal(
        tiny_codec.exact.encode(y, z_symbols, gains).symbols, tiny_codec.exact.encode(y, z_symbols).symbols
    )


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("gain, gain_map", [(1.3, None), (-2.1, CHECKS), (0, CHECKS), (5, CHECKS), (-8, None)])
def test_streams_with_gains_decode_to_what_was_encoded(tiny_codec, pictures, executor, gain, gain_map):
    expected = tiny_codec.encode(pictures, gain=gain, gain_maps=gain_map).latents
    bitstreams = tiny_codec.compress(pictures, gain=gain, gain_maps=gain_map)
    codec = copy.deepcopy(tiny_codec)
    codec.exact.executor = executor
    assert torch.equal(codec.decompress(bitstreams), expected)


def test_pictures_of_a_batch_have_gains_of_their_own(tiny_codec, pictures):
    gains, maps = [0, 1, -1, 0.5, 0, 2], [None, CHECKS, CHECKS, None, CHECKS, None]
    together = tiny_codec.compress(pictures, gain=gains, gain_maps=maps)
    for index, bitstream in enumerate(together):
        alone = tiny_codec.compress(pictures[index : index + 1], gain=gains[index], gain_maps=maps[index])
        assert alone == [bitstream]
        assert torch.equal(tiny_codec.decompress(together)[index], tiny_codec.decompress(alone)[0])
    sizes = [picture[:, : 64 + 64 * (index % 2)] for index, picture in enumerate(pictures)]
    mixed = tiny_codec.compress(sizes, gain=gains, gain_maps=maps)
    assert [Bitstream.parse(data).gain for data in mixed] == [64 * gain for gain in gains]
    assert [Bitstream.parse(data).gain_map for data in mixed] == maps


def test_more_gain_costs_more_bytes_and_brings_the_latents_closer(tiny_codec, pictures):
    y, _ = tiny_codec._analyse(pictures)
    sizes, errors = [], []
    for gain in (-2, -1, 0, 1, 2, 3):
        sizes.append(sum(map(len, tiny_codec.compress(pictures, gain=gain))))
        errors.append((tiny_codec.encode(pictures, gain=gain).latents - y).square().mean().item())
    assert all(low < high for low, high in itertools.pairwise(sizes))
    assert all(before > 2 * after for before, after in itertools.pairwise(errors[2:]))
    for level in (-1, 1):
        everywhere = GainMap(((level,) * 8,) * 8, step=4)
        assert payloads(tiny_codec.compress(pictures, gain_maps=everywhere)) == payloads(
            tiny_codec.compress(pictures, gain=level)
        )


def test_bits_follow_the_map(tiny_codec, pictures):
    def bits(gain_maps):
        likelihoods = tiny_codec.encode(pictures, gain_maps=gain_maps).likelihoods["y"]
        return -likelihoods.log2().sum(1)

    levels = torch.tensor(CHECKS.gain_index, dtype=torch.float32)
    change = (bits(CHECKS) / bits(None)).log().mean(0)
    assert torch.corrcoef(torch.stack([change.flatten(), levels.flatten()]))[0, 1] > 0.5


def test_a_gain_map_is_stretched_over_a_picture_of_any_size(tiny_codec):
    grid = gain_grid([5], [GainMap(((-1, 1),), step=4)], 4, 8, torch.device("cpu"))
    assert grid[0, :, :4].unique().tolist() == [5 - 64]
    assert grid[0, :, 4:].unique().tolist() == [5 + 64]
    assert gain_grid([0, 0], [None, None], 4, 8, torch.device("cpu")) is None


def test_a_report_counts_the_bits_of_streams_with_gains(tiny_codec, pictures):
    (bitstream,) = tiny_codec.compress(pictures[:1], gain=0.7, gain_maps=CHECKS)
    report = inspect_bitstream(tiny_codec, bitstream)
    assert sum(segment.bits for segment in report.segments) == pytest.approx(8 * len(bitstream))
    with pytest.raises(AssertionError):
        assert report.segments == inspect_bitstream(tiny_codec, tiny_codec.compress(pictures[:1])[0]).segments


@pytest.mark.parametrize("factor", [0.6, 0.75, 0.9, 1.1, 1.2])
def test_a_size_is_reached_with_three_encodes(tiny_codec, pictures, factor, monkeypatch):
    encodes = []
    original = tiny_codec.exact.encode
    monkeypatch.setattr(tiny_codec.exact, "encode", lambda *args: encodes.append(1) or original(*args))
    plain = [len(data) for data in tiny_codec.compress(pictures)]
    encodes.clear()
    target = round(factor * sum(plain) / len(plain))
    sizes = torch.tensor([len(data) for data in tiny_codec.compress(pictures, target_bytes=target)])
    assert len(encodes) <= 3
    assert ((sizes / target - 1).abs() < 0.02).float().mean() >= 0.8
    assert (sizes / target - 1).abs().max() < 0.05


@pytest.mark.parametrize("factor", [0.4, 0.75, 1.2])
def test_sizes_of_larger_pictures_are_within_two_percent_after_three_encodes_and_not_after_one(
    tiny_codec, pictures, factor, monkeypatch
):
    """Acceptance test: where a byte is a small part of the size, no picture is off by more."""
    large = torch.nn.functional.interpolate(pictures, (256, 256), mode="bilinear")
    target = round(factor * sum(map(len, tiny_codec.compress(large))) / len(large))

    def errors():
        return torch.tensor([len(data) / target - 1 for data in tiny_codec.compress(large, target_bytes=target)]).abs()

    assert errors().max() < 0.02
    monkeypatch.setattr("comneck_hf.models.elic.rate_control.ENCODES", 1)
    assert errors().max() > 0.1


def test_bits_per_pixel_count_the_pixels_of_the_picture(tiny_codec, pictures):
    small = [pictures[0], pictures[1][:, :100, :70]]
    for picture, data in zip(small, tiny_codec.compress(small, target_bpp=1.0), strict=True):
        assert 8 * len(data) / (picture.shape[1] * picture.shape[2]) == pytest.approx(1.0, rel=0.04)


def test_a_size_is_reached_with_a_map_too(tiny_codec, pictures):
    target = round(1.2 * len(tiny_codec.compress(pictures[:1])[0]))
    (data,) = tiny_codec.compress(pictures[:1], target_bytes=target, gain_maps=CHECKS)
    assert len(data) == pytest.approx(target, rel=0.02)
    assert Bitstream.parse(data).gain_map == CHECKS


def test_a_size_beyond_the_highest_gain_is_told(tiny_codec, pictures, caplog):
    plain = torch.full_like(pictures[:1], 0.5)
    most = tiny_codec.compress(plain, gain=5.0)
    caplog.clear()
    transformers_logger = logging.getLogger("transformers")
    transformers_logger.addHandler(caplog.handler)
    try:
        assert tiny_codec.compress(plain, target_bytes=10 * len(most[0])) == most
    finally:
        transformers_logger.removeHandler(caplog.handler)
    assert f"takes {len(most[0])} bytes at the highest gain, {10 * len(most[0])} were wanted" in caplog.text


def test_a_quality_is_half_an_octave_from_the_next(tiny_codec, pictures):
    codec = copy.deepcopy(tiny_codec)
    codec.config.quality = 2
    assert codec.compress(pictures, quality=2) == codec.compress(pictures)
    assert codec.compress(pictures, quality=3.5) == codec.compress(pictures, gain=0.75)
    with pytest.raises(ValueError, match=r"`quality` must lie in \[-14, 12\] with a codec of quality 2, got 100"):
        codec.compress(pictures, quality=100)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"gain": 6}, r"`gain` must lie in \[-8, 5\] octaves, got 6"),
        ({"gain": float("nan")}, r"`gain` must lie in \[-8, 5\] octaves, got nan"),
        ({"gain": [0.0, 1.0]}, "one for each of the 6 pictures, got 2"),
        ({"gain_maps": [None]}, "one for each of the 6 pictures, got 1"),
        ({"gain_maps": "roi"}, "must be"),
        ({"gain_maps": torch.zeros(8, 8)}, "must be `GainMap` or `None`, got Tensor"),
        ({"quality": 2.0}, "own quality is unknown"),
        ({"target_bytes": 0}, "`target_bytes` must be positive"),
        ({"target_bytes": 500, "gain": 1.0}, "Give one of"),
        ({"target_bytes": 500, "target_bpp": 1.0}, "Give one of"),
        ({"target_bytes": 40}, "takes at least [0-9]+ bytes with this codec, 40 were wanted"),
    ],
)
def test_impossible_rates_are_refused(tiny_codec, pictures, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        tiny_codec.compress(pictures, **options)
