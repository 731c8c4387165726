import copy
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoProcessor, AutoTokenizer, CLIPModel

from comneck_hf.training.clip import (
    WeightAverage,
    balanced_order,
    build_clip,
    build_tokenizer,
    evaluate_zero_shot,
    image_embeddings,
    mix_images,
    parameter_groups,
    save_clip,
    separate_captions,
    text_embeddings,
)
from comneck_hf.training.clip_trainer import ClipTrainer, ClipTrainingArguments
from comneck_hf.training.data import ImagePack
from comneck_hf.training.zero_shot import ClassPrompts, load_class_prompts, save_class_prompts, zero_shot_weights


TEMPLATES = ("a photo of a {}.", "a drawing of the {}.", "{}")
CLASSES = ("accordion", "bonsai", "cup", "red circle", "windsor chair", "yin yang")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer([template.format(name) for name in CLASSES for template in TEMPLATES])


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    return build_clip(tokenizer).eval()


def make_pack(count: int, *, size: int = 20) -> ImagePack:
    """Pictures of one color per class, which any model that learns at all can tell apart."""
    colors = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250], [250, 250, 10], [10, 250, 250], [9, 9, 9]])
    labels = torch.arange(count) % len(CLASSES)
    noise = torch.randint(-8, 6, (count, 3, size, size), generator=generator())
    images = (colors[labels][:, :, None, None] + noise).clamp(0, 255).to(torch.uint8)
    return ImagePack(images, labels, CLASSES)


def make_trainer(*, trainer_class: type[ClipTrainer] = ClipTrainer, **settings: object) -> ClipTrainer:
    values = {"resolutions": [28, 56], "epochs": [2, 1], "batch_size": 16, "text_steps": 2, "guide_epochs": 1}
    args = ClipTrainingArguments(
        **(values | {"average_decay": 0.5, "evaluate_every": 2, "validation_crop": 16} | settings)
    )
    shapes = ImagePack(make_pack(12).images, torch.arange(12) % 2, ("black circle", "teal triangle"))
    packs = (make_pack(48), shapes)
    return trainer_class(args, train=packs, validation=packs, templates=TEMPLATES)


def test_any_text_gets_tokens_between_start_and_end_and_comes_back_in_lower_case(tokenizer):
    for text in ("a photo of a cup.", "Zebra crossing #7", "caf\u00e9 \u4e2d"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id == 1
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower()


def test_words_of_the_prompts_are_single_tokens(tokenizer):
    assert len(tokenizer("a photo of a windsor chair.")["input_ids"]) == 2 + 7


def test_long_text_is_cut_but_keeps_its_end_token(tokenizer):
    ids = tokenizer("xyz " * 100, truncation=True)["input_ids"]
    assert len(ids) == tokenizer.model_max_length and ids[-1] == tokenizer.eos_token_id


def test_a_text_has_the_same_embedding_alone_and_in_a_padded_batch(model, tokenizer):
    with torch.no_grad():
        alone = text_embeddings(model, tokenizer, ["a cup"])
        batch = text_embeddings(model, tokenizer, ["a cup", "a photo of a very long windsor chair, with much text"])
    assert torch.allclose(alone[0], batch[0], atol=1e-5)
    assert not torch.allclose(batch[0], batch[1], atol=1e-3)


def test_zero_shot_weights_are_unit_norm_means_of_unit_norm_prompt_embeddings(model, tokenizer):
    weights = zero_shot_weights(model, tokenizer, class_names=CLASSES, templates=TEMPLATES)
    assert weights.shape == (len(CLASSES), 128) and not weights.requires_grad
    with torch.no_grad():
        prompts = tokenizer([t.format("bonsai") for t in TEMPLATES], padding=True, return_tensors="pt")
        features = model.get_text_features(**prompts).pooler_output
    expected = F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1)
    assert torch.allclose(weights[1], expected, atol=1e-5)
    assert torch.allclose(weights.norm(dim=-1), torch.ones(len(CLASSES)))


def test_zero_shot_weights_leave_the_mode_of_the_model_alone(model, tokenizer):
    model.train()
    zero_shot_weights(model, tokenizer, class_names=("cup",), templates=TEMPLATES)
    assert model.training


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_templates_without_exactly_one_place_for_the_name_are_refused(template):
    with pytest.raises(ValueError, match="exactly once"):
        ClassPrompts((template,), CLASSES)


def test_prompts_without_classes_are_refused():
    with pytest.raises(ValueError, match="class_names is empty"):
        ClassPrompts(TEMPLATES, ())


def test_class_prompts_survive_saving_and_load_from_file_or_folder(tmp_path):
    prompts = ClassPrompts(TEMPLATES, CLASSES)
    save_class_prompts(prompts, tmp_path)
    assert load_class_prompts(tmp_path) == prompts
    assert load_class_prompts(tmp_path / "zero_shot.json") == prompts


def test_missing_or_incomplete_prompts_are_reported(tmp_path):
    with pytest.raises(ValueError, match="no class prompts at"):
        load_class_prompts(tmp_path)
    (tmp_path / "zero_shot.json").write_text(json.dumps({"templates": ["{}"]}))
    with pytest.raises(ValueError, match="lacks a field"):
        load_class_prompts(tmp_path)


def test_a_saved_model_loads_as_float32_through_the_auto_classes_from_half_the_bytes(tmp_path, model, tokenizer):
    save_clip(model, tmp_path, tokenizer=tokenizer, prompts=ClassPrompts(TEMPLATES, CLASSES))
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, CLIPModel) and loaded.dtype == torch.float32
    assert (tmp_path / "model.safetensors").stat().st_size < 2.1 * model.num_parameters()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float())
    text = "A photo of a Windsor chair, and more"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]
    inputs = AutoProcessor.from_pretrained(tmp_path)(
        images=torch.zeros((3, 150, 200), dtype=torch.uint8), text=text, return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, 112, 112)
    assert inputs["input_ids"][0].tolist() == tokenizer(text)["input_ids"]


def test_separated_captions_are_less_alike_than_fresh_ones(model, tokenizer):
    def likeness() -> torch.Tensor:
        embeddings = text_embeddings(model, tokenizer, CLASSES)
        return (embeddings @ embeddings.T).mean().detach()

    before = likeness()
    separate_captions(
        model, tokenizer, class_names=CLASSES, templates=TEMPLATES, steps=12, generator=generator(), learning_rate=1e-3
    )
    assert likeness() < before - 0.3
    assert all(parameter.grad is None for parameter in model.parameters())


def test_image_embeddings_take_smaller_pictures_and_match_transformers_at_full_size(model):
    pixels = torch.randn((2, 3, 112, 112), generator=generator())
    with torch.no_grad():
        expected = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        assert torch.allclose(image_embeddings(model, pixels), expected, atol=1e-5)
        assert image_embeddings(model, pixels[:, :, :56, :56]).shape == (2, 128)


def test_a_balanced_epoch_shows_rare_classes_more_often_than_the_data_does():
    labels = torch.tensor([0] * 900 + [1] * 100)
    counts = labels[balanced_order(labels, generator=generator())].bincount()
    assert 690 < counts[0] < 810 and 220 < counts[1] < 280  # 3 to 1 instead of 9 to 1
    assert torch.equal(labels[balanced_order(labels, generator=generator(), power=0.0)].bincount(), labels.bincount())


def test_mixed_targets_say_how_much_of_each_picture_is_there():
    targets = torch.eye(4)
    for seed in range(20):
        images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16).clone()
        mixed, mixed_targets = mix_images(images, targets, generator=generator(seed))
        assert torch.allclose(mixed_targets.sum(1), torch.ones(4))
        assert torch.allclose(mixed.mean((1, 2, 3)), mixed_targets @ torch.arange(4.0), atol=1e-4)


def test_only_matrices_decay(model):
    decayed, kept = parameter_groups(model, weight_decay=0.1)
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0.0
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))
    assert any(parameter is model.logit_scale for parameter in kept["params"])
    assert any(parameter is model.visual_projection.weight for parameter in decayed["params"])


def test_the_weight_average_lags_behind_and_then_arrives():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = WeightAverage(layer, decay=0.9)
    torch.nn.init.ones_(layer.weight)
    average.update(layer)
    assert 0 < average.weights["weight"].item() < 1
    for _ in range(200):
        average.update(layer)
    assert average.weights["weight"].item() == pytest.approx(1.0, abs=1e-3)


def test_evaluation_counts_right_pictures(model, tokenizer):
    weights = zero_shot_weights(model, tokenizer, class_names=CLASSES, templates=TEMPLATES)
    pack = make_pack(12)
    accuracy = evaluate_zero_shot(model, tokenizer, pack, templates=TEMPLATES, size=56)
    assert set(accuracy) == {"top1", "top5"} and 0 <= accuracy["top1"] <= accuracy["top5"] <= 100
    swapped = ImagePack(pack.images, pack.labels, pack.class_names[::-1])
    reverse = evaluate_zero_shot(model, tokenizer, swapped, templates=TEMPLATES, size=56)
    mirrored = ImagePack(pack.images, len(CLASSES) - 1 - pack.labels, pack.class_names)
    assert reverse == evaluate_zero_shot(model, tokenizer, mirrored, templates=TEMPLATES, size=56)
    assert weights.shape[0] == len(CLASSES)


def test_training_learns_colors(tmp_path):
    trainer = make_trainer(epochs=[8, 1], learning_rate=2e-3, text_steps=8, guide_epochs=4, mix_probability=0.0)
    history = trainer.train(tmp_path)
    guide = [entry for entry in history if "guide_epoch" in entry]
    tower = [entry for entry in history if "epoch" in entry]
    assert [len(guide), len(tower)] == [4, 9]
    assert guide[-1]["photos"]["top1"] > 40  # chance is 17
    assert tower[-1]["loss"] < tower[0]["loss"] - 0.3
    assert tower[-1]["photos"]["top1"] > 40


def test_the_text_tower_and_the_guide_stay_as_they_were_while_the_vision_tower_learns(tmp_path):
    trainer = make_trainer(epochs=[1, 0])
    trainer.train_text()
    trainer.train_guide()
    model, guide = copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(trainer.guide.state_dict())
    trainer.train_epoch(0)
    for name, tensor in trainer.model.state_dict().items():
        if name.startswith("text_"):
            assert torch.equal(tensor, model[name]), name
    assert not torch.equal(trainer.model.visual_projection.weight, model["visual_projection.weight"])
    assert all(torch.equal(tensor, guide[name]) for name, tensor in trainer.guide.state_dict().items())


class InterruptedTrainer(ClipTrainer):
    """Stops before the second epoch, as a killed process would."""

    def train_epoch(self, epoch: int) -> dict:
        if epoch == 1:
            raise KeyboardInterrupt
        return super().train_epoch(epoch)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path):
    whole = make_trainer()
    whole.train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        make_trainer(trainer_class=InterruptedTrainer).train(tmp_path / "first")
    resumed = make_trainer()
    resumed.train(tmp_path / "resumed", checkpoint=tmp_path / "first" / "checkpoint.pt")
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in whole.history]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)


def test_stages_and_epochs_must_correspond():
    with pytest.raises(ValueError, match="one per stage"):
        ClipTrainingArguments(resolutions=[56, 112], epochs=[1])
