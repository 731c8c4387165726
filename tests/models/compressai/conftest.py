"""CompressAI's codecs with random weights whose latents are not all zero.

This folder must not become a package: it would be found in place of the `compressai` that is tested.
"""

import pytest
import torch

from comneck_hf.models.compressai.modeling_compressai import CompressaiModel


@pytest.fixture(scope="session")
def random_codec():
    """Builds codecs by CompressAI's names, to be changed at will."""

    def build(architecture, seed=0):
        torch.manual_seed(seed)
        codec = CompressaiModel.from_zoo(architecture, 1, pretrained=False)
        with torch.no_grad():
            for parameter in list(codec.network.g_a[-1].parameters())[-2:]:
                parameter.mul_(100)
        return codec

    return build


@pytest.fixture(scope="session")
def codecs(random_codec):
    """Codecs by CompressAI's names; do not change them."""
    built = {}

    def get(architecture):
        if architecture not in built:
            built[architecture] = random_codec(architecture)
        return built[architecture]

    return get


@pytest.fixture(scope="session")
def codec(codecs):
    return codecs("mbt2018-mean")


@pytest.fixture(scope="session")
def pictures():
    """Three smooth pictures, `(3, 3, 64, 64)` in [0, 1]."""
    small = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear")
