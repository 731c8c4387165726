"""Pushing a trained model to the Hub."""

import subprocess
import sys
from pathlib import Path

from hub_server import HubServer

from .launch import SCRIPTS
from .test_loop import codec_words


NAME = "someone/tiny-codec"
COMPARE = """
import sys
import torch
from comneck_hf import ElicModel

pushed, local = (ElicModel.from_pretrained(name).state_dict() for name in sys.argv[1:])
assert pushed.keys() == local.keys()
assert all(torch.equal(pushed[name], local[name]) for name in local)
"""


def run_python(hub: HubServer, folder: Path, *words: object) -> None:
    """Runs Python in an empty folder, with caches of its own."""
    folder.mkdir()
    command = [sys.executable, *(str(word) for word in words)]
    subprocess.run(command, cwd=folder, env=hub.environment(folder / "home"), check=True)


def test_a_training_pushes_its_model_and_the_model_loads_from_the_hub(data_folder, tmp_path):
    model = tmp_path / "run" / "model"
    words = [*codec_words(data_folder), "--steps", 4, "--output_dir", model.parent, "--push_to_hub", "true"]
    with HubServer() as hub:
        run_python(hub, tmp_path / "training", SCRIPTS / "train_codec.py", *words, "--hub_model_id", NAME)
        files = hub.repositories[NAME].files()
        assert {"config.json", "model.safetensors"} <= files.keys()
        assert files == {path.name: path.read_bytes() for path in model.iterdir()}
        assert list(hub.repositories[NAME].titles.values()) == ["initial commit", "4 steps"]
        run_python(hub, tmp_path / "loading", "-c", COMPARE, NAME, model)
