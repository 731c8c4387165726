"""Tiny real models shared by the tests."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value

from comneck_hf.evaluation.pictures import tensor_picture
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
def tiny_codec(tiny_config: ElicConfig) -> ElicModel:
    """A codec whose transforms really code pictures and whose entropy networks are random; do not change it."""
    torch.manual_seed(0)
    pictures = synthetic_pictures(128, 6)  # not the fixture, which folders replace
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


@pytest.fixture(scope="session")
def object_pack(tmp_path_factory) -> Path:
    """Three pictures of 256x160 pixels that were 512x320: a box at the left of the middle, one outside it, none."""
    folder = tmp_path_factory.mktemp("objects")
    pictures = (synthetic_pictures(256, 3)[:, :, :160] * 255).round().to(torch.uint8)
    boxes = [[[96.0, 0.0, 160.0, 320.0]], [[0.0, 0.0, 90.0, 320.0]], []]
    rows = {
        "image": [tensor_picture(picture) for picture in pictures],
        "objects": [[{"bbox": box} for box in chosen] for chosen in boxes],
        "orig_width": [512] * 3,
        "orig_height": [320] * 3,
    }
    features = {"image": Image(), "objects": List({"bbox": List(Value("float32"))})}
    features |= {"orig_width": Value("int32"), "orig_height": Value("int32")}
    Dataset.from_dict(rows, features=Features(features)).to_parquet(folder / "train.parquet")
    return folder
