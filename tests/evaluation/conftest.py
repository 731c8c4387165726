"""Data that is not in this repository."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def official_format() -> Path:
    """The benchmarks' own files and what their own evaluators gave: COMNECK_DATA, else ../shared/data."""
    beside = Path(__file__).parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("COMNECK_DATA", beside)) / "coco_eval_256" / "official_format"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing; COMNECK_DATA names the folder of coco_eval_256")
    return folder
