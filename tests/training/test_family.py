"""The command that trains the comneck-tiny family, and the one that packs it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

import comneck_hf
from comneck_hf.models.comneck.image_processing_comneck import ComNeckImageProcessor
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.cotam.modeling_cotam import CotamModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.arguments import parse_arguments

from .launch import ARGUMENTS, load_script


def test_every_training_of_the_family_comes_after_what_it_needs_and_is_a_valid_command(tmp_path):
    script = load_script("reproduce_tiny")
    jobs = script.family(tmp_path / "data", tmp_path / "runs")
    names = [job.name for job in jobs]
    assert len(names) == len(set(names)) == 1 + 5 + 2 * 12 + 4 + 2 + 7 + 8 + 2
    for number, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:number])
        words = [str(script.CONFIGS / f"{job.config}.yaml"), "--output_dir", "run"]
        words += script.option_words(job.options)
        args = parse_arguments(getattr(load_script(job.script), ARGUMENTS[job.script]), words)
        for value in (getattr(args, name, None) for name in ("codec", "clip", "model", "neck")):
            if value is not None:
                assert value.split("/")[-2] in names[:number]
        if job.script == "train_cotam" or job.name in ("d1-anyrate", "codec-variable"):
            gains = script.TRANSFORM_GAINS if job.script == "train_codec" else script.NECK_GAINS
            assert args.gain_range == gains and args.quality == script.ANY_RATE
        elif job.name.startswith("whole-clip"):
            trained, runs = job.name.removeprefix("whole-clip-"), tmp_path / "runs"
            assert (args.scenario, args.targets, args.num_skipped_layers) == ("d1", script.ALL_TOKENS, 0)
            frozen = str(runs / f"codec-{trained[-2:]}" / "model")
            joint = (str(runs / trained / "model"), str(runs / f"whole-clip-d1-{trained[-2:]}" / "model"))
            expected = (frozen, None, None) if trained.startswith("d1") else (None, *joint)
            assert (args.codec, args.model, args.neck) == expected
        elif job.name[:2] in ("d1", "d2", "d3"):
            assert (args.scenario, args.quality) == (job.name[:2], int(job.name[-1]))


def test_a_failing_training_stops_the_family_and_a_finished_one_is_not_repeated(tmp_path):
    script = load_script("reproduce_tiny")
    args = script.Arguments(data=str(tmp_path / "missing"), output_dir=str(tmp_path), only=["clip"])
    with pytest.raises(script.subprocess.CalledProcessError):
        script.main(args)
    assert "missing" in (tmp_path / "clip.log").read_text()
    (tmp_path / "clip" / "model").mkdir()
    script.main(args)


def test_trainings_wait_for_what_they_need_and_only_for_that(tmp_path, monkeypatch):
    script, order = load_script("reproduce_tiny"), []
    monkeypatch.setattr(script, "run_job", lambda job, _output: order.append(job.name))
    script.main(script.Arguments(data=str(tmp_path), output_dir=str(tmp_path), jobs=2))
    jobs = {job.name: job for job in script.family(tmp_path, tmp_path)}
    assert sorted(order) == sorted(jobs)
    for number, name in enumerate(order):
        assert set(jobs[name].needs) <= set(order[:number])


def test_the_logs_are_collected_without_folders(tmp_path):
    script = load_script("reproduce_tiny")
    for name in ("d1-q1", "d3-q1"):
        (tmp_path / name).mkdir()
        config = {"data": str(tmp_path), "steps": 7, "targets": ["image_embeds"]}
        log = {"config": config, "stages": [], "log": [{"step": 1, "loss": 0.5}]}
        (tmp_path / name / "log.json").write_text(json.dumps(log))
    args = script.Arguments(data="", output_dir=str(tmp_path), only=["none"], log_file=str(tmp_path / "logs.json"))
    script.main(args)
    logs = json.loads((tmp_path / "logs.json").read_text())
    assert list(logs) == ["d1-q1", "d3-q1"]
    assert logs["d1-q1"]["config"] == {"steps": 7, "targets": ["image_embeds"]}
    assert logs["d1-q1"]["log"] == [{"step": 1, "loss": 0.5}]
    (tmp_path / "d3-q1").rename(tmp_path / "d2-q1")
    script.main(args)
    assert list(json.loads((tmp_path / "logs.json").read_text())) == ["d1-q1", "d2-q1", "d3-q1"]


def test_packed_models_do_what_the_trained_ones_did(tmp_path):
    script, source = load_script("pack_family"), comneck_hf.pretrained("comneck-tiny-d1-q2")
    whole = ComNeckModel.from_pretrained(source).eval()
    whole.config.codec_config._name_or_path = str(tmp_path / "codec")
    for scenario in ("d1", "d3"):
        whole.config.scenario = scenario
        whole.half().save_pretrained(tmp_path / "trained")
        ComNeckImageProcessor.for_size(128).save_pretrained(tmp_path / "trained")
        (folder,) = script.main(script.Arguments(models=[str(tmp_path / "trained")], output=str(tmp_path)))
        assert folder == tmp_path / f"comneck-tiny-{scenario}-q2"
        whole = ComNeckModel.from_pretrained(tmp_path / "trained", dtype="float32").eval()
        packed = ComNeckModel.from_pretrained(folder, dtype="float32").eval()
        pictures = synthetic_pictures(128, 2)
        assert packed.compress(pictures) == whole.compress(pictures)
        latents = packed.decompress(whole.compress(pictures))
        assert torch.equal(packed(latents=latents).image_embeds, whole(latents=latents).image_embeds)
        assert ElicModel.from_pretrained(folder, dtype="float32").compress(pictures) == whole.compress(pictures)
        assert packed.codec.config.build_synthesis == (scenario == "d1")
        assert str(tmp_path) not in (folder / "config.json").read_text()
        assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000


@torch.no_grad()
def test_a_packed_cotam_shares_its_codec(tmp_path):
    script, source = load_script("pack_family"), comneck_hf.pretrained("comneck-tiny-d1-q2")
    clip = CLIPModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-clip"))
    codec = ComNeckModel.from_pretrained(source, dtype=None).codec
    whole = CotamModel.from_codec_and_clip(codec, clip, quality=2).half().eval()
    whole.save_pretrained(tmp_path / "trained")
    ComNeckImageProcessor.for_size(128).save_pretrained(tmp_path / "trained")
    options = {"models": [str(tmp_path / "trained")], "output": str(tmp_path)}
    (folder,) = script.main(script.Arguments(**options, codec=source))
    (alone,) = script.main(script.Arguments(**{**options, "output": str(tmp_path / "alone")}))
    assert folder == tmp_path / "comneck-tiny-cotam-q2"
    assert (folder / "own.safetensors").stat().st_size < (alone / "own.safetensors").stat().st_size / 2
    pictures = synthetic_pictures(128, 2)
    whole = CotamModel.from_pretrained(tmp_path / "trained", dtype="float32").eval()
    packed, loading = CotamModel.from_pretrained(folder, dtype="float32", output_loading_info=True)
    packed.eval()
    assert not loading["unexpected_keys"] and not loading["missing_keys"]
    bitstreams = whole.compress(pictures)
    assert packed.compress(pictures) == bitstreams
    latents = packed.decompress(bitstreams)
    assert torch.equal(packed(latents=latents).image_embeds, whole(latents=latents).image_embeds)
    file = tmp_path / "trained" / "model.safetensors"
    other = {key: value + 1 if key.startswith("codec.") else value for key, value in load_file(file).items()}
    save_file(other, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="trained with another CLIP or codec"):
        script.main(script.Arguments(**options, codec=source))
