"""The training loop, its command lines, and the scripts that use it, on a data set of a few drawn pictures."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PilImage
from transformers import CLIPModel

import comneck_hf
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.arguments import RunArguments, parse_arguments
from comneck_hf.training.loop import train_steps


SCRIPTS = Path(__file__).parents[2] / "scripts"
WIDTHS = "hidden_channels: 8\nlatent_channels: 12\ngroup_channels: [1, 1, 2, 3, 5]\n"
WIDTHS += "context_channels: [6, 4]\naggregation_channels: [12, 10]\n"


def load_script(name: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 12 labelled pictures of 144x144."""
    folder = tmp_path_factory.mktemp("pack")
    pictures = (synthetic_pictures(144, 12) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    rows = {
        "image": [PilImage.fromarray(picture) for picture in pictures],
        "label": [index % 3 for index in range(12)],
        "class_name": [("wave", "edge", "noise")[index % 3] for index in range(12)],
    }
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"]), "class_name": Value("string")})
    dataset = Dataset.from_dict(rows, features=features)
    (folder / "data").mkdir()
    for split in ("train", "validation"):
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_an_interrupted_codec_training_ends_in_the_same_weights(data_folder, tmp_path):
    script = load_script("train_codec")
    config = tmp_path / "codec.yaml"
    config.write_text(WIDTHS + "steps: 6\nbatch_size: 2\nfinal_batch_size: 1\ncheckpointing_steps: 3\n")

    def run(output: str, *flags: str) -> ElicModel:
        words = [str(config), "--data", str(data_folder), "--output_dir", str(tmp_path / output), *flags]
        script.main(parse_arguments(script.CodecArguments, words))
        return ElicModel.from_pretrained(tmp_path / output / "model")

    whole = run("whole")
    interrupted_at = json.loads((tmp_path / "whole" / "progress.json").read_text())["step"]
    assert interrupted_at == 6

    original = script.train_steps

    def stop_early(accelerator, step, args):
        original(accelerator, step, replace(args, steps=3))
        raise KeyboardInterrupt

    script.train_steps = stop_early
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    script.train_steps = original
    resumed = run("parts", "--resume_from_checkpoint", "true")
    for (name, expected), value in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(torch.nn.Linear(2, 2))

    def step(index: int) -> dict[str, float]:
        with torch.no_grad():
            model.weight.fill_(index)
        return {"loss": float("nan") if index == 5 else 1.0}

    with pytest.raises(RuntimeError, match="not finite at step 5"):
        train_steps(accelerator, step, RunArguments(output_dir=str(tmp_path), steps=10, checkpointing_steps=2))
    assert json.loads((tmp_path / "progress.json").read_text())["step"] == 4
    accelerator.load_state(str(tmp_path / "checkpoint"))
    assert torch.equal(model.weight, torch.full((2, 2), 3.0))


def test_flags_override_the_file_and_unknown_keys_are_refused(tmp_path):
    script = load_script("train_comneck")
    config = tmp_path / "neck.yaml"
    config.write_text("steps: 7\nlearning_rate: 1.0e-2\n")
    words = [str(config), "--data", "d", "--codec", "c", "--clip", "t", "--output_dir", "o", "--steps", "9"]
    args = parse_arguments(script.NeckArguments, words)
    assert (args.steps, args.learning_rate, args.batch_size) == (9, 1e-2, 32)
    config.write_text("step: 7\n")
    with pytest.raises(ValueError, match=r"unknown keys \['step'\]"):
        parse_arguments(script.NeckArguments, words)


def test_the_neck_training_changes_only_the_neck(data_folder, tmp_path):
    script, codec_script = load_script("train_comneck"), load_script("train_codec")
    config = tmp_path / "codec.yaml"
    config.write_text(WIDTHS + "steps: 2\nbatch_size: 2\nfinal_batch_size: 1\n")
    words = [str(config), "--data", str(data_folder), "--output_dir", str(tmp_path / "codec")]
    codec_script.main(parse_arguments(codec_script.CodecArguments, words))
    clip = comneck_hf.pretrained("comneck-tiny-clip")
    words = ["--data", str(data_folder), "--codec", str(tmp_path / "codec" / "model"), "--clip", str(clip)]
    words += ["--output_dir", str(tmp_path / "neck"), "--steps", "3", "--batch_size", "4", "--num_variants", "2"]
    log_file = tmp_path / "log.json"
    script.main(parse_arguments(script.NeckArguments, [*words, "--log_file", str(log_file)]))
    log = json.loads(log_file.read_text())
    assert log["config"]["num_variants"] == 2
    assert log["log"][0]["distillation"] > 0
    model = ComNeckModel.from_pretrained(tmp_path / "neck" / "model")
    codec = ElicModel.from_pretrained(tmp_path / "codec" / "model")
    picture = synthetic_pictures(128, 1)
    assert model.compress(picture) == codec.compress(picture)
    untrained = ComNeckModel.from_codec_and_clip(codec, CLIPModel.from_pretrained(clip), num_skipped_layers=2)
    kept, trained = untrained.state_dict(), model.state_dict()
    changed = {name for name in kept if not torch.equal(kept[name].half().float(), trained[name].float())}
    assert changed
    assert all(".neck." in name for name in changed if kept[name].is_floating_point())
