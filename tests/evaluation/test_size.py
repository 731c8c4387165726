import copy

import pytest
import torch

from comneck_hf.coding.bitstream import Bitstream
from comneck_hf.evaluation.size import picture_size, summarize_sizes


@pytest.fixture(scope="module")
def images(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures * 255).round().to(torch.uint8)


def test_the_size_is_that_of_the_file_and_its_parts_are_its_own(trained_codec, images):
    size = picture_size(trained_codec, images[0])
    (bitstream,) = trained_codec.compress(images[:1].float() / 255)
    assert size.pixels == 128 * 128
    assert size.bytes == len(bitstream)
    assert size.payload_bits == 8 * len(Bitstream.parse(bitstream).payload)
    assert 0 < size.zero_share < 1


def test_every_way_of_counting_agrees_on_a_trained_codec(trained_codec, images):
    """The four counts come from different code: container, rANS payload, integer tables, float likelihoods."""
    for image in images:
        size = picture_size(trained_codec, image)
        assert size.payload_bits == pytest.approx(size.integer_bits, rel=0.02, abs=64)
        assert size.integer_bits == pytest.approx(size.float_bits, rel=0.03)
        assert size.integer_bits == pytest.approx(size.estimate_bits, rel=0.03)


def test_the_summary_is_the_mean_over_pictures(trained_codec, images):
    sizes = [picture_size(trained_codec, image) for image in images[:3]]
    report = summarize_sizes(trained_codec, images[:3])
    assert report["pictures"] == 3
    assert report["bytes"] == pytest.approx(sum(size.bytes for size in sizes) / 3)
    assert report["over_estimate_bytes"] == pytest.approx(report["bytes"] - report["estimated_bytes"])
    integer, floating = (sum(getattr(size, name) for size in sizes) for name in ("integer_bits", "float_bits"))
    assert report["integer_networks_percent"] == pytest.approx(100 * (integer / floating - 1))


def test_a_codec_whose_integers_are_off_is_found(trained_codec, images):
    """The count of the integer networks is not the float networks' under another name."""
    broken = copy.deepcopy(trained_codec)
    broken.exact.thresholds.copy_(broken.exact.thresholds // 3)
    whole, worse = picture_size(trained_codec, images[0]), picture_size(broken, images[0])
    assert worse.integer_bits > 1.05 * whole.integer_bits
