"""`comneck convert` and `comneck export` as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from hub.authors_layout import TINY, checkpoint, clip_state, codec_state, neck_state
from transformers import AutoModel
from typer.testing import CliRunner

import comneck_hf
from comneck_hf.cli import app


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_checkpoint_is_converted_and_exported_again(tmp_path):
    codec, neck = codec_state(**TINY), neck_state(24, 64, 128, 65)
    source, clip, model = tmp_path / "d3_1.pth.tar", tmp_path / "clip.pt", tmp_path / "model"
    torch.save(checkpoint(codec, neck), source)
    torch.save(clip_state(64, 128, 3, 65, 14, 48), clip)

    result = run("convert", source, "-o", model, "--clip", clip)
    assert result.exit_code == 0, result.output
    assert "image_embeds against plain PyTorch" in result.output
    config = AutoModel.from_pretrained(model).config
    assert (config.scenario, config.quality, config.vision_config.post_layernorm_repeats) == ("d3", 1, 1)

    again = run("convert", source, "-o", model, "--clip", clip)
    assert again.exit_code == 1
    assert "exists already" in again.output

    assert run("export", "-m", model, "--layout", "authors", "-o", tmp_path / "back.pth").exit_code == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert torch.equal(back["adapter"]["class_embedding"], neck["class_embedding"])
    assert torch.equal(back["state_dict"]["h_s.4.weight"], codec["h_s.4.weight"])

    assert (
        run("export", "-m", model, "--layout", "authors", "--codec-only", "-o", tmp_path / "bare.pth").exit_code == 0
    )
    report = run("convert", tmp_path / "bare.pth", "-o", tmp_path / "codec", "--json", "--quiet")
    assert json.loads(report.stdout)["coding_tables"] == "valid"


def test_a_clip_given_as_checkpoint_is_one_line(tmp_path):
    torch.save(clip_state(64, 128, 3, 65, 14, 48), tmp_path / "clip.pt")
    result = run("convert", tmp_path / "clip.pt", "-o", tmp_path / "model", "--quiet")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "it looks like a CLIP" in result.stderr


def test_push_writes_a_repository_without_the_hub(tmp_path):
    source = comneck_hf.pretrained("comneck-tiny-d1-q2")
    result = run("push", source, "--repo-id", "me/model", "--dry-run", tmp_path / "repository")
    assert result.exit_code == 0, result.output
    assert 'from_pretrained("me/model")' in (tmp_path / "repository" / "README.md").read_text()
    again = run("push", source, "--repo-id", "me/model", "--dry-run", tmp_path / "repository")
    assert "exists already" in again.stderr
    missing = run("push", tmp_path / "typo", "--repo-id", "me/model", "--dry-run", tmp_path / "other")
    assert "typo is no model: it has no config.json" in missing.stderr
    assert missing.exit_code == 1


def test_pushing_a_conversion_needs_a_name(tmp_path):
    assert run("convert", "d1_1.pth.tar", "-o", tmp_path / "model", "--push-to-hub").exit_code == 2
    assert run("convert", "d1_1.pth.tar", "-o", tmp_path / "model", "--repo-id", "me/model").exit_code == 2


def test_the_installed_script_pushes_as_well(tmp_path):
    script = Path(sys.executable).with_name("comneck")  # which registers nothing before a command asks for it
    words = ["push", comneck_hf.pretrained("comneck-tiny-d1-q2"), "--repo-id", "me/model", "--dry-run", tmp_path / "a"]
    result = subprocess.run([script, *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
