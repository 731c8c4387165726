"""The packaged models, drawn pictures, a codec that was trained for a moment, and data from elsewhere."""

import os
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

import comneck_hf
from comneck_hf.evaluation.reference_codec import train_reference_codec
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures


@pytest.fixture(scope="session")
def official_format() -> Path:
    """The benchmarks' own files and what their own evaluators gave: COMNECK_DATA, else ../shared/data."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("COMNECK_DATA", beside)) / "coco_eval_256" / "official_format"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; COMNECK_DATA names the folder of coco_eval_256")
    return folder


@pytest.fixture(scope="session")
def trained_codec(tiny_config: ElicConfig) -> ElicModel:
    """A codec whose entropy networks know the pictures they code; do not change it."""
    images = (synthetic_pictures(192, 8) * 255).round().to(torch.uint8)
    return train_reference_codec(images, config=tiny_config, steps=60)


@pytest.fixture(scope="module")
def model() -> ComNeckModel:
    return ComNeckModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-d1-q2")).eval()


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    return CLIPModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-clip")).eval()


@pytest.fixture(scope="module")
def images(pictures: torch.Tensor) -> torch.Tensor:
    """Six drawn pictures, uint8 `(6, 3, 128, 128)`."""
    return (pictures * 255).round().to(torch.uint8)
