"""The configurations that are shipped: they parse, build what they say, and their trainings run."""

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.cotam.modeling_cotam import CotamModel
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.tic.modeling_tic import TicModel
from comneck_hf.training.arguments import parse_arguments
from comneck_hf.training.data import ImagePack
from comneck_hf.training.stages import PRESETS, choose_stages, comneck_stages
from comneck_hf.training.surrogate import ComNeckObjective, parse_targets

from .launch import ARGUMENTS, load_script, run_script


CONFIGS = Path(__file__).parents[2] / "configs"
COTAM = sorted(path.name for path in CONFIGS.glob("cotam-*.yaml"))
FULL_SIZE = sorted(path.name for path in CONFIGS.glob("comneck-vitl14*.yaml"))
SCRIPTS = {"clip": "train_clip", "codec": "train_codec", "tic": "train_codec", "variable": "train_codec"}


def read(name: str, *words: str):
    kind = name.removesuffix(".yaml").split("-")[2]
    script = load_script(SCRIPTS.get(kind, "train_comneck"))
    required = ["--output_dir", "run", *words]
    if kind in SCRIPTS:
        required += ["--data", "data"] + ["--shapes_data", "shapes"] * (kind == "clip")
    else:
        starts_trained = kind in ("d2", "d3", "post") or name.endswith(("-d2.yaml", "-d3.yaml"))
        required += ["--model" if starts_trained else "--codec", "start"]
        required += ["--data", "data", "--clip", "clip"] if "tiny" in name else []
    return parse_arguments(
        getattr(script, ARGUMENTS[SCRIPTS.get(kind, "train_comneck")]), [str(CONFIGS / name), *required]
    )


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("comneck-*.yaml")))
def test_every_configuration_is_understood(name):
    args = read(name)
    assert args.steps >= 1000
    assert not args.resume_from_checkpoint


def test_the_configuration_of_the_small_llava_is_understood():
    words = [CONFIGS / "llava-tiny.yaml", "--data", "data", "--questions_data", "shapes", "--output_dir", "run"]
    script = load_script("train_llava")
    args = parse_arguments(getattr(script, ARGUMENTS["train_llava"]), [str(word) for word in words])
    assert args.max_steps >= 1000
    assert not args.remove_unused_columns  # conversations are no columns of the model
    assert args.pooling is None
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {
        "llava-tiny.yaml",
        *(path.name for path in CONFIGS.glob("comneck-*.yaml")),
        *COTAM,
    }


def test_a_tic_is_trained_from_pictures_and_then_at_another_rate(data_folder, tmp_path):
    words = ["--data", data_folder, "--hidden_channels", 8, "--latent_channels", 12, "--group_channels", 1, 1, 2, 3, 5]
    words += ["--context_channels", 6, 4, "--aggregation_channels", 12, 10, "--depths", 1, 2, 1, 1]
    words += ["--num_heads", 2, 2, 2, 3, "--crop_size", 64, "--calibration_pictures", 4, "--validation_pictures", 4]
    words += ["--steps", 4, "--batch_size", 2, "--logging_steps", 1, "--output_dir"]
    run_script("train_codec", CONFIGS / "comneck-tiny-tic.yaml", *words, tmp_path / "base")
    entries = json.loads((tmp_path / "base" / "log.json").read_text())["log"]
    assert sum("loss" in entry for entry in entries) == 4
    base = TicModel.from_pretrained(tmp_path / "base" / "model")
    assert base.config.num_heads == [2, 2, 2, 3] and base.config.lmbda == read("comneck-tiny-tic.yaml").lmbda
    again = ["--data", data_folder, *words[words.index("--calibration_pictures") : -1]]
    again += ["--crop_size", 64, "--codec", tmp_path / "base" / "model", "--quality", 1, "--lmbda", 0.001]
    run_script("train_codec", CONFIGS / "comneck-tiny-codec.yaml", *again, "--output_dir", tmp_path / "low")
    low = TicModel.from_pretrained(tmp_path / "low" / "model")
    assert low.config.quality == 1 and low.config.lmbda == 0.001
    assert low.exact.fingerprint != base.exact.fingerprint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--architecture", "tik"], r"`architecture` must be one of \['elic', 'tic'\], got 'tik'"),
        (["--depths", "1", "1", "1", "1"], r"\['depths'\] say nothing to the architecture 'elic'"),
    ],
)
def test_codecs_that_are_not_there_are_refused(words, message):
    args = read("comneck-tiny-codec-base.yaml", *words)
    with pytest.raises(ValueError, match=message):
        load_script("train_codec").build_config(args)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_trainings_have_the_published_sizes(name):
    """On the meta device, so without the memory."""
    args, side = read(name), 336 if "336" in name else 224
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    vision |= {"patch_size": 14, "image_size": side, "projection_dim": 768}
    text = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    preset = PRESETS[args.preset]
    stages = choose_stages(comneck_stages(args.scenario, preset, lmbda=args.lmbda), args.stages)
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=768))
        codec = ElicModel(ElicConfig())
        model = ComNeckModel.from_codec_and_clip(codec, clip, scenario=args.scenario)
        weights = torch.empty(1000, 768)
    clip.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
    objective = ComNeckObjective(model, clip, stages, zero_shot_weights=weights, targets=parse_targets(args.targets))
    parts = {part: sum(p.numel() for p in parameters) for part, parameters in objective.parts().items()}
    assert parts["neck"] == 13_191_168 + (320 * 1024 if side == 336 else 0)  # 24x24 positions instead of 16x16
    assert parts["codec"] == 33_792_771
    assert args.num_skipped_layers is None and model.config.vision_config.num_skipped_layers == 2
    assert model.config.image_size == (384 if side == 336 else 256)
    objective.begin(stages[0])
    assert objective.optimizers(args)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_trainings_run_at_small_size(name, data_folder, codec_folder, clip_folder, tmp_path):
    words = ["--data", data_folder, "--clip", clip_folder, "--codec", codec_folder, "--output_dir", tmp_path]
    words += ["--steps", 4, "--batch_size", 2, "--calibration_pictures", 2, "--validation_pictures", 4]
    words += ["--dataloader_num_workers", 0, "--logging_steps", 1, "--warmup_steps", 1]
    run_script("train_comneck", CONFIGS / name, *words)
    log = json.loads((tmp_path / "log.json").read_text())
    losses = [entry["loss"] for entry in log["log"] if "loss" in entry]
    assert len(losses) == 4 and log["config"]["mixed_precision"] == "bf16"
    assert ComNeckModel.from_pretrained(tmp_path / "model").config.scenario == log["config"]["scenario"]


def read_cotam(name: str, *words: object):
    script = load_script("train_cotam")
    required = ["--output_dir", "run"] + ["--data", "data", "--clip", "clip"] * ("tiny" in name)
    words = [str(CONFIGS / name), *required, *map(str, words)]
    return script, parse_arguments(getattr(script, ARGUMENTS["train_cotam"]), words)


@pytest.mark.parametrize("name", COTAM)
def test_every_configuration_of_cotam_is_understood(name):
    _, args = read_cotam(name)
    assert args.steps >= 1000 and args.gain_range[0] < 0 < args.gain_range[1]
    with pytest.raises(ValueError, match="`gain_range` must be the lowest and the highest gain"):
        read_cotam(name, "--gain_range", 1)


def test_the_full_size_cotam_has_the_published_sizes(tmp_path):
    """On the meta device, so without the memory."""
    script, args = read_cotam("cotam-vitl14-336.yaml", "--cache_dir", tmp_path)
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    vision |= {"patch_size": 14, "image_size": 336, "projection_dim": 768}
    text = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=768))
        model = CotamModel.from_codec_and_clip(ElicModel(ElicConfig()), clip)
    clip.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
    objective = script.build_objective(args, model, clip, ImagePack(torch.empty(0), None, ()))
    (adapter,) = objective.parts().values()
    assert sum(p.numel() for p in adapter) == 13_191_168 + 320 * 1024 + 1  # 24x24 positions, and the gate
    assert model.config.image_size == 384 and model.config.vision_config.latent_grid == (24, 24)
    assert (objective.gains.guided_share, objective.gains.random_share) == (0.5, 0.5)
    assert [dict(stage.weights) for stage in objective.stages] == [{"low": 0.1}, {"low": 0.1, "high": 1.0}]
    objective.begin(objective.stages[0])
    assert objective.optimizers(args)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cotam-vitl14-336.yaml", ["--dataloader_num_workers", 0, "--preset", "official"]),
        ("cotam-tiny.yaml", ["--coded_variants", 1, "--use_guide", "false", "--low_weight", 0]),
        ("cotam-tiny.yaml", ["--coded_variants", 1, "--use_reconstruction_prior", "false", "--guide_layers", 3, 4]),
    ],
)
def test_trainings_of_cotam_run_at_small_size(name, words, data_folder, codec_folder, clip_folder, tmp_path):
    command = ["--data", data_folder, "--clip", clip_folder, "--codec", codec_folder, "--output_dir", tmp_path]
    command += ["--steps", 4, "--batch_size", 2, "--validation_pictures", 4, "--logging_steps", 1, *words]
    run_script("train_cotam", CONFIGS / name, *command, "--warmup_steps", 1)
    log = json.loads((tmp_path / "log.json").read_text())
    assert sum("loss" in entry for entry in log["log"]) == 4
    validation = log["log"][-1]
    assert validation["validation_bytes_per_picture@-1"] < validation["validation_bytes_per_picture@0"]
    config = CotamModel.from_pretrained(tmp_path / "model").config
    assert config.use_guide == (log["config"]["use_guide"] is None)  # on, unless it is switched off
    assert config.vision_config.use_reconstruction_prior == log["config"]["use_reconstruction_prior"]
    assert config.vision_config.post_layernorm_repeats == 1 + (log["config"]["preset"] == "official")
    assert list(config.guide_layers) == (log["config"]["guide_layers"] or [0, 1, 2])


def test_a_neck_for_every_rate_is_trained_on_random_gains(data_folder, codec_folder, clip_folder, tmp_path):
    words = ["--data", data_folder, "--clip", clip_folder, "--codec", codec_folder, "--steps", 3, "--batch_size", 2]
    words += ["--calibration_pictures", 2, "--validation_pictures", 4, "--gain_range", -1, 1, "--logging_steps", 1]
    logs = {}
    for name, more in {"fresh": [], "coded": ["--coded_variants", 1], "other": ["--gain_range", -1, 0.9]}.items():
        run_script("train_comneck", "--output_dir", tmp_path / name, *words, *more)
        logs[name] = json.loads((tmp_path / name / "log.json").read_text())["log"]
        assert sum("loss" in entry for entry in logs[name]) == 3
    assert logs["fresh"][0]["loss"] != logs["other"][0]["loss"]
    with pytest.raises(ValueError, match="Use random gains where it is frozen"):
        run_script("train_comneck", "--output_dir", tmp_path / "d2", "--scenario", "d2", *words)
