"""The principal component start of g_a and g_s."""

import torch

from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.initialization import init_transforms_from_images


def test_the_untrained_codec_already_reconstructs_pictures(tiny_config, pictures):
    torch.manual_seed(0)
    codec = ElicModel(tiny_config).eval()
    smooth = torch.nn.functional.interpolate(pictures[..., ::16, ::16], size=(128, 128), mode="bicubic").clamp(0, 1)
    before = (codec.decode(codec.g_a(smooth)) - smooth).square().mean()
    init_transforms_from_images(codec, smooth, lmbda=0.02)
    after = (codec.decode(codec.g_a(smooth)) - smooth).square().mean()
    assert after < 1e-2 < before


def test_a_larger_lambda_means_finer_quantization(tiny_config, pictures):
    scales = []
    for lmbda in (0.004, 0.064):
        codec = ElicModel(tiny_config)
        init_transforms_from_images(codec, pictures, lmbda=lmbda)
        scales.append(codec.g_a(pictures).std())
    assert 3 < scales[1] / scales[0] < 5, "four times finer steps for sixteen times the weight"
