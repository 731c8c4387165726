"""Data that is not in this repository, and a codec that was trained for a moment."""

import os
from pathlib import Path

import pytest
import torch

from comneck_hf.evaluation.reference_codec import train_reference_codec
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
