"""ComNeck's objective: what trains, where gradients flow, and that they are right."""

import copy

import pytest
import torch
from transformers import CLIPModel

from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.arguments import RunArguments
from comneck_hf.training.objective import CodecObjective
from comneck_hf.training.stages import PRESETS, Stage, codec_stages, comneck_stages
from comneck_hf.training.surrogate import ComNeckObjective, check_targets, parse_targets, teacher_features


TARGETS = {"image_embeds": 1.0, "last_hidden_state": 0.5, "hidden_states[-2]": 0.25}


@pytest.fixture
def model(codec_folder, clip) -> ComNeckModel:
    torch.manual_seed(0)
    codec = ElicModel.from_pretrained(codec_folder)
    return ComNeckModel.from_codec_and_clip(codec, clip, num_skipped_layers=2)


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    return {"pixel_values": synthetic_pictures(128, 2), "labels": torch.tensor([0, 2])}


def new_objective(
    model: ComNeckModel, clip: CLIPModel, scenario: str = "d1", *, stages: tuple[Stage, ...] = (), **options: object
) -> ComNeckObjective:
    weights = torch.nn.functional.normalize(torch.randn(3, 128, generator=torch.Generator().manual_seed(0)), dim=-1)
    stages = stages or comneck_stages(scenario, PRESETS["paper"], lmbda=1.0)
    pictures = synthetic_pictures(128, 2)
    return ComNeckObjective(model, clip, stages, zero_shot_weights=weights, calibration_pictures=pictures, **options)


def trained_names(objective: torch.nn.Module) -> set[str]:
    return {name for name, parameter in objective.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("scenario", ["d1", "d2", "d3"])
def test_a_step_of_every_stage_changes_its_parts_and_nothing_else_by_one_bit(model, clip, batch, scenario):
    objective = new_objective(model, clip, scenario)
    teacher = copy.deepcopy(clip.state_dict())
    for stage in objective.stages:
        objective.begin(stage)
        objective.train()
        before = copy.deepcopy(objective.state_dict())
        expected = {
            name
            for name, _ in objective.named_parameters()
            if ".neck." in name
            or ("codec" in stage.trains and name.startswith("model.codec."))
            or ("encoder" in stage.trains and name.startswith("model.codec.") and ".g_s." not in name)
        }
        optimizers = objective.optimizers(RunArguments(output_dir="", learning_rate=1e-2))
        loss, _ = objective(batch, stage)
        loss.backward()
        # All of them, so that DistributedDataParallel finds no unused parameter.
        assert trained_names(objective) == expected
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
        assert changed <= expected
        assert any(".neck." in name for name in changed)
        assert any("codec" in name for name in changed) == (len(stage.trains) == 2)
    assert all(torch.equal(value, teacher[name]) for name, value in clip.state_dict().items())
    assert not any("_clip" in name for name in objective.state_dict())


def test_every_parameter_of_a_codec_trains(codec_folder, batch):
    codec = ElicModel.from_pretrained(codec_folder)
    objective = CodecObjective(codec, codec_stages(0.01), synthetic_pictures(64, 2))
    for stage in objective.stages:
        objective.begin(stage)
        loss, terms = objective(batch, stage)
        loss.backward()
        assert trained_names(objective) == {name for name, _ in objective.named_parameters()}
        assert terms["loss"].item() == pytest.approx(
            terms["rate"].item() + 0.01 * 255**2 * terms["reconstruction"].item(), rel=1e-5
        )
        objective.zero_grad()


def test_gradients_through_the_frozen_clip_agree_with_finite_differences(model, clip, batch):
    """In float64; latents stand for the codec, whose quantizer is straight-through."""
    model, clip = model.double(), copy.deepcopy(clip).double()
    stage = Stage("all", "test", ("neck",), {"cross_entropy": 1.0, "distillation": 10.0})
    objective = new_objective(model, clip, stages=(stage,), targets=TARGETS)
    objective.begin(stage)
    objective.eval()
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 12, 8, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = {"pixel_values": batch["pixel_values"].double(), "labels": batch["labels"], "latents": latents}
    neck = objective.model.vision_model.neck
    checked = {"latents": latents, "weight": neck.projection.weight, "class": neck.class_embedding}
    gradients = torch.autograd.grad(objective(inputs, stage)[0], list(checked.values()))
    for (name, value), gradient in zip(checked.items(), gradients, strict=True):
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        losses = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                value += step * direction
                losses.append(objective(inputs, stage)[0].item())
                value -= step * direction
        assert (losses[0] - losses[1]) / 2e-4 == pytest.approx((gradient * direction).sum().item(), rel=1e-4), name


@pytest.mark.parametrize("scenario", ["d2", "d3"])
def test_the_distillation_reaches_the_encoder(model, clip, batch, scenario):
    joint = next(stage for stage in comneck_stages(scenario, PRESETS["paper"], lmbda=1.0) if stage.name == "joint")
    only = Stage("joint", "test", joint.trains, {"distillation": 1.0})
    objective = new_objective(model, clip, stages=(only,))
    objective.begin(only)
    objective(batch, only)[0].backward()
    assert model.codec.g_a[0].weight.grad.abs().max() > 0
    assert model.codec.g_s[-1].weight.grad is None


def test_targets_are_what_transformers_calls_them(model, clip, batch):
    features = teacher_features(clip, batch["pixel_values"], TARGETS)
    outputs = clip.vision_model(
        torch.nn.functional.interpolate(torch.zeros(2, 3, 112, 112), (112, 112)), output_hidden_states=True
    )
    assert features["last_hidden_state"].shape == outputs.last_hidden_state.shape
    assert features["hidden_states[-2]"].shape == outputs.hidden_states[-2].shape
    assert features["image_embeds"].shape == (2, 128)
    objective = new_objective(model, clip, "d1", targets=TARGETS)
    stage = objective.stages[-1]
    objective.begin(stage)
    student = model(latents=model.codec.encode(batch["pixel_values"]).latents, output_hidden_states=True)
    expected = sum(
        weight * (value - features[name]).square().mean()
        for (name, weight), value in zip(
            TARGETS.items(),
            (student.image_embeds, student.last_hidden_state, student.hidden_states[-2]),
            strict=True,
        )
    )
    assert objective(batch, stage)[1]["distillation"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_coded_features_give_the_loss_of_the_pictures_they_come_from(model, clip, batch):
    objective = new_objective(model, clip, "d1")
    stage = objective.stages[1]
    objective.begin(stage)
    coded = {
        "latents": model.codec.encode(batch["pixel_values"]).latents,
        "labels": batch["labels"],
        **teacher_features(clip, batch["pixel_values"], {"image_embeds": 1.0}),
    }
    assert objective(coded, stage)[0].item() == pytest.approx(objective(batch, stage)[0].item(), rel=1e-6)


def test_a_saved_model_codes_with_the_weights_it_was_trained_to(model, clip, batch, tmp_path):
    objective = new_objective(model, clip, "d3")
    stage = objective.stages[3]
    objective.begin(stage)
    integers = copy.deepcopy(model.codec.exact.state_dict())
    for optimizer in objective.optimizers(RunArguments(output_dir="", learning_rate=1e-2)):
        objective(batch, stage)[0].backward()
        optimizer.step()
    objective.save(tmp_path)
    assert all(torch.equal(value, integers[name]) for name, value in model.codec.exact.state_dict().items())
    saved = ComNeckModel.from_pretrained(tmp_path).eval()
    changed = saved.codec.exact.state_dict()
    assert any(
        changed[name].shape != integers[name].shape or not torch.equal(changed[name], integers[name])
        for name in changed
    )
    pictures = batch["pixel_values"]
    assert torch.equal(saved.decompress(saved.compress(pictures)), saved.codec.encode(pictures).latents)


@pytest.mark.parametrize("words", [["pooled"], ["hidden_states[x]"], ["image_embeds=much"], []])
def test_targets_that_do_not_exist_are_refused(words):
    with pytest.raises(ValueError, match="target"):
        parse_targets(words)


def test_targets_are_read_with_their_weights():
    assert parse_targets(["image_embeds", "hidden_states[-2]=0.5"]) == {"image_embeds": 1.0, "hidden_states[-2]": 0.5}
    assert check_targets({"hidden_states[3]": 1.0}) == {"hidden_states[3]": 3}


def test_a_cross_entropy_needs_classes(model, clip):
    with pytest.raises(ValueError, match="needs classes"):
        ComNeckObjective(model, clip, comneck_stages("d1", PRESETS["paper"], lmbda=1.0))


def test_stages_with_unknown_parts_or_terms_are_refused(model, clip, batch):
    for stage, message in (
        (Stage("x", "test", ("head",)), r"trains \['head'\]"),
        (Stage("x", "test", ("neck",), {"rate": 1.0}), r"weights \['rate'\]"),
    ):
        objective = new_objective(model, clip, stages=(stage,))
        with pytest.raises(ValueError, match=message):
            objective.begin(stage)
            objective(batch, stage)
