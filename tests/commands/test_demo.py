import json
from pathlib import Path

import numpy as np
import pytest
from command_inputs import only_error_line, photograph
from PIL import Image
from skimage import data
from transformers import logging
from typer.testing import CliRunner

from comneck_hf.cli import app
from comneck_hf.commands.demo import demo_photograph


FACES = {"face", "face close-up"}


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """`demo`, `encode` and `classify` as users first run them: packaged weights, packaged photograph, no options."""
    folder, verbosity = tmp_path_factory.mktemp("demo"), logging.get_verbosity()
    commands = {
        "demo": ["demo", "--json", "-o", str(folder / "figure.png")],
        "encode": ["encode", str(demo_photograph()), "-o", str(folder), "--json"],
        "classify": ["classify", str(folder / "astronaut.cnk"), "--json"],
    }
    results = {}
    for name, arguments in commands.items():
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        results[name] = json.loads(result.stdout)
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    return results


def test_the_photograph_is_the_crop_that_its_readme_states():
    picture = np.array(Image.open(demo_photograph()))
    assert np.array_equal(picture, data.astronaut()[30:190, 165:325])
    readme = demo_photograph().with_name("README.md").read_text()
    assert "columns 165\nto 324 and rows 30 to 189" in readme and "public domain" in readme


def test_the_packaged_demo_sees_a_face_three_ways(packaged):
    labels = packaged["demo"]["labels"]
    assert list(labels) == ["original", "decoded", "latents"]
    assert all(rows[0]["label"] in FACES for rows in labels.values())


def test_the_packaged_codec_beats_jpeg_on_the_photograph(packaged):
    demo = packaged["demo"]
    assert demo["jpeg_at_equal_psnr"]["ratio"] > 1.5
    assert demo["jpeg_at_equal_bytes"]["psnr"] < demo["psnr"]
    assert Path(demo["figure"]).stat().st_size > 10_000


def test_encode_and_classify_agree_with_the_packaged_demo(packaged):
    assert packaged["encode"][0]["bytes"] == packaged["demo"]["bytes"]
    assert packaged["classify"][0]["labels"][:3] == packaged["demo"]["labels"]["latents"]


def test_demo_shows_and_draws_one_picture(comneck, tmp_path):
    path = photograph(tmp_path / "photo.png")
    result = comneck("demo", path)
    for word in ("photo.png, 64x64", "JPEG, equal PSNR", "JPEG, equal bytes", "bytes to latents", "from the latents"):
        assert word in result.stdout
    assert Image.open(tmp_path / "comneck_demo.png").size[0] > 800


def test_demo_numbers_agree_with_encode_and_classify(comneck, tmp_path):
    path = photograph(tmp_path / "photo.png")
    facts = json.loads(comneck("demo", path, "--json", "-o", "figure.png").stdout)
    coded = json.loads(comneck("encode", path, "--json").stdout)[0]
    (labeled,) = json.loads(comneck("classify", "photo.cnk", "--top", 3, "--json").stdout)
    assert (facts["bytes"], facts["bpp"]) == (coded["bytes"], coded["bpp"])
    assert facts["labels"]["latents"] == labeled["labels"]
    assert facts["jpeg_at_equal_psnr"]["psnr"] >= facts["psnr"]
    assert len(facts["seconds"]) == 5 and min(facts["seconds"].values()) >= 0
    assert "--force" in only_error_line(comneck("demo", path, "-o", "figure.png", code=1))
