"""What importing the package costs, and the names it offers."""

import subprocess
import sys
from pathlib import Path

import pytest

import comneck_hf


HEAVY = ("compressai", "numba", "torch_geometric", "datasets", "matplotlib", "typer")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_nothing_beyond_transformers():
    code = """
import sys, time
from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPImageProcessor, CLIPModel
before = set(sys.modules)
start = time.process_time()
import comneck_hf
seconds = time.process_time() - start
print(AutoConfig.for_model("comneck").vision_config.model_type)
print(seconds)
print(*sorted(name for name in set(sys.modules) - before if not name.startswith("comneck_hf")))
"""
    model_type, seconds, new = run(code).split("\n")[:3]
    assert model_type == "comneck_vision"
    assert all(name.startswith("transformers.") for name in new.split())
    assert float(seconds) < 0.3


def test_the_console_script_answers_without_torch_until_a_model_is_needed():
    code = f"""
import sys
sys.argv[0] = {str(Path(sys.executable).parent / "comneck")!r}
import comneck_hf
print("torch" in sys.modules, "transformers" in sys.modules)
comneck_hf.ComNeckImageProcessor()
import torch
from transformers import AutoModel
with torch.device("meta"):
    print(type(AutoModel.from_config(comneck_hf.ComNeckConfig())).__name__)
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert run(code).split("\n")[:3] == ["False False", "ComNeckModel", "[]"]


@pytest.mark.parametrize("script", ["comneck.py", "somewhere/comneck", "", "-c"])
def test_only_the_console_script_puts_the_registration_off(monkeypatch, script):
    monkeypatch.setattr(sys, "argv", [script])
    assert not comneck_hf._runs_as_console_script()
    monkeypatch.setattr(sys, "argv", [str(Path(sys.executable).parent / "comneck")])
    assert comneck_hf._runs_as_console_script()


@pytest.mark.parametrize("name", comneck_hf.__all__)
def test_every_public_name_exists(name):
    assert getattr(comneck_hf, name) is not None
    assert name in dir(comneck_hf)


def test_every_lazy_name_is_public():
    assert set(comneck_hf._MODULES) | {"__version__", "pretrained"} == set(comneck_hf.__all__)


def test_a_missing_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'ComNeckTypo'"):
        comneck_hf.ComNeckTypo  # noqa: B018


def test_an_unknown_packaged_model_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"No packaged model is called 'comneck-huge'. Available: "):
        comneck_hf.pretrained("comneck-huge")


def test_packaged_models_are_folders_with_a_configuration():
    root = Path(comneck_hf.__file__).parent / "pretrained"
    for folder in root.glob("*/config.json"):
        assert comneck_hf.pretrained(folder.parent.name) == str(folder.parent)
