"""The files for `accelerate launch`: accelerate reads them, and the trainings run sharded as they say, on CPUs."""

import json
import os
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from safetensors.torch import load_file

from .launch import launch, run_script
from .test_loop import codec_words, comneck_words, same_weights


CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"


def environment(name: str, *flags: str) -> dict[str, str]:
    """What `accelerate launch --config_file` tells the processes that it starts."""
    words = ["--config_file", str(CONFIGS / name), *flags, "script.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = list(defaults.deepspeed_config)
        found = prepare_deepspeed_cmd_env(args)[1]
    else:
        found = prepare_multi_gpu_env(args)
    found["FSDP_SYNC_MODULE_STATES"] = "false"  # FSDP2 does not look at it, but it asks for an accelerator
    return {key: value for key, value in found.items() if key.startswith(("ACCELERATE_", "FSDP_"))}


@pytest.fixture
def sharded(monkeypatch, tmp_path):
    """This process as the only one that `accelerate launch` started with the file for FSDP2."""
    before = set(os.environ)
    for key, value in environment("fsdp2.yaml").items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    for key in set(os.environ) - before:
        os.environ.pop(key)


def test_accelerate_reads_the_files():
    assert {path.name for path in CONFIGS.iterdir()} == {"fsdp2.yaml", "deepspeed_zero2.yaml"}
    variables = environment("fsdp2.yaml")
    assert variables["ACCELERATE_USE_FSDP"] == "true"
    assert (variables["FSDP_VERSION"], variables["ACCELERATE_MIXED_PRECISION"]) == ("2", "no")
    assert variables["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert variables["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "CLIPEncoderLayer"
    assert variables["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"
    layers = "LlamaDecoderLayer,CLIPEncoderLayer"
    variables = environment("fsdp2.yaml", "--fsdp_transformer_layer_cls_to_wrap", layers)
    assert variables["FSDP_TRANSFORMER_CLS_TO_WRAP"] == layers
    variables = environment("deepspeed_zero2.yaml")
    assert variables["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert (variables["ACCELERATE_DEEPSPEED_ZERO_STAGE"], variables["ACCELERATE_MIXED_PRECISION"]) == ("2", "bf16")


@pytest.mark.sharded
def test_a_sharded_neck_training_equals_a_whole_one_and_resumes(data_folder, codec_folder, clip_folder, tmp_path):
    """Same losses and weights as with DDP up to rounding; same bits after SIGKILL."""
    words = [*comneck_words(data_folder, codec_folder, clip_folder), "--steps", 6, "--logging_steps", 1]
    words += ["--checkpointing_steps", 1, "--validation_steps", 3, "--resume_from_checkpoint", "true", "--output_dir"]
    variables = environment("fsdp2.yaml")
    launch("train_comneck", *words, tmp_path / "whole", processes=2)
    launch("train_comneck", *words, tmp_path / "sharded", processes=2, environment=variables)
    kill_at = tmp_path / "killed" / "checkpoints" / "step-00000003"
    launch("train_comneck", *words, tmp_path / "killed", processes=2, kill_at=kill_at, environment=variables)
    launch("train_comneck", *words, tmp_path / "killed", processes=2, environment=variables)
    assert list((tmp_path / "sharded" / "checkpoints" / "step-00000006").glob("pytorch_model_fsdp_0/__1_0.distcp"))
    assert same_weights(tmp_path / "sharded" / "model", tmp_path / "killed" / "model")

    weights = [load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "sharded")]
    assert weights[0].keys() == weights[1].keys()
    for name, expected in weights[0].items():
        assert torch.allclose(weights[1][name].float(), expected.float(), rtol=1e-3, atol=1e-4), name
    logs = [json.loads((tmp_path / run / "log.json").read_text())["log"] for run in ("whole", "sharded")]
    for key in ("loss", "validation_score"):
        curves = [[entry[key] for entry in log if key in entry] for log in logs]
        assert curves[1] == pytest.approx(curves[0], rel=2e-3)
        assert len(set(curves[0])) > 1 or key != "loss"


@pytest.mark.sharded
def test_a_sharded_llava_training_resumes_and_leaves_a_whole_model(data_folder, shapes_folder, tmp_path):
    layers = "LlamaDecoderLayer,CLIPEncoderLayer"
    variables = environment("fsdp2.yaml", "--fsdp_transformer_layer_cls_to_wrap", layers)
    options = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    options |= {"vocab_size": 300, "per_device_train_batch_size": 2, "max_turns": 2, "max_steps": 5, "save_steps": 1}
    options |= {"learning_rate": 1e-2, "remove_unused_columns": "false", "report_to": "none", "use_cpu": "true"}
    options |= {"data": data_folder, "questions_data": shapes_folder, "pooling": "4stage"}
    words = [text for name, value in options.items() for text in (f"--{name}", value)]
    launch("train_llava", *words, "--output_dir", tmp_path / "whole", processes=2)
    launch("train_llava", *words, "--output_dir", tmp_path / "sharded", processes=2, environment=variables)
    words += ["--output_dir", tmp_path / "killed"]
    kill_at = tmp_path / "killed" / "checkpoint-3"
    launch("train_llava", *words, processes=2, kill_at=kill_at, environment=variables)
    launch("train_llava", *words, processes=2, environment=variables)
    assert same_weights(tmp_path / "sharded" / "model", tmp_path / "killed" / "model")
    weights = [load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "sharded")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[1][name], value, atol=2e-3) for name, value in weights[0].items())


def test_what_fsdp2_would_change_or_break_is_refused(sharded, data_folder, codec_folder, clip_folder, tmp_path):
    words = [*comneck_words(data_folder, codec_folder, clip_folder), "--steps", 2, "--output_dir", tmp_path]
    with pytest.raises(ValueError, match="`mixed_precision` is 'bf16', but FSDP2 would round all weights"):
        run_script("train_comneck", *words, "--mixed_precision", "bf16")
    with pytest.raises(ValueError, match="Stage 'noise' trains a codec, with two optimizers"):
        run_script("train_codec", *codec_words(data_folder), "--steps", 2, "--output_dir", tmp_path)


def test_the_first_fsdp_is_refused(sharded, monkeypatch, data_folder, codec_folder, clip_folder, tmp_path):
    monkeypatch.setenv("FSDP_VERSION", "1")
    words = [*comneck_words(data_folder, codec_folder, clip_folder), "--steps", 2, "--output_dir", tmp_path]
    with pytest.raises(ValueError, match="does not run with FSDP version 1. Use torchrun alone"):
        run_script("train_comneck", *words)
