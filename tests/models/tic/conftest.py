"""A tiny TIC shared by the tests."""

import pytest
import torch

from comneck_hf.models.tic.configuration_tic import TicConfig
from comneck_hf.models.tic.modeling_tic import TicModel
from comneck_hf.training.initialization import init_transforms_from_images


@pytest.fixture(scope="session")
def tic_config() -> TicConfig:
    """A TIC configuration with all parts and few channels."""
    return TicConfig(
        hidden_channels=16,
        latent_channels=20,
        group_channels=[2, 2, 4, 4, 8],
        context_channels=[14, 8],
        aggregation_channels=[40, 32],
        depths=[2, 1, 2, 2],
        num_heads=[2, 4, 2, 5],
    )


@pytest.fixture(scope="session")
def tic_codec(tic_config: TicConfig, pictures: torch.Tensor) -> TicModel:
    """A codec that codes pictures and whose attention does something; do not change it."""
    torch.manual_seed(0)
    codec = TicModel(tic_config)
    init_transforms_from_images(codec, pictures, lmbda=0.02)
    with torch.no_grad():
        for name, parameter in codec.named_parameters():
            if name.endswith(("projection.weight", "position_bias", "mlp.2.weight")):
                parameter.normal_(std=0.02)
    codec.calibrate(pictures)
    return codec.eval()
