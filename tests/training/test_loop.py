"""The training loop through its scripts: interruptions, processes, accumulation, logs, and what may not happen."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoConfig

from comneck_hf.evaluation.rate_accuracy import measure_codec
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.training.arguments import parse_arguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.data import load_sample, training_pictures
from comneck_hf.training.loop import Training, prepare_run

from .conftest import WIDTHS
from .launch import SCRIPTS, launch, load_script, run_script


def same_weights(first: Path, second: Path) -> bool:
    """Whether two model folders hold the same tensors, bit for bit."""
    left, right = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


def codec_words(data_folder: Path) -> list[object]:
    widths = [text for name, value in WIDTHS.items() for text in (f"--{name}", *_words(value))]
    return [*widths, "--data", data_folder, "--batch_size", 2, "--crop_size", 64, "--calibration_pictures", 2]


def comneck_words(
    data_folder: Path, codec_folder: Path | None, clip_folder: Path, *, model: Path | None = None
) -> list[object]:
    start = ["--codec", codec_folder] if model is None else ["--model", model]
    parts = ["--data", data_folder, "--clip", clip_folder, *start]
    return [*parts, "--batch_size", 2, "--calibration_pictures", 2, "--validation_pictures", 2]


def _words(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def check_resume(name: str, words: list[object], tmp_path: Path, *, kills: list[int]) -> None:
    """Kills a run of two processes after each of some checkpoints and compares its end with an uninterrupted run's."""
    words = [*words, "--checkpointing_steps", 1, "--validation_steps", 2]
    launch(name, *words, "--output_dir", tmp_path / "whole", processes=2)
    words += ["--output_dir", tmp_path / "killed", "--resume_from_checkpoint", "true"]
    for step in kills:
        launch(name, *words, processes=2, kill_at=tmp_path / "killed" / "checkpoints" / f"step-{step:08d}")
        assert not (tmp_path / "killed" / "model").exists()
    launch(name, *words, processes=2)
    assert same_weights(tmp_path / "whole" / "model", tmp_path / "killed" / "model")
    logs = [json.loads((tmp_path / run / "log.json").read_text())["log"] for run in ("whole", "killed")]
    for entry in (*logs[0], *logs[1]):
        entry.pop("seconds", None)
    assert logs[0] == logs[1]


def test_a_killed_codec_training_ends_in_the_same_bits(data_folder, tmp_path):
    words = [*codec_words(data_folder), "--steps", 20, "--logging_steps", 1]
    check_resume("train_codec", words, tmp_path, kills=[8, 18])


def test_a_killed_joint_training_ends_in_the_same_bits(data_folder, codec_folder, clip_folder, tmp_path):
    words = [*comneck_words(data_folder, codec_folder, clip_folder), "--scenario", "d2", "--steps", 24]
    check_resume("train_comneck", [*words, "--logging_steps", 1], tmp_path, kills=[1, 4, 6, 12, 21])


@pytest.mark.parametrize("coded_variants", [0, 2])
def test_a_killed_cotam_training_ends_in_the_same_bits(
    data_folder, codec_folder, clip_folder, tmp_path, coded_variants
):
    words = ["--data", data_folder, "--codec", codec_folder, "--clip", clip_folder, "--batch_size", 2, "--steps", 8]
    words += ["--validation_pictures", 2, "--gain_range", -1, 0.5, "--coded_variants", coded_variants]
    words += ["--cache_dir", tmp_path / "cache", "--logging_steps", 1]
    check_resume("train_cotam", words, tmp_path, kills=[1, 5])


def test_a_killed_clip_training_ends_in_the_same_bits(data_folder, shapes_folder, tmp_path):
    words = ["--data", data_folder, "--shapes_data", shapes_folder, "--batch_size", 4, "--text_steps", 3]
    words += ["--guide_steps", 4, "--vision_steps", 4, 3, "--resolutions", 28, 56, "--logging_steps", 1]
    check_resume("train_clip", words, tmp_path, kills=[1, 5, 9, 12])


@pytest.mark.parametrize("scenario", ["d1", "d3"])
def test_two_processes_equal_one_that_accumulates(data_folder, codec_folder, clip_folder, tmp_path, scenario):
    words = [*comneck_words(data_folder, codec_folder, clip_folder), "--scenario", scenario, "--steps", 10]
    words += ["--logging_steps", 1, "--output_dir"]
    launch("train_comneck", *words, tmp_path / "two", processes=2)
    launch("train_comneck", *words, tmp_path / "one", "--gradient_accumulation_steps", 2, processes=1)
    curves = []
    for run in ("two", "one"):
        log = json.loads((tmp_path / run / "log.json").read_text())["log"]
        curves.append([entry["loss"] for entry in log if "loss" in entry])
    assert len(curves[0]) == 10
    assert curves[1] == pytest.approx(curves[0], rel=2e-3)
    assert max(curves[0]) > 1.05 * min(curves[0])


def test_a_run_keeps_its_best_and_last_weights_and_its_log(data_folder, tmp_path):
    log_file = tmp_path / "results.json"
    words = [*codec_words(data_folder), "--steps", 12, "--validation_steps", 2, "--checkpointing_steps", 5]
    words += ["--logging_steps", 3, "--learning_rate", 0.03, "--report_to", "tensorboard"]
    run_script("train_codec", *words, "--output_dir", tmp_path / "run", "--log_file", log_file)
    log = json.loads(log_file.read_text())
    assert log["config"]["lmbda"] == 0.008
    assert [stage["name"] for stage in log["stages"]] == ["noise", "round"]
    scores = {entry["step"]: entry["validation_score"] for entry in log["log"] if "validation_score" in entry}
    assert list(scores) == [2, 4, 6, 8, 10, 12]
    assert max(scores.values()) > scores[12]  # the learning rate is too high to become better
    validation = load_sample(data_folder, "validation", 100).images
    measured = measure_codec(ElicModel.from_pretrained(tmp_path / "run" / "best").eval(), validation)
    score = -(0.008 * 255**2 * measured["mse"] + measured["bpp"])
    assert score == pytest.approx(max(scores.values()), rel=1e-4)
    assert not same_weights(tmp_path / "run" / "best", tmp_path / "run" / "model")
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000012"]
    assert list((tmp_path / "run" / "comneck_hf").glob("events*"))
    assert ElicModel.from_pretrained(tmp_path / "run" / "best").config.quality == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(data_folder, tmp_path):
    words = [*codec_words(data_folder), "--steps", 40, "--checkpointing_steps", 1, "--output_dir", tmp_path]
    with pytest.raises(RuntimeError, match=r"not finite at step \d+: .*rate.*--resume_from_checkpoint"):
        run_script("train_codec", *words, "--learning_rate", "1e12", "--max_grad_norm", 0)
    (checkpoint,) = (tmp_path / "checkpoints").glob("step-*")
    weights = load_file(checkpoint / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values() if tensor.is_floating_point())
    with pytest.raises(ValueError, match="holds a checkpoint of an earlier run"):
        run_script("train_codec", *words)


def test_a_finished_run_can_be_made_longer(data_folder, tmp_path):
    words = [*codec_words(data_folder), "--output_dir", tmp_path, "--resume_from_checkpoint", "true", "--steps"]
    run_script("train_codec", *words, 4)
    run_script("train_codec", *words, 6)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]
    with pytest.raises(ValueError, match="beyond `steps` 3"):
        run_script("train_codec", *words, 3)


def test_flags_override_the_file_and_unknown_keys_are_refused(tmp_path):
    script = load_script("train_comneck")
    config = tmp_path / "neck.yaml"
    config.write_text("steps: 7\nlearning_rate: 1.0e-2\n")
    words = [str(config), "--data", "d", "--codec", "c", "--clip", "t", "--output_dir", "o", "--steps", "9"]
    args = parse_arguments(script.ComNeckArguments, words)
    assert (args.steps, args.learning_rate, args.batch_size) == (9, 1e-2, 32)
    config.write_text("step: 7\n")
    with pytest.raises(ValueError, match=r"unknown keys \['step'\]"):
        parse_arguments(script.ComNeckArguments, words)
    config.write_text("steps: 0\n")
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        parse_arguments(script.ComNeckArguments, [word for word in words if word not in ("--steps", "9")])


@pytest.mark.parametrize("variants", [0, 2])
def test_the_neck_training_changes_only_the_neck(data_folder, codec_folder, clip_folder, clip, tmp_path, variants):
    words = [*comneck_words(data_folder, codec_folder, clip_folder), "--steps", 6, "--coded_variants", variants]
    run_script("train_comneck", *words, "--output_dir", tmp_path)
    model, codec = ComNeckModel.from_pretrained(tmp_path / "model"), ElicModel.from_pretrained(codec_folder)
    untrained = ComNeckModel.from_codec_and_clip(codec, clip, num_skipped_layers=2)
    kept, trained = untrained.state_dict(), model.state_dict()
    changed = {name for name in kept if not torch.equal(kept[name].half().float(), trained[name].float())}
    assert changed
    assert all(".neck." in name for name in changed if kept[name].is_floating_point())
    assert all(torch.equal(kept[name], trained[name]) for name in kept if not kept[name].is_floating_point())
    assert (tmp_path / "model" / "preprocessor_config.json").exists()


def test_the_other_trained_files_go_on_from_a_model(data_folder, codec_folder, clip_folder, tmp_path):
    words = comneck_words(data_folder, codec_folder, clip_folder)
    run_script("train_comneck", *words, "--steps", 3, "--output_dir", tmp_path / "d1", "--quality", 1)
    words = comneck_words(data_folder, None, clip_folder, model=tmp_path / "d1" / "model")
    words += ["--scenario", "d3", "--stages", "joint", "finish", "--output_dir", tmp_path / "d3", "--quality", 1]
    run_script("train_comneck", *words, "--steps", 4)
    log = json.loads((tmp_path / "d3" / "log.json").read_text())
    assert [stage["name"] for stage in log["stages"]] == ["joint", "finish"]
    model = ComNeckModel.from_pretrained(tmp_path / "d3" / "model")
    assert (model.config.scenario, model.config.quality) == ("d3", 1)
    with pytest.raises(ValueError, match=r"trains \['neck'\], but with `steps` 8 step 4 belongs to stage 'joint'"):
        run_script("train_comneck", *words, "--steps", 8, "--resume_from_checkpoint", "true")


@pytest.mark.parametrize("start", ["codec", "model"])
def test_a_codec_without_float_entropy_networks_trains_jointly(
    data_folder, codec_folder, clip_folder, tmp_path, start
):
    codec = ElicModel.from_pretrained(codec_folder, build_entropy_networks=False)
    codec.save_pretrained(tmp_path / "light")
    words = comneck_words(data_folder, tmp_path / "light", clip_folder)
    if start == "model":
        run_script("train_comneck", *words, "--steps", 3, "--output_dir", tmp_path / "d1")
        assert not ElicModel.from_pretrained(tmp_path / "d1" / "model").config.build_entropy_networks
        words = comneck_words(data_folder, None, clip_folder, model=tmp_path / "d1" / "model")
    words += ["--scenario", "d2", "--stages", "joint", "--steps", 2, "--output_dir", tmp_path / "d2"]
    run_script("train_comneck", *words)
    trained = ElicModel.from_pretrained(tmp_path / "d2" / "model")
    assert trained.config.build_entropy_networks
    assert trained.fingerprint != codec.fingerprint
    ways = ["--steps", 2, "--batch_size", 2, "--crop_size", 64, "--calibration_pictures", 2]
    run_script("train_codec", *ways, "--data", data_folder, "--codec", tmp_path / "light", "--output_dir", tmp_path)
    assert ElicModel.from_pretrained(tmp_path / "model").config.build_entropy_networks


def test_a_neck_goes_on_behind_another_codec_whose_model_stays_what_it_was(
    data_folder, codec_folder, clip_folder, clip, tmp_path
):
    words = comneck_words(data_folder, codec_folder, clip_folder)
    joint, whole = tmp_path / "d3" / "model", tmp_path / "d1" / "model"
    run_script("train_comneck", *words, "--steps", 5, "--output_dir", joint.parent, "--scenario", "d3")
    for parts in ({"build_synthesis": False}, {"build_entropy_networks": False}):  # as they are packed
        config = AutoConfig.from_pretrained(joint)
        config.codec_config.update(parts)
        ComNeckModel.from_pretrained(joint, config=config).save_pretrained(joint)
    config = SCRIPTS.parent / "configs" / "comneck-tiny-whole-clip.yaml"
    more = ["--coded_variants", 1, "--steps", 4, "--warmup_steps", 0, "--validation_steps", 4, "--quality", 4]
    run_script("train_comneck", config, *words, *more, "--output_dir", whole.parent)
    words = [config, *comneck_words(data_folder, None, clip_folder, model=joint), *more]
    run_script("train_comneck", *words, "--neck", whole, "--output_dir", tmp_path / "more")
    with pytest.raises(ValueError, match="made with num_skipped_layers=2, and the options mean 0"):
        run_script("train_comneck", *words, "--output_dir", tmp_path / "other")
    before, start, after = map(ComNeckModel.from_pretrained, (joint, whole, tmp_path / "more" / "model"))
    assert (after.config.scenario, after.config.quality) == ("d3", 2)
    assert after.config.vision_config.num_skipped_layers == 0
    trained, old = after.state_dict(), before.state_dict()
    assert all(torch.equal(old[name], trained[name]) for name in old if ".neck." not in name and name in trained)
    layers = clip.vision_model.encoder.layers
    assert all(
        torch.equal(mine.mlp.fc1.weight, theirs.mlp.fc1.weight)
        for mine, theirs in zip(after.vision_model.encoder.layers, layers, strict=True)
    )
    moved = start.vision_model.neck.projection.weight - after.vision_model.neck.projection.weight
    assert 0 < moved.abs().max() < 4 * 1.5 * 2e-3  # some steps of AdamW from the other neck
    log = json.loads((tmp_path / "more" / "log.json").read_text())
    assert [stage["name"] for stage in log["stages"]] == ["distill"]


def test_a_neck_for_another_clip_is_refused(data_folder, codec_folder, clip_folder, tmp_path):
    words = comneck_words(data_folder, codec_folder, clip_folder)
    run_script("train_comneck", *words, "--steps", 3, "--output_dir", tmp_path / "d1")
    model = ComNeckModel.from_pretrained(tmp_path / "d1" / "model")
    torch.nn.init.ones_(model.visual_projection.weight)
    model.save_pretrained(tmp_path / "other")
    words = comneck_words(data_folder, None, clip_folder, model=tmp_path / "d1" / "model")
    with pytest.raises(ValueError, match="made for different CLIPs or latents"):
        run_script("train_comneck", *words, "--output_dir", tmp_path / "more", "--neck", tmp_path / "other")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Give `codec` for a fresh neck, or `model` to start from; they are None and None"),
        (["--codec", "c", "--model", "m"], "they are c and m"),
        (["--codec", "c", "--neck", "n"], "`neck` n takes the place of a model's"),
        (["--model", "m", "--scenario", "d3", "--coded_variants", "1"], "a codec that stays as it is, not .* 'd3'"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(words, message):
    required = ["--data", "d", "--clip", "t", "--output_dir", "o"]
    with pytest.raises(ValueError, match=message):
        parse_arguments(load_script("train_comneck").ComNeckArguments, [*required, *words])


def test_a_resumed_run_takes_the_learning_rate_and_decay_of_its_command(
    data_folder, codec_folder, clip_folder, tmp_path
):
    words = [*comneck_words(data_folder, codec_folder, clip_folder), "--resume_from_checkpoint", "true"]
    words += ["--stages", "classify", "--warmup_steps", 0, "--output_dir", tmp_path, "--steps"]
    run_script("train_comneck", *words, 2, "--learning_rate", 1e-2, "--weight_decay", 0.1)
    before = load_file(tmp_path / "model" / "model.safetensors")
    run_script("train_comneck", *words, 4, "--learning_rate", 0.0, "--weight_decay", 0.0)
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    run_script("train_comneck", *words, 6, "--learning_rate", 1e-3)
    trained = load_file(tmp_path / "model" / "model.safetensors")
    assert any(not torch.equal(before[name], trained[name]) for name in before)


def test_an_epoch_without_batches_stops_the_run(data_folder, tmp_path):
    """As with fewer batches than processes: each of them gets none."""
    script = load_script("train_codec")
    words = [*codec_words(data_folder), "--steps", 3, "--output_dir", tmp_path]
    args = parse_arguments(script.CodecArguments, [str(word) for word in words])
    accelerator = prepare_run(args)
    sample = load_sample(data_folder, "train", 2).images / 255
    pictures = training_pictures(data_folder, Augmentation(64, "window"))
    loader = DataLoader(pictures, batch_size=len(pictures) + 1, drop_last=True)
    with pytest.raises(ValueError, match="fewer pictures than 1 processes of `batch_size` 2 need"):
        Training(accelerator, script.build_objective(args, sample), loader, args).run()
