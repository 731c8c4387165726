"""The command that measures the family and draws the figures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import nn
from transformers import CLIPModel, HfArgumentParser

import comneck_hf
from comneck_hf.cli import app
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.cotam.modeling_cotam import CotamModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures

from .launch import load_script


def test_every_measurement_is_a_valid_command_of_models_that_are_trained(tmp_path):
    script = load_script("reproduce_figures")
    trained = {job.name for job in load_script("reproduce_tiny").family(tmp_path, tmp_path)}
    command = typer.main.get_command(app).commands["eval"]
    names = []
    for measurement in script.measurements(tmp_path / "data", tmp_path):
        if measurement.script:
            parser = HfArgumentParser(load_script(Path(measurement.script).stem).Arguments)
            (options,) = parser.parse_args_into_dataclasses([*measurement.words])
            given = [value if isinstance(value, list) else [value] for value in vars(options).values()]
            assert set(measurement.models) <= {model for values in given for model in values}
        else:
            words = [word for model in measurement.models for word in ("--model", model)]
            options = command.make_context("eval", [*words, *measurement.words]).params
            assert options["model"] == list(measurement.models) and options["task"]
        for folder in (Path(model.rpartition("=")[2]) for model in measurement.models):
            if folder.is_relative_to(tmp_path):
                assert (
                    folder.parent.name in trained
                    or folder.parent == tmp_path / "eval"
                    and folder.name in {*script.COTAM_CHANGES, script.WITHOUT_ADAPTER}
                )
            else:
                assert (folder / "config.json").exists() or str(folder) == "comneck-tiny-d1-q2"
        names.append(measurement.name)
    assert len(names) == len(set(names)) and "rate_accuracy_tiny" in names


def test_a_measurement_leaves_its_numbers_and_a_figure(data_folder, tmp_path):
    script = load_script("reproduce_figures")
    words = ("--data", str(data_folder), "--pictures", "4", "--baseline", "reconstruction")
    models = ("one=comneck-tiny-d1-q2", "other=comneck-tiny-d1-q2")
    measurement = script.Measurement("small", models, words)
    assert script.run(measurement, tmp_path / "results", tmp_path / "runs") == "small"
    (task,) = json.loads((tmp_path / "results" / "small.json").read_text())["tasks"].values()
    assert [system["name"] for system in task["systems"]] == ["reconstruction", "one", "other"]
    with Image.open(tmp_path / "results" / "small.png") as figure:
        assert min(figure.size) > 200
    assert [file.suffix for file in (tmp_path / "runs" / "eval").iterdir()] == [".safetensors"] * 3


def test_post_processing_is_measured_where_it_is_trained(tmp_path):
    script = load_script("reproduce_figures")
    (tmp_path / "post-q3" / "model").mkdir(parents=True)
    for measurement in script.measurements(tmp_path / "data", tmp_path):
        named = [word for word in measurement.words if word.startswith("post-processing=")]
        expected = [f"post-processing={tmp_path / 'post-q3' / 'model'}"]
        assert named == (expected if measurement.name in ("rate_accuracy_tiny", "mllm_tiny") else [])


def test_what_is_not_trained_is_left_out_and_named(tmp_path, capsys):
    script = load_script("reproduce_figures")
    script.main(script.Arguments(data=str(tmp_path), output=str(tmp_path), runs=str(tmp_path), only=["ablation_loss"]))
    assert "ablation_loss_tiny: left out" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_the_complexity_of_the_paper_is_written(tmp_path):
    script = load_script("reproduce_figures")
    script.main(script.Arguments(data=str(tmp_path), output=str(tmp_path), only=["complexity"]))
    parts = json.loads((tmp_path / "complexity.json").read_text())["parts"]
    assert parts["U-Net"]["num_params"] == 31_037_763


def test_variants_of_the_cotam_change_its_guide_or_leave_out_its_adapter(tmp_path, monkeypatch):
    script = load_script("reproduce_figures")
    codec = ElicModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-d1-q2"))
    clip = CLIPModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-clip"))
    model = CotamModel.from_codec_and_clip(codec, clip, quality=2)
    for parameter in model.vision_model.adapter.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path / "with")
    monkeypatch.setattr(script, "COTAM", tmp_path / "with")
    script.save_variants(tmp_path / "variants")
    pictures = synthetic_pictures(128, 1)
    sizes, features = [], []
    names = ("cotam-small-map", "cotam-without-map", "cotam-without-adapter")
    for folder in ("with", *(f"variants/{name}" for name in names)):
        model = CotamModel.from_pretrained(tmp_path / folder).eval()
        bitstreams = model.compress(pictures)
        (gain_map,) = model.coded_gains(bitstreams)["gain_maps"]
        sizes.append(None if gain_map is None else (gain_map.rows, gain_map.columns))
        features.append(model(latents=model.decompress(bitstreams), gain_maps=[gain_map]).image_embeds)
    assert sizes == [(8, 8), (4, 4), None, (8, 8)]
    untrained = CotamModel.from_codec_and_clip(codec, clip, quality=2).eval()
    torch.testing.assert_close(features[3], untrained(latents=model.decompress(bitstreams)).image_embeds)
    assert not torch.allclose(features[0], features[3], atol=0.01)


def test_the_script_compares_necks_for_one_codec(object_pack, tmp_path):
    script = load_script("evaluate_token_errors")
    folder, output = comneck_hf.pretrained("comneck-tiny-d1-q2"), tmp_path / "errors.json"
    script.main(script.Arguments(data=str(object_pack), models=[f"neck={folder}"], output=str(output)))
    report = json.loads(output.read_text())
    errors = report["relative_errors"]
    expected = 10 * np.log10(errors["decoded pictures"]["all"] / errors["neck"]["all"])
    assert report["reductions"]["neck"]["all"]["decibel"] == pytest.approx(expected)
    with Image.open(output.with_suffix(".png")) as figure:
        assert min(figure.size) > 300


def test_the_script_refuses_necks_for_different_codecs(tiny_codec, tmp_path):
    script = load_script("evaluate_token_errors")
    clip = CLIPModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-clip"))
    ComNeckModel.from_codec_and_clip(tiny_codec, clip).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another codec"):
        script.load_systems([f"one={comneck_hf.pretrained('comneck-tiny-d1-q2')}", f"other={tmp_path}"])


def test_one_model_at_every_rate_is_compared_with_models_of_one_rate(data_folder, tmp_path):
    script, model = load_script("evaluate_any_rate"), "comneck-tiny-d1-q2"
    args = script.Arguments(
        data=str(data_folder),
        one_rate=[f"d1={model}"],
        any_rate=[f"any={model}"],
        gains=[-1.0, 0.0],
        pictures=6,
        tasks=["zero-shot"],
        output=str(tmp_path / "any.json"),
    )
    script.main(args)
    found = json.loads((tmp_path / "any.json").read_text())["tasks"]["zero-shot"]
    systems = {system["name"]: system["results"] for system in found["systems"]}
    assert list(systems) == ["original", "reconstruction", "reconstruction, one codec", "d1", "any"]
    assert systems["any"]["bytes"] == systems["reconstruction, one codec"]["bytes"]
    assert systems["any"]["bytes"][1] == systems["d1"]["bytes"][0] == systems["reconstruction"]["bytes"][0]
    assert systems["any"]["top1"][1] == systems["d1"]["top1"][0]
    assert set(found["against_d1"]) == {"reconstruction", "reconstruction, one codec", "any"}
    assert {"d1", "any"} <= set(found["against_reconstruction, one codec"])
    with Image.open(tmp_path / "any.png") as figure:
        assert min(figure.size) > 300
    with pytest.raises(ValueError, match="NAME=FOLDER"):
        script.systems(replace(args, any_rate=[model]))


def test_tokens_pooled_by_the_map_are_compared_with_tokens_pooled_alike(data_folder, shapes_folder, tmp_path):
    script = load_script("evaluate_region_pooling")
    codec = ElicModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-d1-q2"))
    clip = CLIPModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-clip"))
    CotamModel.from_codec_and_clip(codec, clip, quality=2).save_pretrained(tmp_path / "cotam")
    args = script.Arguments(
        data=str(data_folder),
        questions_data=str(shapes_folder),
        model=str(tmp_path / "cotam"),
        strides=[4, 1],
        region_strides=["1,1,1", "4,2,1"],
        pictures=6,
        questions=8,
        output=str(tmp_path / "regions.json"),
    )
    script.main(args)
    tasks = json.loads((tmp_path / "regions.json").read_text())["tasks"]
    assert list(tasks) == ["naming", "questions"]
    for found in tasks.values():
        uniform, regions = (system["results"] for system in found["systems"])
        assert dict(zip(uniform["quality"], uniform["tokens"], strict=True)) == {"1": 64, "4": 16}
        assert regions["quality"] == ["4,2,1", "1,1,1"]
        assert 16 < regions["tokens"][0] < 64 == regions["tokens"][1]
        assert regions["accuracy"][1] == uniform["accuracy"][1]  # strides of one change nothing
        assert found["against_uniform"]["by the map"]["accuracy_gain"]["high"] == 64
    with Image.open(tmp_path / "regions.png") as figure:
        assert min(figure.size) > 300
    with pytest.raises(ValueError, match="such as 4,2,1; got"):
        script.main(replace(args, region_strides=["4,2"]))
