import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from comneck_hf import ComNeckConfig, ComNeckModel, ComNeckVisionConfig, ComNeckVisionModel, ElicConfig


TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 24,
}
LATENT_CHANNELS = 16


@pytest.fixture
def vision_config():
    def make(**options):
        return ComNeckVisionConfig(**{**TOWER, "latent_channels": LATENT_CHANNELS, **options})

    return make


@pytest.fixture
def vision_model(vision_config):
    """Builds towers with weights large enough for a wrong activation or order to show."""

    def make(seed=0, **options):
        torch.manual_seed(seed)
        return widen(ComNeckVisionModel(vision_config(**options)).eval())

    return make


@pytest.fixture
def codec_config():
    return ElicConfig(
        hidden_channels=8,
        latent_channels=LATENT_CHANNELS,
        group_channels=[2, 2, 4, 4, 4],
        context_channels=[8, 8],
        aggregation_channels=[8, 8],
    )


@pytest.fixture
def comneck(codec_config, vision_config):
    """Builds ComNeck models of codec, neck and tower."""

    def make(seed=0, **options):
        torch.manual_seed(seed)
        config = ComNeckConfig(codec_config=codec_config, vision_config=vision_config(**options), quality=2)
        return widen(ComNeckModel(config).eval())

    return make


@pytest.fixture
def clip_vision():
    torch.manual_seed(1)
    return widen(CLIPVisionModel(CLIPVisionConfig(**TOWER)).eval())


@pytest.fixture
def clip():
    torch.manual_seed(2)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config={**text, "vocab_size": 99}, vision_config=TOWER, projection_dim=24)
    return widen(CLIPModel(config).eval())


@pytest.fixture
def latents():
    return torch.randn(2, LATENT_CHANNELS, 4, 4, generator=torch.Generator().manual_seed(3)).mul(3).round()


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(4))


def widen(model):
    """Scales up the projections and jitters norms and biases: CLIP's own initialization is nearly the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("codec."):
                continue
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / parameter.shape[1]) ** 0.5)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model
