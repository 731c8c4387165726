"""Tiny real models shared by the tests."""

import pytest
import torch

from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.gain_vectors_elic import add_gain_vectors
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.initialization import init_transforms_from_images


torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_config() -> ElicConfig:
    """An ELIC configuration with all parts and few channels."""
    return ElicConfig(
        hidden_channels=16,
        latent_channels=20,
        group_channels=[2, 2, 4, 4, 8],
        context_channels=[14, 8],
        aggregation_channels=[40, 32],
    )


@pytest.fixture(scope="session")
def pictures() -> torch.Tensor:
    """Six drawn pictures, `(6, 3, 128, 128)` in [0, 1]."""
    return synthetic_pictures(128, 6)


@pytest.fixture(scope="session")
def tiny_codec(tiny_config: ElicConfig, pictures: torch.Tensor) -> ElicModel:
    """A codec whose transforms really code pictures and whose entropy networks are random; do not change it."""
    torch.manual_seed(0)
    codec = ElicModel(tiny_config)
    init_transforms_from_images(codec, pictures, lmbda=0.02)
    codec.calibrate(pictures)
    return codec.eval()


@pytest.fixture(scope="session")
def vector_codec(tiny_codec: ElicModel) -> ElicModel:
    """The tiny codec with channel vectors as if they were trained, for four gains; do not change it."""
    codec = add_gain_vectors(tiny_codec, levels=4, level_range=(-1.5, 1.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for transform in (codec.g_a, codec.g_s):
            transform.log_vectors.normal_(std=0.15)
    return codec
