"""Importance of words: windows of a picture against a text embedding."""

import pytest
import torch

from comneck_hf.models.clip_inputs import clip_inputs
from comneck_hf.models.cotam.text_cotam import text_importance


def pictures(height=64, width=96, count=2):
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def embed(clip, pixel_values):
    embeds = clip.get_image_features(pixel_values=clip_inputs(pixel_values, 56)).pooler_output
    return torch.nn.functional.normalize(embeds, dim=-1)


def test_a_cell_is_the_mean_over_the_windows_that_cover_it(clip):
    text = torch.randn(16, generator=torch.Generator().manual_seed(0))
    unit = text / text.norm()
    found = text_importance(clip, pictures(), 7 * text)
    assert found.shape == (2, 1, 4, 4)
    corner = embed(clip, pictures()[..., :32, :48]) @ unit
    assert torch.allclose(found[:, 0, 0, 0], corner, atol=1e-5)
    edge = embed(clip, pictures()[..., 32:, 24:72]) @ unit  # the middle window of the last row
    last = embed(clip, pictures()[..., 32:, 48:]) @ unit
    assert torch.allclose(found[:, 0, 3, 2], (edge + last) / 2, atol=1e-5)


def test_the_part_that_is_like_the_text_wins(clip):
    canvas = torch.full((1, 3, 64, 64), 0.5)
    canvas[..., 32:, :32] = pictures(32, 32, 1)
    text = embed(clip, canvas[..., 32:, :32])[0]
    importance = text_importance(clip, canvas, text)[0, 0]
    assert importance[3, 0] == importance.max() == pytest.approx(1, abs=1e-5)
    assert text_importance(clip, canvas, text, depth=2)[0, 0].flatten().argmax() // 8 >= 4


def test_each_picture_may_have_a_text_of_its_own(clip):
    texts = torch.randn((2, 16), generator=torch.Generator().manual_seed(0))
    together = text_importance(clip, pictures(), texts)
    apart = [text_importance(clip, picture[None], text) for picture, text in zip(pictures(), texts, strict=True)]
    assert torch.allclose(together, torch.cat(apart), atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text_embeds": torch.ones(8)}, r"\(16,\) or \(2, 16\), got \(8,\)"),
        ({"text_embeds": torch.ones(3, 16)}, r"got \(3, 16\)"),
        ({"depth": 0}, "1 to 4"),
        ({"depth": 4, "pixel_values": pictures(31, 96)}, "at least 32"),
    ],
)
def test_wrong_arguments_are_named(clip, arguments, message):
    with pytest.raises(ValueError, match=message):
        text_importance(clip, **{"pixel_values": pictures(), "text_embeds": torch.ones(16), **arguments})
