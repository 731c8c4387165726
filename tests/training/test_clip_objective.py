"""The small CLIP's objective: what learns in which stage, and what comes out."""

import copy

import pytest
import torch
from transformers import CLIPModel

from comneck_hf.training.arguments import RunArguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.clip_objective import BalancedPictures, ClipObjective, clip_stages
from comneck_hf.training.data import ImagePack
from comneck_hf.training.zero_shot import load_class_prompts


CLASSES = ("red", "green", "blue")
TEMPLATES = ("a photo of a {}.", "{}")


def colors(count: int) -> ImagePack:
    """Pictures of one color per class, which any model that learns at all can tell apart."""
    shades = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250]])
    labels = torch.arange(count) % 3
    noise = torch.randint(-8, 6, (count, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    return ImagePack((shades[labels][:, :, None, None] + noise).clamp(0, 255).to(torch.uint8), labels, CLASSES)


@pytest.fixture
def pictures() -> BalancedPictures:
    shapes = ImagePack(colors(12).images.flip(1), torch.arange(12) % 2, ("black circle", "teal triangle"))
    return BalancedPictures(colors(30), shapes, Augmentation(56, jitter=0.1))


@pytest.fixture
def objective(pictures) -> ClipObjective:
    torch.manual_seed(0)
    stages = clip_stages(text_steps=3, guide_steps=3, vision_steps=[3, 3], resolutions=[28, 56])
    return ClipObjective(pictures.source.class_names, TEMPLATES, stages, mix_probability=0.5, average_decay=0.5)


def train(objective: ClipObjective, pictures: BalancedPictures, stage_index: int, *, steps: int) -> list[float]:
    stage = objective.stages[stage_index]
    objective.begin(stage)
    objective.train()
    (optimizer,) = objective.optimizers(RunArguments(output_dir="", learning_rate=2e-3, weight_decay=0.1))
    losses = []
    for step in range(steps):
        pictures.set_epoch(step)
        loss, _ = objective(pictures.__getitems__(list(range(16))), stage)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(stage)
        losses.append(loss.item())
    return losses


def test_every_stage_trains_its_part_alone(objective, pictures):
    prefixes = {
        "text": ("clip.text_model", "clip.text_projection"),
        "guide": ("guide",),
        "vision": ("clip.vision_model", "clip.visual_projection", "clip.logit_scale", "hint", "average"),
    }
    for index, stage in enumerate(objective.stages):
        before = copy.deepcopy(objective.state_dict())
        train(objective, pictures, index, steps=2)
        changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
        assert changed
        assert all(name.startswith(prefixes[stage.trains[0]]) for name in changed), (stage.name, changed)


def test_guide_and_vision_tower_learn_colors(objective, pictures):
    train(objective, pictures, 0, steps=8)
    train(objective, pictures, 1, steps=25)
    losses = train(objective, pictures, 2, steps=40)
    assert losses[-1] < losses[0] - 0.3
    for stage in objective.stages[1:3]:
        accuracy = objective.evaluate(stage, colors(30), crop_size=48)
        assert accuracy["top1"] > 60, stage.name  # chance is 20
        assert accuracy["top5"] >= accuracy["top1"]


def test_the_average_lags_behind_and_is_what_is_saved(objective, pictures, tmp_path):
    train(objective, pictures, 0, steps=1)
    train(objective, pictures, 3, steps=3)
    weight = objective.clip.visual_projection.weight
    average = objective.average.module.visual_projection.weight
    assert not torch.equal(weight, average)
    objective.save(tmp_path)
    saved = CLIPModel.from_pretrained(tmp_path).visual_projection.weight
    assert torch.equal(saved, average.half().float())
    assert load_class_prompts(tmp_path).class_names == (*CLASSES, "black circle", "teal triangle")
    for _ in range(30):
        objective.after_step(objective.stages[3])
    assert torch.allclose(weight, average, atol=1e-6)


def test_the_temperature_keeps_its_bound(objective):
    with torch.no_grad():
        objective.clip.logit_scale.fill_(9.0)
    objective.after_step(objective.stages[2])
    assert objective.clip.logit_scale.exp().item() == pytest.approx(100)


def test_an_epoch_mixes_photographs_and_some_shapes_anew(pictures):
    assert len(pictures) == 33
    first = pictures.order
    assert sorted(first[:30].tolist()) == list(range(30)) and (first[30:] >= 30).all()
    pictures.set_epoch(1)
    assert not torch.equal(pictures.order, first)
    pictures.set_epoch(0)
    assert torch.equal(pictures.order, first)
    batch = pictures.__getitems__([0, 32])
    assert batch["labels"].tolist() == [pictures.source.labels[first[0]], pictures.source.labels[first[32]]]


def test_resolutions_and_steps_must_correspond():
    with pytest.raises(ValueError, match="one per stage"):
        clip_stages(text_steps=1, guide_steps=1, vision_steps=[1], resolutions=[56, 112])
