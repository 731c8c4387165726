import itertools

import pytest
import torch

from comneck_hf.evaluation.baselines import Reconstruction
from comneck_hf.evaluation.metrics import psnr
from comneck_hf.evaluation.rate_accuracy import measure_codec
from comneck_hf.evaluation.rates import reach_rates, region_gains


def test_every_picture_is_coded_at_every_rate(tiny_codec, pictures):
    cut = [(pictures[0] * 255).round().to(torch.uint8), (pictures[1, :, :120, :118] * 255).round().to(torch.uint8)]
    plain = [8 * len(tiny_codec.compress(picture[None] / 255)[0]) / picture[0].numel() for picture in cut]
    rates = [0.9 * max(plain), 1.1 * max(plain)]
    reached = list(reach_rates(tiny_codec, cut, rates))
    assert [(size.picture, size.wanted_bpp) for size in reached] == list(itertools.product((0, 1), rates))
    for size in reached:
        assert size.bpp == pytest.approx(size.wanted_bpp, rel=0.05)
    data = tiny_codec.compress(cut[0][None] / 255, target_bpp=rates[1])
    decoded = (tiny_codec.decode(tiny_codec.decompress(data)) * 255).round() / 255
    assert reached[1].psnr == pytest.approx(float(psnr(decoded, cut[0][None] / 255)), abs=1e-3)


def test_a_region_gains_at_equal_bytes_and_the_rest_loses(tiny_codec, pictures):
    coded = [(picture * 255).round().to(torch.uint8) for picture in pictures[:3]]
    regions = list(region_gains(tiny_codec, coded, step=8, seed=1))
    assert [region.picture for region in regions] == [0, 1, 2]
    for region in regions:
        assert region.region_bytes == pytest.approx(region.plain_bytes, rel=0.03)
        left, top, right, bottom = region.box
        assert 0 <= left < right <= 128
        assert 0 <= top < bottom <= 128
    inside, outside = (torch.tensor([getattr(region, part) for region in regions]) for part in ("inside", "outside"))
    assert inside.diff().mean() > 0 > outside.diff().mean()


def test_pictures_are_decoded_at_their_gain(vector_codec, pictures):
    """Whatever measures a codec with channel vectors sees what `decode` gives with the gains of the bitstreams."""
    images = (pictures[:2] * 255).round().to(torch.uint8)
    bitstreams = vector_codec.compress(images / 255, gain=-0.8)
    latents = vector_codec.decompress(bitstreams)
    with torch.no_grad():
        right, wrong = (
            (vector_codec.decode(latents, **gains) * 255).round() / 255
            for gains in (vector_codec.coded_gains(bitstreams), {})
        )
    expected, other = ((psnr(decoded, images / 255)).mean().item() for decoded in (right, wrong))
    assert expected != pytest.approx(other, abs=0.05)
    assert measure_codec(vector_codec, images, gain=-0.8)["psnr"] == pytest.approx(expected, abs=1e-3)
    received = Reconstruction(vector_codec, gain=-0.8).receive(images)
    assert torch.equal(received.pixel_values, right)
    rate = 8 * len(bitstreams[0]) / 128**2
    (reached,) = reach_rates(vector_codec, list(images[:1]), [rate])
    data = vector_codec.compress(images[:1] / 255, target_bpp=rate)
    with torch.no_grad():
        decoded = vector_codec.decode(vector_codec.decompress(data), **vector_codec.coded_gains(data))
    assert reached.psnr == pytest.approx(psnr((decoded * 255).round() / 255, images[:1] / 255).item(), abs=1e-3)
