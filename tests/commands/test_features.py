"""`comneck features`."""

import json

import torch
from command_inputs import only_error_line, photograph
from safetensors import safe_open
from safetensors.torch import load_file


def test_features_are_bit_equal_to_the_python_api(comneck, model, tmp_path):
    files = [photograph(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    comneck("encode", *files)
    names = ["2.cnk", "0.cnk", "1.cnk"]
    report = json.loads(comneck("features", *names, "-o", "deep/out.safetensors", "--json", "--quiet").stdout)
    tensors = load_file(tmp_path / "deep/out.safetensors")
    latents = model.decompress([(tmp_path / name).read_bytes() for name in names])
    with torch.no_grad():
        outputs = model(latents=latents)
    assert sorted(tensors) == ["image_embeds", "last_hidden_state", "latents", "pooler_output"]
    assert all(torch.equal(tensors[name], outputs[name]) for name in tensors)
    assert report["files"] == names
    assert report["shapes"] == {name: list(outputs[name].shape) for name in report["shapes"]}
    with safe_open(tmp_path / "deep/out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["files"]) == names


def test_features_of_several_batches_are_joined(comneck, tmp_path):
    files = [photograph(tmp_path / f"{seed}.png", seed=seed) for seed in range(3)]
    comneck("encode", *files)
    comneck("features", "0.cnk", "1.cnk", "2.cnk", "--batch-size", 2)
    assert load_file(tmp_path / "features.safetensors")["latents"].shape == (3, 16, 4, 4)


def test_features_of_whole_pictures_need_interpolation(comneck, tmp_path):
    comneck("encode", photograph(tmp_path / "photo.png"), "--no-crop")
    assert "--interpolate" in only_error_line(comneck("features", "photo.cnk", code=1))
    comneck("features", "photo.cnk", "--interpolate")
    assert load_file(tmp_path / "features.safetensors")["last_hidden_state"].shape == (1, 65, 32)


def test_features_in_bfloat16_come_from_the_same_latents(comneck, bitstream, tmp_path):
    comneck("features", bitstream, "-o", "full.safetensors")
    comneck("features", bitstream, "-o", "half.safetensors", dtype="bfloat16")
    full, half = (load_file(tmp_path / f"{name}.safetensors") for name in ("full", "half"))
    assert half["image_embeds"].dtype == torch.bfloat16
    assert torch.equal(full["latents"], half["latents"])


def test_one_bad_file_leaves_no_features(comneck, bitstream, tmp_path):
    (tmp_path / "bad.cnk").write_bytes(bitstream.read_bytes()[:50])
    message = only_error_line(comneck("features", bitstream, "bad.cnk", "--quiet", code=1))
    assert message.startswith("Error: bad.cnk: ")
    assert not (tmp_path / "features.safetensors").exists()
