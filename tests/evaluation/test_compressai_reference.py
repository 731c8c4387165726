"""The weights mean the same in CompressAI's elic2022-chandelier, in every part and order."""

import pytest
import torch

from comneck_hf.evaluation.compressai_reference import CompressAICodec, to_compressai
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.layouts_elic import compressai_key
from comneck_hf.models.elic.modeling_elic import ElicModel


def random_codec(**widths) -> ElicModel:
    torch.manual_seed(0)
    codec = ElicModel(ElicConfig(**widths)).eval()
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            if name.startswith("g_a.13"):
                parameter.mul_(30)  # latents of several quantization steps
            if name.endswith("quantiles"):
                parameter[:, 0, 1] += torch.linspace(-0.4, 0.4, len(parameter))
    return codec


TINY = {
    "hidden_channels": 16,
    "latent_channels": 24,
    "group_channels": (4, 4, 4, 4, 8),
    "context_channels": (20, 12),
    "aggregation_channels": (28, 18),
}
# Widths of the context and aggregation networks that CompressAI's constructor builds by itself
CONSTRUCTED = {**TINY, "context_channels": (224, 128), "aggregation_channels": (48, 512)}


@pytest.fixture(scope="module")
def pixel_values():
    return torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=[TINY, CONSTRUCTED], ids=["replaced widths", "constructed widths"])
def codec(request):
    return random_codec(**request.param)


@torch.no_grad()
def forward(model, pixel_values):
    outputs = model.latent_codec(model.g_a(pixel_values))
    return outputs["y_hat"], outputs["likelihoods"], model.g_s(outputs["y_hat"])


@torch.no_grad()
def test_forward_gives_the_same_latents_pictures_and_likelihoods(codec, pixel_values):
    ours = codec(pixel_values, quantization="ste")
    y_hat, likelihoods, x_hat = forward(to_compressai(codec), pixel_values)
    assert ours.latents.std() > 1
    assert torch.equal(ours.latents, y_hat)
    assert torch.equal(ours.reconstruction, x_hat)
    torch.testing.assert_close(ours.likelihoods["y"], likelihoods["y"], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(ours.likelihoods["z"], likelihoods["z"], atol=1e-5, rtol=1e-3)


def test_swapped_means_and_scales_are_noticed(codec, pixel_values):
    ours = codec(pixel_values, quantization="ste")
    other = to_compressai(codec)
    for layers in other.latent_codec["y"].latent_codec.values():
        layers["y"].chunks = ("scales", "means")
    assert not torch.allclose(ours.latents, forward(other, pixel_values)[0], atol=1e-2)


@torch.no_grad()
def test_every_parameter_of_compressai_comes_from_the_codec(codec):
    theirs = dict(to_compressai(codec).named_parameters())
    ours = {compressai_key(name): value for name, value in codec.named_parameters()}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@torch.no_grad()
def test_its_bitstreams_give_its_latents(codec, pixel_values):
    other = CompressAICodec(to_compressai(codec))
    bitstreams = other.compress(pixel_values)
    latents = other.encode(pixel_values).latents
    assert torch.equal(other.decompress(bitstreams), latents)
    # Their float networks depend on the shape of the call, so that single symbols may fall to the other side.
    assert ((latents - forward(other.model, pixel_values)[0]).abs() > 1e-3).float().mean() < 0.01


def test_full_width_has_the_published_number_of_parameters():
    with torch.device("meta"):
        codec = ElicModel(ElicConfig())
    assert sum(parameter.numel() for parameter in codec.parameters()) == 33_792_771


def test_other_kernel_sizes_are_refused():
    with pytest.raises(ValueError, match="kernel_size"):
        to_compressai(random_codec(**{**TINY, "kernel_size": 3}))
