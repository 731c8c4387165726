"""What all commands refuse alike: bitstreams, models, devices and options that do not fit."""

import pytest
from command_inputs import only_error_line

from comneck_hf import ElicModel


@pytest.mark.parametrize("command", ["decode", "features", "classify"])
def test_bitstreams_of_another_model_are_refused(comneck, models, bitstream, command):
    output = [] if command == "classify" else ["-o", "out"]
    result = comneck(command, bitstream, *output, model=models / "other", code=1)
    assert "encoded with another model" in only_error_line(result)


@pytest.mark.parametrize("name", ["nobody", "./nowhere", "/no/such/folder"])
def test_models_that_do_not_exist_are_an_error(comneck, bitstream, name):
    assert f"No model at {name!r}" in only_error_line(comneck("decode", bitstream, "-f", model=name, code=1))


def test_a_folder_without_a_model_is_an_error(comneck, bitstream, tmp_path):
    (tmp_path / "empty").mkdir()
    only_error_line(comneck("decode", bitstream, "-f", model=tmp_path / "empty", code=1))


def test_damaged_weights_are_an_error(comneck, models, bitstream, tmp_path):
    (tmp_path / "cut").mkdir()
    for file in (models / "comneck").iterdir():
        (tmp_path / "cut" / file.name).write_bytes(file.read_bytes()[:5000])
    message = only_error_line(comneck("decode", bitstream, "-o", "picture.png", model=tmp_path / "cut", code=1))
    assert "damaged" in message


def test_models_of_other_kinds_are_named(comneck, models, bitstream, tmp_path):
    assert "no codec" in only_error_line(comneck("decode", bitstream, "-f", model=models / "clip", code=1))
    ElicModel.from_pretrained(models / "comneck").save_pretrained(tmp_path / "codec")
    comneck("decode", bitstream, "-o", "from_codec.png", model=tmp_path / "codec")
    assert "makes no features" in only_error_line(comneck("features", bitstream, model=tmp_path / "codec", code=1))


@pytest.mark.parametrize("device", ["banana", "meta", "cuda:99"])
def test_unusable_devices_are_wrong_usage(comneck, bitstream, device):
    result = comneck("decode", bitstream, "-o", "picture.png", device=device, code=2)
    assert device in result.stderr and "--device" in result.stderr


def test_wrong_options_are_wrong_usage(comneck, bitstream):
    comneck("decode", bitstream, dtype="int4", code=2)
    comneck("classify", bitstream, "--top", 0, code=2)
    comneck("encode", code=2)
    comneck("encode", bitstream, "--unknown", code=2)
