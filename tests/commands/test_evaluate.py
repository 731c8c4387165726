"""`comneck eval` and `comneck plot` on a data set of a few pictures."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel
from typer.testing import CliRunner

from comneck_hf import CompressaiModel, pretrained
from comneck_hf.cli import app
from comneck_hf.evaluation.pictures import tensor_picture


@pytest.fixture(scope="module")
def data(pictures: torch.Tensor, tmp_path_factory) -> Path:
    """Six labelled pictures with the split validation, and the same as files."""
    folder = tmp_path_factory.mktemp("data")
    images = [tensor_picture((picture * 255).round().to(torch.uint8)) for picture in pictures]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cup", "chair"])})
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 3}, features=features)
    (folder / "labelled" / "data").mkdir(parents=True)
    rows.to_parquet(folder / "labelled" / "data" / "validation-0.parquet")
    (folder / "files").mkdir()
    for number, image in enumerate(images[:2]):
        image.crop((0, 0, 120, 100)).save(folder / "files" / f"{number}.png")
    return folder


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout + (result.stderr if result.exit_code else "")


def test_models_and_their_codecs_are_measured_at_several_gains(data, tmp_path):
    words = ["eval", "--data", data / "labelled", "--baseline", "reconstruction", "--gain", -1, "--gain", 0.5]
    words += ["--model", "first=comneck-tiny-d1-q2", "--model", "other=comneck-tiny-d1-q2"]
    code, text = run(*words, "--output", tmp_path / "gains.json", "--quiet", "--json")
    assert code == 0, text
    systems = {system["name"]: system["results"] for system in json.loads(text)["tasks"]["zero-shot"]["systems"]}
    assert list(systems) == ["reconstruction", "first", "other"]  # one codec, decoded once
    reconstruction, d1, other = systems.values()
    assert d1["top1"] == other["top1"]
    assert d1["quality"] == reconstruction["quality"] == ["q2 -1", "q2 +0.5"]
    assert d1["bytes"] == reconstruction["bytes"]
    assert d1["bytes"][0] < 0.8 * d1["bytes"][1]


def test_models_and_baselines_are_measured_and_drawn(data, tmp_path):
    output = tmp_path / "results" / "evaluation.json"
    words = ["eval", "--data", data / "labelled", "--distortion-data", data / "files", "--output", output]
    words += ["--task", "zero-shot", "--task", "distortion", "--batch-size", 4]
    words += [word for name in ("original", "reconstruction", "webp", "jpeg@600") for word in ("--baseline", name)]
    code, text = run(*words, "--quiet", "--json")
    assert code == 0, text
    results = json.loads(output.read_text())
    assert json.loads(text) == results
    tasks = results["tasks"]
    assert [system["name"] for system in tasks["zero-shot"]["systems"]] == [
        "original",
        "reconstruction",
        "webp",
        "jpeg at 600 bytes",
        "d1",
    ]
    assert (tasks["zero-shot"]["data"], tasks["distortion"]["data"]) == ("labelled", "files")
    (d1,) = [system["results"] for system in tasks["distortion"]["systems"] if system["name"] == "d1"]
    (reconstruction,) = [
        system["results"] for system in tasks["distortion"]["systems"] if system["name"] == "reconstruction"
    ]
    assert d1["bytes"] == reconstruction["bytes"]
    assert d1["psnr-rgb"] == reconstruction["psnr-rgb"]
    assert len(list((tmp_path / "results" / "evaluation").glob("*.safetensors"))) == 18
    code, text = run(*words, "--force")
    assert "d1 q2" in text and "reconstruction q2" in text
    figure = tmp_path / "figure.png"
    assert run("plot", output, "-o", figure)[0] == 0
    assert Image.open(figure).size == (2 * 744, 552)
    code, text = run("plot", output, "-o", figure)
    assert code == 1 and "exists" in text
    drawn = figure.read_bytes()
    again = tmp_path / "again.json"
    again.write_bytes(output.read_bytes())
    assert run("plot", output, again, "-o", figure, "--force")[0] == 0
    assert figure.read_bytes() == drawn  # the same once
    d1["psnr-rgb"] = [20.0]
    again.write_text(json.dumps(results))
    assert run("plot", output, again, "-o", figure, "--force")[0] == 0
    assert Image.open(figure).size == (2 * 744, 552)
    assert figure.read_bytes() != drawn


def test_systems_are_called_by_what_they_are_and_compared_by_curve(data, tmp_path):
    d1 = AutoModel.from_pretrained(pretrained("comneck-tiny-d1-q2"))
    other = copy.deepcopy(d1)
    other.codec.g_s[-1].bias.data.add_(0.05)
    other.config.quality = other.codec.config.quality = 3
    other.save_pretrained(tmp_path / "other")
    factorized = CompressaiModel.from_zoo("bmshj2018-factorized", 1, metric="ms-ssim", pretrained=False)
    factorized.save_pretrained(tmp_path / "zoo")
    words = ["eval", "--data", data / "labelled", "-o", tmp_path / "e.json", "--quiet", "--json"]
    words += ["--baseline", "reconstruction", "--baseline", f"codec={tmp_path / 'zoo'}"]
    words += ["--baseline", f"codec=mine={tmp_path / 'zoo'}"]
    words += ["-m", "first=comneck-tiny-d1-q2", "-m", f"first={tmp_path / 'other'}", "-m", "second=comneck-tiny-d1-q2"]
    code, text = run(*words)
    assert code == 0, text
    found = json.loads(text)["tasks"]["zero-shot"]
    points = {system["name"]: system["results"]["quality"] for system in found["systems"]}
    assert points == {
        "first reconstruction": ["q2", "q3"],
        "second reconstruction": ["q2"],
        "bmshj2018-factorized ms-ssim": ["q1"],
        "mine": ["q1"],
        "first": ["q2", "q3"],
        "second": ["q2"],
    }
    assert list(found["against_reconstruction"]) == ["first", "second"]
    assert found["split"] == "validation"
    code, text = run(*words, "--against", "reconstruction", "--against", "mine", "--force")
    assert code == 0, text
    found = json.loads(text)["tasks"]["zero-shot"]
    assert list(found["against_reconstruction"]) == ["first", "second"]
    assert list(found["against_mine"]) == [name for name in points if name != "mine"]
    code, text = run(*words, "--against", "theirs", "--force")
    assert code == 1 and "is called theirs; measured are first reconstruction" in text


def test_files_that_asked_something_else_are_not_drawn_together(data, tmp_path):
    words = ["eval", "--data", data / "labelled", "--baseline", "original", "--quiet"]
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    assert run(*words, "-o", first)[0] == 0
    second.write_text(first.read_text().replace('"split": "validation"', '"split": "train"'))
    code, text = run("plot", first, second, "-o", tmp_path / "figure.png")
    assert code == 1 and "split 'validation' and 'train'. Draw them apart" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--baseline", "gif"], "No baseline is called 'gif'"),
        (["--baseline", "jpeg:low"], "No baseline is called 'jpeg:low'"),
        (["--baseline", "post-processing=nowhere"], "There is no folder 'nowhere'"),
        (["--task", "captions"], "No task is called 'captions'"),
        (["--task", "naming"], "The task naming needs --llava"),
        (["--task", "distortion"], "needs --distortion-data"),
    ],
)
def test_what_cannot_be_measured_is_named(data, tmp_path, words, message):
    code, text = run("eval", "--data", data / "labelled", "-o", tmp_path / "e.json", "--quiet", *words)
    assert code == 1
    assert message in text


def test_files_that_are_no_evaluation_are_refused(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    code, text = run("plot", tmp_path / "other.json", "-o", tmp_path / "figure.png")
    assert code == 1 and "no file of `comneck eval`" in text
    (tmp_path / "picture.png").write_bytes(b"\xff\xd8\xff\xe0")
    code, text = run("plot", tmp_path / "picture.png", "-o", tmp_path / "figure.png")
    assert code == 1 and "picture.png is no JSON" in text


def test_results_are_not_overwritten_unless_forced(data, tmp_path):
    (tmp_path / "e.json").write_text("precious")
    words = ["eval", "--data", data / "labelled", "--baseline", "original", "-o", tmp_path / "e.json", "--quiet"]
    code, text = run(*words)
    assert code == 1 and "Pass --force" in text
    assert (tmp_path / "e.json").read_text() == "precious"
    code, text = run(*words, "--force")
    assert code == 0, text
    assert "zero-shot" in json.loads((tmp_path / "e.json").read_text())["tasks"]


def test_two_processes_measure_what_one_does(data, tmp_path):
    command = str(Path(sys.executable).with_name("comneck"))
    words = [command, "eval", "--data", str(data / "labelled"), "--quiet", "--batch-size", "2"]
    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    subprocess.run([*words, "-o", str(alone)], check=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    subprocess.run([*launcher, *words, "-o", str(shared)], check=True)
    first, second = (json.loads(path.read_text())["tasks"]["zero-shot"]["systems"] for path in (alone, shared))
    for one, other in zip(first, second, strict=True):
        for name, values in one["results"].items():
            if not name.endswith("_seconds"):
                close = (
                    other["results"][name] == values
                    if name == "quality"
                    else np.allclose(other["results"][name], values)
                )
                assert close, name
