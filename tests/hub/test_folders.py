"""What a repository on the Hub holds, and loading it where the package was never imported."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import comneck_hf
from comneck_hf.hub.cards import ModelFacts, render_card
from comneck_hf.hub.folders import build_hub_folder


SOURCE = comneck_hf.pretrained("comneck-tiny-d1-q2")


def build(source, target):
    build_hub_folder(source, target, render_card(ModelFacts(repo_id="someone/model"), source))
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(SOURCE, tmp_path_factory.mktemp("hub") / "model")


def python(folder, code, tmp_path):
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )


def test_no_place_of_a_training_is_told(folder):
    assert "_name_or_path" not in (folder / "config.json").read_text()


LOAD = """
import sys
from transformers import AutoImageProcessor, AutoModel, AutoProcessor

{before}
folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, {option})
processors = [auto.from_pretrained(folder, {option}) for auto in (AutoImageProcessor, AutoProcessor)]
print(type(model).__module__, *(type(processor).__name__ for processor in processors))
model.save_pretrained("again")
processors[0].save_pretrained("again")
"""
HIDE = """
class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "comneck_hf":
            raise ModuleNotFoundError(f"No module named {name!r}")


sys.meta_path.insert(0, Hider())
"""
NAMES = ["comneck_hf.models.comneck.modeling_comneck", "ComNeckImageProcessor", "ComNeckImageProcessor"]


def test_a_process_that_never_imported_the_package_loads_with_trust(folder, tmp_path):
    code = LOAD.format(before="", option="trust_remote_code=True")
    result = python(folder, code, tmp_path)
    assert result.stdout.split() == NAMES, result.stderr
    result = python(tmp_path / "again", code, tmp_path)  # saved again, it is still whole
    assert result.stdout.split() == NAMES, result.stderr


def test_after_the_import_no_trust_is_needed(folder, tmp_path):
    result = python(folder, LOAD.format(before="import comneck_hf", option=""), tmp_path)
    assert result.stdout.split() == NAMES, result.stderr


def test_without_the_package_the_error_names_it(folder, tmp_path):
    result = python(folder, LOAD.format(before=HIDE, option="trust_remote_code=True"), tmp_path)
    assert result.returncode == 1
    assert "pip install comneck_hf" in result.stderr


def test_without_trust_and_import_transformers_asks(folder, tmp_path):
    result = python(folder, LOAD.format(before="", option=""), tmp_path)
    assert result.returncode == 1
    assert "trust_remote_code=True" in result.stderr


def test_a_codec_has_its_own_entry(tmp_path):
    codec = comneck_hf.ElicModel.from_pretrained(SOURCE)
    codec.save_pretrained(tmp_path / "codec")
    target = tmp_path / "hub"
    build_hub_folder(tmp_path / "codec", target, render_card(ModelFacts(repo_id="someone/codec"), tmp_path / "codec"))
    config = json.loads((target / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "comneck_hub.ElicConfig", "AutoModel": "comneck_hub.ElicModel"}
    assert "ElicModel.from_pretrained" in (target / "README.md").read_text()


def test_weights_in_several_files_become_one(tmp_path, folder):
    source = tmp_path / "source"
    (tmp_path / "shared").mkdir()
    build(SOURCE, source)
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    tower = {key: value for key, value in tensors.items() if key.startswith("vision_model.encoder")}
    rest = {key: value for key, value in tensors.items() if key not in tower}
    save_file({**tower, "text_model.bias": torch.ones(1)}, tmp_path / "shared" / "tower.safetensors")
    save_file(rest, source / "rest.safetensors", metadata={"format": "pt"})
    index = {**dict.fromkeys(tower, "../shared/tower.safetensors"), **dict.fromkeys(rest, "rest.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    whole = load_file(build(source, tmp_path / "target") / "model.safetensors")
    assert whole.keys() == tensors.keys()
    assert all(torch.equal(whole[key], value) for key, value in tensors.items())


def test_weights_that_are_not_the_models_are_refused(tmp_path):
    source = build(SOURCE, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    del tensors["visual_projection.weight"]
    wrong = {"vision_model.post_layernorm.bias": torch.ones(1), "extra": torch.ones(1)}
    save_file({**tensors, **wrong}, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing \(visual_projection\.weight\), 1 too many \(extra\), 1 of"):
        build(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_folder_without_model_is_refused(tmp_path):
    card = render_card(ModelFacts(repo_id="someone/model"), SOURCE)
    with pytest.raises(OSError, match=r"no config\.json"):
        build_hub_folder(tmp_path, tmp_path / "target", card)
    with pytest.raises(ValueError, match="exists already"):
        build_hub_folder(SOURCE, tmp_path, card)
