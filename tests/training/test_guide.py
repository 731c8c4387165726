"""The convolutional guide of the small CLIP."""

import pytest
import torch

from comneck_hf.training.guide import GuideNetwork, hint_loss


def test_features_have_an_eighth_of_the_side_and_logits_one_per_class():
    guide = GuideNetwork(7, width=4).eval()
    features, logits = guide(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, guide.num_channels, 8, 8)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("side", [4, 8])
def test_hints_are_zero_for_tokens_that_are_the_standardized_features_and_one_for_none(side):
    features = torch.nn.functional.interpolate(torch.randn(2, 6, 4, 4), (side, side))
    tokens = (
        features if side == 4 else torch.nn.functional.interpolate(features, (4, 4), mode="bilinear", antialias=True)
    )
    tokens = torch.nn.functional.layer_norm(tokens.flatten(2).transpose(1, 2), (6,))
    assert hint_loss(tokens, features).item() == pytest.approx(0, abs=1e-6)
    assert hint_loss(torch.zeros_like(tokens), features).item() == pytest.approx(1, abs=1e-3)
    assert hint_loss(tokens.flip(1), features).item() > 0.1
