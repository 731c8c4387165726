"""The terms of the losses against their definitions."""

import math

import pytest
import torch

from comneck_hf.training.losses import cross_entropy, distillation, mean_squared_error, rate


def test_the_rate_counts_bits_per_pixel_of_the_input():
    likelihoods = {"y": torch.full((2, 4, 2, 2), 0.25), "z": torch.full((2, 2, 1, 1), 0.5)}
    assert rate(likelihoods, torch.rand(2, 3, 8, 8)).item() == pytest.approx((2 * 16 * 2 + 2 * 2) / (2 * 64))


def test_the_distortion_is_the_mean_over_all_values():
    pictures = torch.rand(2, 3, 8, 8)
    assert mean_squared_error(pictures + 0.1, pictures).item() == pytest.approx(0.01, rel=1e-5)


def test_the_distillation_weights_its_targets():
    student = {"image_embeds": torch.zeros(2, 4), "hidden_states[-2]": torch.zeros(2, 5, 3), "other": torch.zeros(1)}
    teacher = {"image_embeds": torch.full((2, 4), 2.0), "hidden_states[-2]": torch.full((2, 5, 3), 3.0)}
    weights = {"image_embeds": 1.0, "hidden_states[-2]": 0.5}
    assert distillation(student, teacher, weights).item() == pytest.approx(4 + 0.5 * 9)


def test_cross_entropy_uses_cosines_times_the_temperature():
    for length in (1.0, 50.0):
        embeds = length * torch.tensor([[0.0, 1.0, 0.0]])
        loss, accuracy = cross_entropy(embeds, torch.tensor([1]), torch.eye(3), logit_scale=5.0)
        assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-5.0)), rel=1e-4)
        assert accuracy.item() == 1.0


def test_cross_entropy_of_the_released_code_uses_raw_products():
    embeds = torch.tensor([[0.0, 3.0, 0.0]])
    loss, accuracy = cross_entropy(embeds, torch.tensor([0]), torch.eye(3), logit_scale=None)
    assert loss.item() == pytest.approx(math.log(2 + math.exp(3.0)), rel=1e-4)
    assert accuracy.item() == 0.0
