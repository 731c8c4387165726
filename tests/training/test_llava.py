"""Training a LLaVA: frozen parts, schedules, and resuming to the bit."""

import json
import shutil

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    TrainerState,
)
from typer.testing import CliRunner

from comneck_hf import LlavoltaForConditionalGeneration, pretrained
from comneck_hf.cli import app
from comneck_hf.commands.ask import load_llava
from comneck_hf.evaluation.answers import prompt_inputs
from comneck_hf.training.conversations import conversation
from comneck_hf.training.llava import CHAT_TEMPLATE, last_checkpoint
from comneck_hf.training.visual_pooling import POOLING_SCHEDULES, PoolingStage, VisualPoolingCallback

from .launch import launch, load_script, run_script


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
RUN = {"vocab_size": 300, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none", "max_turns": 2}


def words(options):
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def command(data_folder, shapes_folder):
    def make(folder, **options):
        data = {"data": data_folder, "questions_data": shapes_folder, "output_dir": folder}
        return words({**data, **SIZES, **RUN, "remove_unused_columns": "false", "learning_rate": 1e-2, **options})

    return make


def test_a_killed_run_goes_on_to_the_same_bits_and_stages(command, tmp_path):
    options = {"max_steps": 8, "save_steps": 2, "pooling": "4stage"}
    launch("train_llava", *command(tmp_path / "whole", **options), processes=1)
    kill_at = tmp_path / "killed" / "checkpoint-4" / "model.safetensors"  # while a checkpoint is written
    launch("train_llava", *command(tmp_path / "killed", **options), processes=1, kill_at=kill_at)
    assert last_checkpoint(tmp_path / "killed") is not None
    launch("train_llava", *command(tmp_path / "killed", **options), processes=1)
    weights = [load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    logs = [json.loads((tmp_path / run / "log.json").read_text())["log_history"] for run in ("whole", "killed")]
    steps = [[entry for entry in log if "loss" in entry] for log in logs]
    assert [entry["pool_stride"] for entry in steps[0]] == [8, 8, 2, 2, 2, 2, 1, 1]
    assert [entry["pool_layer"] for entry in steps[0]] == [1, 1, 1, 1, 2, 2, 2, 2]
    assert [entry["pooling_stage"] for entry in steps[0]] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [(e["loss"], e["pool_stride"]) for e in steps[0]] == [(e["loss"], e["pool_stride"]) for e in steps[1]]
    assert steps[0][0]["compression_ratio"] == pytest.approx(4 * 64 / (3 * 8 + 64))


def test_the_tower_stays_and_everything_else_learns(command, tmp_path):
    run_script("train_llava", *command(tmp_path, max_steps=3))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert type(model) is LlavaForConditionalGeneration
    clip = CLIPModel.from_pretrained(pretrained("comneck-tiny-clip")).vision_model.state_dict()
    assert all(torch.equal(value, clip[name]) for name, value in model.model.vision_tower.state_dict().items())
    log = json.loads((tmp_path / "log.json").read_text())["log_history"]
    assert log[2]["loss"] < log[0]["loss"]
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert type(processor) is LlavaProcessor
    inputs = processor(
        text="USER: <image> what is this? ASSISTANT:", images=Image.new("RGB", (90, 70)), return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """Folder of a LLaVA that hardly learned anything."""
    folder = tmp_path_factory.mktemp("llava")
    run_script("train_llava", *command(folder, max_steps=1))
    return folder / "model"


@pytest.fixture
def chats(tmp_path):
    """A data set in LLaVA's format."""
    folder = tmp_path / "chats"
    (folder / "data").mkdir(parents=True)
    rows = {
        "image": [Image.new("RGB", (64, 64), (40 * index, 0, 0)) for index in range(6)],
        "conversations": [[{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]] * 6,
    }
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(
        folder / "data" / "train.parquet"
    )
    return folder


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_any_llava_is_fine_tuned_with_a_schedule(trained, chats, tmp_path, lora_rank):
    """From weights that are stored in half precision, as those of LLaVA are."""
    half = AutoModelForImageTextToText.from_pretrained(trained, dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    AutoProcessor.from_pretrained(trained).save_pretrained(tmp_path / "half")
    options = {
        "model": tmp_path / "half",
        "data": chats,
        "pooling": "three-stage",
        "lora_rank": lora_rank,
        "output_dir": tmp_path / "tuned",
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "report_to": "none",
        "remove_unused_columns": "false",
    }
    run_script("train_llavolta", *words(options))
    log = json.loads((tmp_path / "tuned" / "log.json").read_text())["log_history"]
    assert [entry["pool_stride"] for entry in log[:6]] == [8, 8, 8, 8, 2, 2]
    assert [entry["pool_layer"] for entry in log[:6]] == [1, 1, 2, 2, 2, 2]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "tuned" / "model")
    assert type(model) is LlavoltaForConditionalGeneration
    assert (model.config.text_config.pool_layer, model.config.text_config.pool_stride) == (2, 2)
    assert model.dtype == torch.float32
    before = half.float().state_dict()
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert "model.language_model.layers.3.mlp.up_proj.weight" in changed
    assert not any("vision_tower" in name for name in changed)
    if lora_rank:
        assert all(name.endswith("_proj.weight") and "language_model" in name for name in changed)
        adapters = load_file(tmp_path / "tuned" / "adapter" / "adapter_model.safetensors")
        assert adapters and all("language_model" in name for name in adapters)


def test_answers_at_every_stride_are_measured(trained, data_folder, shapes_folder, tmp_path):
    options = {
        "llava": trained,
        "data": data_folder,
        "questions_data": shapes_folder,
        "questions": 8,
        "output": tmp_path / "results.json",
        "figure": tmp_path / "figure.png",
    }
    run_script("evaluate_pooling", *words(options), "--strides", "1", "4")
    rows = json.loads((tmp_path / "results.json").read_text())["strides"]
    assert [(row["task"], row["pool_stride"]) for row in rows] == [
        ("naming", 1),
        ("naming", 4),
        ("questions", 1),
        ("questions", 4),
    ]
    output = tmp_path / "plain.json"
    command = ["eval", "--data", str(data_folder), "--questions-data", str(shapes_folder), "--questions", "8"]
    command += [
        "--llava",
        str(trained),
        "--baseline",
        "original",
        "--task",
        "naming",
        "--task",
        "questions",
        "--quiet",
    ]
    result = CliRunner().invoke(app, [*command, "-o", str(output)])
    assert result.exit_code == 0, result.output
    for row in rows[::2]:  # a stride of one changes nothing
        original, d1 = json.loads(output.read_text())["tasks"][row["task"]]["systems"]
        assert original["results"]["accuracy"] == [row["accuracy"]]
        assert d1["results"]["bytes"][0] > 0
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_files_are_asked_about_at_the_command_line(trained, tmp_path):
    Image.linear_gradient("L").convert("RGB").save(tmp_path / "photo.png")
    (tmp_path / "broken.cnk").write_bytes(b"CNK")
    runner = CliRunner()
    coded = runner.invoke(app, ["encode", str(tmp_path / "photo.png"), "-o", str(tmp_path)])
    assert coded.exit_code == 0, coded.output
    question = ["what is this?", "--llava", str(trained), "--json"]
    asked = runner.invoke(app, ["ask", str(tmp_path / "photo.cnk"), *question])
    assert asked.exit_code == 0, asked.output
    (result,) = json.loads(asked.stdout)
    llava, processor = load_llava(str(trained), "comneck-tiny-d1-q2", device="cpu", dtype=torch.float32)
    prompt = processor.apply_chat_template(conversation([("what is this?", None)]))
    inputs = processor(text=prompt, images=tmp_path / "photo.cnk", add_special_tokens=False, return_tensors="pt")
    output = llava.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert result["answer"] == processor.decode(output, skip_special_tokens=True).strip()
    longer = runner.invoke(app, ["ask", str(tmp_path / "photo.cnk"), *question, "--max-new-tokens", "1"])
    assert result["answer"].startswith(json.loads(longer.stdout)[0]["answer"])
    both = runner.invoke(app, ["ask", str(tmp_path), *question])
    assert both.exit_code == 1
    assert ["error" in one for one in json.loads(both.stdout)] == [True, False]


LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@pytest.mark.parametrize("template", [LLAVA_TEMPLATE, CHAT_TEMPLATE])
def test_prompts_are_those_of_the_models_own_template(trained, template):
    """A template like LLaVA 1.5's writes neither the first token nor the last words by itself."""
    processor = AutoProcessor.from_pretrained(trained)
    processor.chat_template = template
    start = ("<s>", processor.tokenizer.bos_token_id)
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[start])
    expected = processor.apply_chat_template(
        conversation([("what?", None)]),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images": [Image.new("RGB", (64, 64))]},
    )
    found = prompt_inputs(processor, ["what?", "what is it?"], [64, 64])
    row = found["input_ids"][0][found["attention_mask"][0].bool()]
    assert torch.equal(row, expected["input_ids"][0])
    text = processor.decode(row).replace("<image>" * 64, "<image>")
    assert text.startswith("<s>USER: <image>") and text.endswith("what? ASSISTANT:") and text.count("<s>") == 1


def test_the_benchmark_of_pooling_is_written(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    more = {"vocab_size": 40, "visual_tokens": 16, "text_tokens": 4, "repeats": 1}
    files = {"output": tmp_path / "llavolta.json", "figure": tmp_path / "llavolta.png"}
    run_script("benchmark_llavolta", *words({**sizes, **more, **files}), "--layers", "1", "2", "--strides", "4")
    results = json.loads((tmp_path / "llavolta.json").read_text())
    assert [(row["pool_layer"], row["pool_stride"]) for row in results["settings"]] == [(1, 1), (1, 4), (2, 4)]


def test_adapters_without_peft_say_what_is_missing(monkeypatch):
    script = load_script("train_llavolta")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match=r"comneck_hf\[peft\]"):
        script.with_adapters(torch.nn.Linear(1, 1), 2)


@pytest.mark.parametrize("name", sorted(POOLING_SCHEDULES))
def test_schedules_are_the_papers_at_its_depth(name):
    callback = VisualPoolingCallback(name)
    shares = [callback.stages[callback.stage_at(step / 5198)] for step in range(5198)]
    found = {stage: (stage.layer_of(32), stage.stride) for stage in dict.fromkeys(shares)}
    expected = {
        "4stage": [(2, 8), (2, 2), (16, 2), (16, 1)],
        "three-stage": [(2, 8), (16, 8), (16, 2)],
        "heavy": [(2, 8)],
        "light": [(16, 8)],
    }
    assert list(found.values()) == expected[name]
    if name == "4stage":
        pivots = [index for index in range(1, 5198) if shares[index] != shares[index - 1]]
        assert pivots == [1300, 2599, 3899]  # the released code: 1300, 2600, 3900 of 5,198 steps


def test_wrong_schedules_and_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`schedule` must be one of"):
        VisualPoolingCallback("5stage")
    with pytest.raises(ValueError, match="the last at 1.0, got"):
        VisualPoolingCallback((PoolingStage(0.5, 2, 8),))
    state = TrainerState(global_step=0, max_steps=4)
    with pytest.raises(ValueError, match="Linear does not pool visual tokens"):
        VisualPoolingCallback("heavy").on_step_begin(None, state, None, model=torch.nn.Linear(1, 1))
    state, logs = TrainerState(global_step=0, max_steps=0, log_history=[{}]), {}
    VisualPoolingCallback("heavy").on_log(None, state, None, logs=logs, model=torch.nn.Linear(1, 1))
    assert logs == {}  # of an evaluation without training


def test_checkpoints_that_were_cut_off_are_passed_over(tmp_path):
    for step, text in ((2, '{"global_step": 2}'), (10, '{"global_step": 10}'), (12, '{"glo'), (14, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            (folder / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    shutil.rmtree(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert last_checkpoint(tmp_path / "nowhere") is None
