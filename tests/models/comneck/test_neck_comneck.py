"""The transform-neck against the equations of the paper's released code, computed independently."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from comneck_hf import ComNeckVisionConfig, TransformNeck


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


def reference_neck(neck, latents, heads, activation=quick_gelu):
    """comneck.md 1.1 with torch's own attention, sequence first; weights taken from `neck`."""
    weights = neck.state_dict()
    width = weights["class_embedding"].shape[0]
    attention = nn.MultiheadAttention(width, heads)
    query_key_value = [f"layer.self_attn.{part}_proj" for part in "qkv"]
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat([weights[f"{name}.weight"] for name in query_key_value]),
            "in_proj_bias": torch.cat([weights[f"{name}.bias"] for name in query_key_value]),
            "out_proj.weight": weights["layer.self_attn.out_proj.weight"],
            "out_proj.bias": weights["layer.self_attn.out_proj.bias"],
        }
    )

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)

    batch, _, height, grid_width = latents.shape
    rows = [latents[:, :, i, j] for i in range(height) for j in range(grid_width)]
    tokens = torch.stack([linear(row, "projection") for row in rows], dim=1)
    class_token = weights["class_embedding"].repeat(batch, 1, 1)
    x = norm(torch.cat([class_token, tokens], dim=1) + weights["position_embedding"], "pre_layer_norm")
    y = norm(x, "layer.layer_norm1").transpose(0, 1)
    x = x + attention(y, y, y, need_weights=False)[0].transpose(0, 1)
    return x + linear(activation(linear(norm(x, "layer.layer_norm2"), "layer.mlp.fc1")), "layer.mlp.fc2")


def test_the_neck_of_the_paper_has_13_191_168_parameters():
    with torch.device("meta"):
        neck = TransformNeck(ComNeckVisionConfig())
    assert sum(parameter.numel() for parameter in neck.parameters()) == 13_191_168


def test_the_neck_for_336_pixel_clip_has_more_positions():
    with torch.device("meta"):
        neck = TransformNeck(ComNeckVisionConfig(image_size=336))
    assert sum(parameter.numel() for parameter in neck.parameters()) == 13_518_848


@torch.no_grad()
def test_the_neck_computes_the_published_equations(vision_model, latents):
    neck = vision_model().neck
    assert torch.allclose(neck(latents), reference_neck(neck, latents, heads=4), atol=1e-5, rtol=0)


@torch.no_grad()
def test_another_activation_would_be_noticed(vision_model, latents):
    neck = vision_model().neck
    difference = neck(latents) - reference_neck(neck, latents, heads=4, activation=F.gelu)
    assert difference.abs().max() > 1e-3


@torch.no_grad()
def test_transposed_latents_would_be_noticed(vision_model, latents):
    neck = vision_model().neck
    difference = neck(latents) - reference_neck(neck, latents.transpose(2, 3), heads=4)
    assert difference.abs().max() > 1e-1


@torch.no_grad()
def test_heads_and_mlp_of_the_neck_can_differ_from_the_tower(vision_model, latents):
    neck = vision_model(neck_num_attention_heads=8, neck_intermediate_size=20).neck
    assert neck.layer.mlp.fc1.out_features == 20
    assert torch.allclose(neck(latents), reference_neck(neck, latents, heads=8), atol=1e-5, rtol=0)
    assert (neck(latents) - reference_neck(neck, latents, heads=4)).abs().max() > 1e-2


def test_fresh_weights_have_the_spread_of_the_released_code():
    torch.manual_seed(0)
    config = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 512, "latent_channels": 64}
    neck = TransformNeck(ComNeckVisionConfig(**config))
    attention = neck.layer.self_attn
    assert neck.class_embedding.std().item() == pytest.approx(256**-0.5, rel=0.2)
    assert neck.position_embedding.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert neck.projection.weight.std().item() == pytest.approx((1 / (3 * 64)) ** 0.5, rel=0.05)
    assert attention.q_proj.weight.std().item() == pytest.approx((0.5 / 256) ** 0.5, rel=0.05)
    assert attention.out_proj.weight.std().item() == pytest.approx((1 / (3 * 256)) ** 0.5, rel=0.05)
    assert not attention.q_proj.bias.any() and not attention.out_proj.bias.any()


@torch.no_grad()
def test_another_grid_is_refused_with_the_way_out(vision_model):
    neck = vision_model().neck
    with pytest.raises(ValueError, match=r"Latents are 6x4, but this neck was built for 4x4 .*64x64 pixels.*interpol"):
        neck(torch.zeros(1, 16, 6, 4))


@torch.no_grad()
def test_another_grid_is_accepted_with_interpolated_positions(vision_model, latents):
    neck = vision_model().neck
    assert neck(torch.zeros(2, 16, 6, 5), interpolate_pos_encoding=True).shape == (2, 31, 32)
    assert torch.equal(neck(latents, interpolate_pos_encoding=True), neck(latents))


@torch.no_grad()
def test_interpolated_positions_keep_the_class_token_and_the_directions(vision_model):
    neck = vision_model().neck
    rows = torch.arange(4.0).repeat_interleave(4)
    neck.position_embedding[1:, 0] = rows
    positions = neck._positions(8, 4, True)
    assert torch.equal(positions[0], neck.position_embedding[0])
    grid = positions[1:, 0].reshape(8, 4)
    assert torch.allclose(grid, grid[:, :1].expand(8, 4), atol=1e-5) and (grid[1:, 0] > grid[:-1, 0]).all()


@torch.no_grad()
def test_a_rectangular_grid_has_its_own_positions(vision_model):
    neck = vision_model(latent_size=[2, 3]).neck
    assert neck(torch.zeros(1, 16, 2, 3)).shape == (1, 7, 32)
    with pytest.raises(ValueError, match="Latents are 3x2"):
        neck(torch.zeros(1, 16, 3, 2))


@torch.no_grad()
def test_latents_with_other_channels_are_refused(vision_model):
    with pytest.raises(ValueError, match=r"shape \(batch, 16, height, width\), got \(1, 8, 4, 4\)"):
        vision_model().neck(torch.zeros(1, 8, 4, 4))
