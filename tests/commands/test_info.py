"""`comneck info` and `comneck env`."""

import json

import pytest
import torch
from command_inputs import only_error_line, photograph, prepare
from PIL import Image

from comneck_hf import __version__


def test_info_accounts_for_every_bit(comneck, bitstream):
    facts = json.loads(comneck("info", bitstream, "--json").stdout)
    size = bitstream.stat().st_size
    names = ["header", "z", *(f"y group {number}" for number in range(1, 6)), "coder"]
    assert [segment["name"] for segment in facts["segments"]] == names
    assert sum(segment["bits"] for segment in facts["segments"]) == pytest.approx(8 * size)
    assert [segment["symbols"] for segment in facts["segments"]] == [0, 8, 32, 32, 64, 64, 64, 0]
    assert facts["segments"][0]["bits"] == 8 * (size - facts["payload_bytes"])
    assert 24 <= facts["segments"][-1]["bits"] <= 48
    assert facts["bytes"] == size
    assert facts["bpp"] == pytest.approx(8 * size / 64**2)
    assert facts["model_matches"] and facts["fingerprint"] == facts["model_fingerprint"]


def test_info_estimates_what_the_likelihoods_say(comneck, model, bitstream, tmp_path):
    facts = json.loads(comneck("info", bitstream, "--json").stdout)
    likelihoods = model.codec.encode(prepare(Image.open(tmp_path / "photo.png"))).likelihoods
    bits = sum(-part.double().log2().sum().item() for part in likelihoods.values())
    assert facts["estimated_bytes"] == pytest.approx(bits / 8, rel=1e-5)


def test_info_tells_original_and_coded_size(comneck, tmp_path):
    comneck("encode", photograph(tmp_path / "photo.png", size=(90, 70)), "--no-crop")
    facts = json.loads(comneck("info", "photo.cnk", "--json").stdout)
    assert (facts["width"], facts["height"], facts["coded_width"], facts["coded_height"]) == (90, 70, 128, 128)
    assert "90x70 pixels" in comneck("info", "photo.cnk").stdout


def test_info_without_the_right_model_reads_the_container(comneck, models, bitstream):
    alone = json.loads(comneck("info", bitstream, "--json", "--no-model").stdout)
    other = json.loads(comneck("info", bitstream, "--json", model=models / "other").stdout)
    assert alone["height"] == other["height"] == 64
    assert "segments" not in alone and "segments" not in other
    assert other["model_matches"] is False
    assert "cannot decode it" in comneck("info", bitstream, model=models / "other").stdout


def test_info_needs_no_model_to_find_damage(comneck, bitstream, tmp_path):
    (tmp_path / "bad.cnk").write_bytes(bitstream.read_bytes()[:-1])
    assert "checksum" in only_error_line(comneck("info", "bad.cnk", model="nobody", code=1))


def test_env_names_versions_executor_and_models(comneck):
    facts = json.loads(comneck("env", "--json").stdout)
    assert facts["torch"] == torch.__version__
    assert facts["executor_cpu"] in ("int8", "float32")
    assert facts["torch_threads"] == torch.get_num_threads()
    assert f"comneck_hf      {__version__}" in comneck("env").stdout
