"""Rate-distortion and surrogate losses, and the stages that weigh them."""

import math

import pytest
import torch

from comneck_hf.models.elic.modeling_elic import ElicOutput
from comneck_hf.training.losses import rate_distortion_loss, surrogate_loss
from comneck_hf.training.stages import COMNECK_D1, Stage, stage_at


def test_the_rate_distortion_loss_counts_bits_per_pixel_of_the_input():
    pixel_values = torch.rand(2, 3, 8, 8)
    likelihoods = {"y": torch.full((2, 4, 2, 2), 0.25), "z": torch.full((2, 2, 1, 1), 0.5)}
    outputs = ElicOutput(reconstruction=pixel_values + 0.1, likelihoods=likelihoods)
    loss, metrics = rate_distortion_loss(outputs, pixel_values, 0.01)
    bpp = (2 * 16 * 2 + 2 * 2) / (2 * 64)
    assert metrics["bpp"] == pytest.approx(bpp)
    assert metrics["psnr"] == pytest.approx(20, abs=1e-3)
    assert loss.item() == pytest.approx(0.01 * 255**2 * 0.01 + bpp, rel=1e-4)


def test_the_surrogate_loss_weighs_its_two_terms():
    embeds, teacher = torch.randn(4, 6), torch.randn(4, 6)
    weights = torch.nn.functional.normalize(torch.randn(3, 6), dim=-1)
    labels = torch.tensor([0, 1, 2, 0])

    def value(cross_entropy: float, distillation: float) -> float:
        stage = Stage("any", cross_entropy, distillation, 1.0, 1.0)
        return surrogate_loss(embeds, teacher, labels, weights, logit_scale=10.0, stage=stage)[0].item()

    assert value(2.0, 3.0) == pytest.approx(2 * value(1.0, 0.0) + 3 * value(0.0, 1.0), rel=1e-5)
    assert value(0.0, 1.0) == pytest.approx((embeds - teacher).square().mean().item(), rel=1e-5)


def test_cross_entropy_uses_cosines():
    weights = torch.eye(3)
    stage = Stage("classify", 1.0, 0.0, 1.0, 1.0)
    labels = torch.tensor([1])
    for length in (1.0, 50.0):
        embeds = length * torch.tensor([[0.0, 1.0, 0.0]])
        loss, metrics = surrogate_loss(embeds, embeds, labels, weights, logit_scale=5.0, stage=stage)
        assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-5.0)), rel=1e-4)
        assert metrics["accuracy"] == 1.0


def test_d1_stages_follow_the_paper():
    assert [(stage.cross_entropy, stage.distillation) for stage in COMNECK_D1] == [(1, 0), (1, 100), (0, 100)]
    assert [stage_at(COMNECK_D1, position).name for position in (0.0, 0.3, 0.4, 0.6, 0.7, 0.999)] == [
        "classify",
        "classify",
        "align",
        "align",
        "distill",
        "distill",
    ]
