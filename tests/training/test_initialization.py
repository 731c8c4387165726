"""The principal component start of g_a and g_s."""

import pytest
import torch

from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.tic.configuration_tic import TicConfig
from comneck_hf.models.tic.modeling_tic import TicModel
from comneck_hf.training.initialization import init_transforms_from_images


WIDTHS = ("hidden_channels", "latent_channels", "group_channels", "context_channels", "aggregation_channels")


@pytest.fixture
def tic_config(tiny_config):
    widths = {name: getattr(tiny_config, name) for name in WIDTHS}
    return TicConfig(**widths, depths=[1, 2, 1, 1], num_heads=[2, 2, 2, 4])


@pytest.mark.parametrize("kind", [ElicModel, TicModel])
def test_the_untrained_codec_already_reconstructs_pictures(tiny_config, tic_config, pictures, kind):
    torch.manual_seed(0)
    codec = kind(tiny_config if kind is ElicModel else tic_config).eval()
    smooth = torch.nn.functional.interpolate(pictures[..., ::16, ::16], size=(128, 128), mode="bicubic").clamp(0, 1)
    before = (codec.decode(codec.g_a(smooth)) - smooth).square().mean()
    init_transforms_from_images(codec, smooth, lmbda=0.02)
    after = (codec.decode(codec.g_a(smooth)) - smooth).square().mean()
    assert after < 1e-2 < before


def test_tic_starts_with_latents_as_large_as_those_of_elic(tiny_config, tic_config, pictures):
    scales = []
    for codec in (ElicModel(tiny_config), TicModel(tic_config)):
        init_transforms_from_images(codec, pictures, lmbda=0.02)
        scales.append(codec.g_a(pictures).std())
    assert abs(scales[1] / scales[0] - 1) < 0.05, "the blocks' doubling is undone"


def test_a_larger_lambda_means_finer_quantization(tiny_config, pictures):
    scales = []
    for lmbda in (0.004, 0.064):
        codec = ElicModel(tiny_config)
        init_transforms_from_images(codec, pictures, lmbda=lmbda)
        scales.append(codec.g_a(pictures).std())
    assert 3 < scales[1] / scales[0] < 5, "four times finer steps for sixteen times the weight"
