import itertools

import pytest
import torch

from comneck_hf.evaluation.metrics import psnr
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
