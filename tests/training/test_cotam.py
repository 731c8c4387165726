"""CoTAM's training: what moves, what the loss is, that it falls, and that coded crops are what they stand for."""

import copy

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import CLIPConfig, CLIPModel

from comneck_hf.models.codec_vision import CodecVisionModel
from comneck_hf.models.compressai.modeling_compressai import CompressaiModel
from comneck_hf.models.cotam.modeling_cotam import CotamModel
from comneck_hf.models.elic.gain_vectors_elic import add_gain_vectors
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.arguments import RunArguments
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.cotam import (
    COTAM_PRESETS,
    LOW_TARGET,
    CotamObjective,
    code_crops,
    coded_inputs,
    cotam_stages,
    low_level_loss,
)
from comneck_hf.training.data import ImagePack
from comneck_hf.training.gains import RandomGains
from comneck_hf.training.latents import CodedPictures, Variants, teacher_targets
from comneck_hf.training.losses import distillation
from comneck_hf.training.stages import plan_steps
from comneck_hf.training.surrogate import teacher_features

from .launch import load_script


TARGETS = {"hidden_states[-2]": 1.0, "image_embeds": 1.0}
GAINS = RandomGains(-1.0, 1.0, guided_share=0.5, random_share=0.5, grid=(4, 4))


@pytest.fixture(scope="module")
def small_clip() -> CLIPModel:
    """4x4 patches, three layers, far from the identity."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = {**sizes, "image_size": 56, "patch_size": 14, "projection_dim": 16}
    text = {**sizes, "vocab_size": 20}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    with torch.no_grad():
        for name, parameter in clip.vision_model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif "patch_embedding" in name:
                parameter.normal_(std=0.05)
    return clip


@pytest.fixture
def model(codec_folder, small_clip) -> CotamModel:
    torch.manual_seed(1)
    codec = ElicModel.from_pretrained(codec_folder).eval()
    return CotamModel.from_codec_and_clip(codec, small_clip, guide_grid=[4, 4]).eval()


def new_objective(
    model: CotamModel, clip: CLIPModel, low: float = 0.1, high: float = 1.0, **options
) -> CotamObjective:
    return CotamObjective(model, clip, cotam_stages(low, high), **{"gains": GAINS, "targets": TARGETS, **options})


def test_a_step_of_every_stage_changes_the_adapter_and_nothing_else_by_one_bit(model, small_clip):
    objective = new_objective(model, small_clip)
    teacher = copy.deepcopy(small_clip.state_dict())
    for stage in objective.stages:
        objective.begin(stage)
        objective.train()
        before = copy.deepcopy(objective.state_dict())
        (optimizer,) = objective.optimizers(RunArguments(output_dir="", learning_rate=1e-2))
        for _ in range(3):  # the closed gate moves first, then what starts at zero behind it, then the rest
            loss, _ = objective({"pixel_values": synthetic_pictures(64, 3)}, stage)
            loss.backward()
            # All of the adapter, so that DistributedDataParallel finds no unused parameter.
            with_gradients = {name for name, p in objective.named_parameters() if p.grad is not None}
            assert with_gradients == {name for name in before if ".adapter." in name}
            optimizer.step()
            optimizer.zero_grad()
        changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
        # A bias of the keys changes no attention.
        assert changed >= {name for name in before if ".adapter." in name and "k_proj.bias" not in name}
        assert all(".adapter." in name for name in changed)
    assert all(torch.equal(value, teacher[name]) for name, value in small_clip.state_dict().items())
    assert not any("_clip" in name for name in objective.state_dict())


def test_after_200_steps_on_64_pictures_the_loss_is_below_that_without_adapter(model, small_clip):
    objective = new_objective(model, small_clip)
    pictures = synthetic_pictures(64, 64)
    crops = code_crops(model, pictures, GAINS, generator=torch.Generator().manual_seed(0))
    crops |= teacher_features(small_clip, pictures, objective.targets)
    both = objective.stages[1]

    def losses() -> dict[str, float]:
        with torch.no_grad():
            return {name: value.item() for name, value in objective.eval()(crops, both)[1].items()}

    before = losses()
    plain = teacher_features(small_clip, model.reconstruct(crops["latents"]), objective.targets)
    assert before["low"] == pytest.approx(low_level_loss(plain[LOW_TARGET], crops[LOW_TARGET]).item(), rel=1e-4)
    assert before["high"] == pytest.approx(distillation(plain, crops, TARGETS).item(), rel=1e-4)
    source = torch.Generator().manual_seed(1)
    for span in plan_steps(objective.stages, 200):
        objective.begin(span.stage)
        objective.train()
        (optimizer,) = objective.optimizers(RunArguments(output_dir="", learning_rate=3e-3))
        for _ in range(span.first, span.end):
            rows = torch.randperm(64, generator=source)[:16]
            objective({name: value[rows] for name, value in crops.items()}, span.stage)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
    after = losses()
    assert after["loss"] < 0.75 * before["loss"] and after["low"] < 0.95 * before["low"], (before, after)


@torch.no_grad()
@pytest.mark.parametrize("repeats", [1, 2])
def test_the_teacher_is_normalized_as_often_as_the_student(codec_folder, small_clip, repeats):
    """As in the released code, which does both twice: equal pictures have no distance."""
    clip = copy.deepcopy(small_clip)
    torch.manual_seed(2)
    clip.vision_model.post_layernorm.weight.normal_()
    clip.vision_model.post_layernorm.bias.normal_()
    codec = ElicModel.from_pretrained(codec_folder).eval()
    model = CotamModel.from_codec_and_clip(codec, clip, guide_grid=[4, 4], post_layernorm_repeats=repeats).eval()
    pictures = synthetic_pictures(64, 2)
    latents = model.encode(pictures).latents
    student = model(latents=latents, reconstruction=pictures).image_embeds
    teacher = {n: new_objective(model, clip, post_layernorm_repeats=n).teach(pictures)["image_embeds"] for n in (1, 2)}
    assert torch.allclose(student, teacher[repeats], atol=1e-4)
    assert (student - teacher[3 - repeats]).abs().max() > 0.1


@torch.no_grad()
def test_under_autocast_crops_are_coded_as_they_will_be(model):
    """Codec and guide have their own type: what a server reads does not depend on how the adapter is trained."""
    pictures, crops = synthetic_pictures(64, 4), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            crops.append(code_crops(model, pictures, GAINS, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(crops[0]["latents"], crops[1]["latents"])
    assert torch.equal(crops[0]["token_weights"], crops[1]["token_weights"])


def test_a_codec_of_one_rate_trains_without_gains_and_refuses_them(small_clip):
    codec = CompressaiModel.from_zoo("bmshj2018-factorized", quality=1, pretrained=False)
    with pytest.raises(StrictDataclassClassValidationError, match="no gains that a guide could set"):
        CotamModel.from_codec_and_clip(codec, small_clip)
    model = CotamModel.from_codec_and_clip(codec, small_clip, use_guide=False).eval()
    with pytest.raises(ValueError, match="one rate only"):
        new_objective(model, small_clip, gains=RandomGains(-1.0, 0.0))
    objective = new_objective(model, small_clip, gains=RandomGains())
    objective.begin(objective.stages[1])
    loss, _ = objective({"pixel_values": synthetic_pictures(64, 2)}, objective.stages[1])
    loss.backward()
    assert model.vision_model.adapter.gate.grad.abs().sum() > 0
    pack = ImagePack((synthetic_pictures(64, 2) * 255).to(torch.uint8), None, ())
    metrics = load_script("train_cotam").validate(objective, small_clip, pack, [-1.0, 0.0], objective.stages[1])
    assert metrics["score"] == -metrics["distance"] and metrics["bytes_per_picture"] > 0


def test_a_codec_that_shows_nothing_trains_without_the_prior(model, small_clip):
    options = {"use_guide": False, "use_reconstruction_prior": False}
    blind = CotamModel.from_codec_and_clip(model.codec, small_clip, **options).eval()
    blind.codec.g_s = None
    crops = code_crops(blind, synthetic_pictures(64, 2), RandomGains(), generator=torch.Generator())
    assert set(crops) == {"latents", "token_weights"}
    objective = new_objective(blind, small_clip, gains=RandomGains())
    loss, _ = objective({"pixel_values": synthetic_pictures(64, 2)}, objective.stages[1])
    assert loss.isfinite()


def test_a_trained_model_decides_what_options_cannot_change(model, small_clip, tmp_path):
    model.save_pretrained(tmp_path)
    script = load_script("train_cotam")
    options = {"output_dir": "run", "data": "data", "clip": "clip", "model": str(tmp_path)}
    again = script.build_model(script.CotamArguments(**options, use_guide=False, guide_layers=[1]), small_clip)
    assert not again.config.use_guide and list(again.config.guide_layers) == [1]
    again.save_pretrained(tmp_path)
    kept = script.build_model(script.CotamArguments(**options), small_clip)
    assert not kept.config.use_guide and list(kept.config.guide_layers) == [1]
    for change, message in (
        ({"use_reconstruction_prior": False}, "use_reconstruction_prior means False"),
        ({"preset": "official"}, "made with post_layernorm_repeats=1"),
        ({"codec": "codec"}, "leave out --codec"),
    ):
        with pytest.raises(ValueError, match=message):
            script.build_model(script.CotamArguments(**options, **change), small_clip)


def test_the_losses_are_the_papers_formulas(model, small_clip):
    """Acceptance test: parity with a re-implementation in NumPy on fixed tensors."""
    generator = np.random.default_rng(0)
    student, teacher = (generator.normal(size=(2, 17, 32)).astype(np.float32) for _ in range(2))
    weights = generator.uniform(0.2, 1, size=(2, 17)).astype(np.float32)
    squared = (student - teacher).astype(np.float64) ** 2
    low = sum(squared[b, t, c] for b in range(2) for t in range(17) for c in range(32)) / (2 * 17 * 32)
    mapped = sum(squared[b, t, c] * weights[b, t] for b in range(2) for t in range(17) for c in range(32)) / 1088
    tensors = torch.from_numpy(student), torch.from_numpy(teacher)
    assert low_level_loss(*tensors).item() == pytest.approx(low, rel=1e-5)
    assert low_level_loss(*tensors, torch.from_numpy(weights)).item() == pytest.approx(mapped, rel=1e-5)

    model.vision_model.adapter.gate.data.fill_(0.7)
    pictures = synthetic_pictures(64, 2)
    for name, preset in COTAM_PRESETS.items():
        objective = new_objective(
            model,
            small_clip,
            preset.low,
            preset.high,
            targets=preset.targets,
            weight_low_by_map=preset.weight_low_by_map,
        )
        batch = code_crops(model, pictures, GAINS, generator=torch.Generator().manual_seed(2))
        batch |= teacher_features(small_clip, pictures, objective.targets)
        with torch.no_grad():
            loss, terms = objective(batch, objective.stages[1])
            seen = model(latents=batch["latents"], output_hidden_states=True)
            original = teacher_features(small_clip, pictures, {LOW_TARGET: 1, **TARGETS})
        error = (seen.hidden_states[0] - original[LOW_TARGET]).double().square().mean(2).numpy()
        _, maps = GAINS.draw(2, model.gain_maps(pictures), generator=torch.Generator().manual_seed(2))
        levels = [np.zeros((4, 4)) if one is None else one.step / 4 * np.array(one.levels_at(4, 4)) for one in maps]
        factors = np.stack([np.append(1, 2.0 ** (level - level.max()).ravel()) for level in levels])
        weights = factors if name == "official" else np.ones((2, 17))
        assert name != "official" or weights.min() < 1
        low = float((error * weights).mean())
        embeds = (seen.image_embeds - original["image_embeds"]).double().square().mean().item()
        tokens = (seen.hidden_states[-2] - original["hidden_states[-2]"]).double().square().mean().item()
        high = embeds if name == "official" else embeds + tokens
        scale = 11.52 if name == "official" else 1
        assert terms["low"].item() == pytest.approx(low, rel=1e-4)
        assert terms["high"].item() == pytest.approx(high, rel=1e-4)
        assert loss.item() == pytest.approx(scale * (0.1 * low + high), rel=1e-4)


def test_the_first_stage_has_the_low_level_alone(model, small_clip):
    objective = new_objective(model, small_clip)
    first, both = objective.stages
    torch.manual_seed(0)
    loss, terms = objective({"pixel_values": synthetic_pictures(64, 2)}, first)
    assert set(terms) == {"loss", "low"} and loss.item() == pytest.approx(0.1 * terms["low"].item())
    torch.manual_seed(0)
    assert objective({"pixel_values": synthetic_pictures(64, 2)}, both)[1]["low"].item() == pytest.approx(
        terms["low"].item(), rel=1e-5
    )


def test_one_of_five_epochs_is_low_only_and_levels_can_be_left_out():
    low, both = plan_steps(cotam_stages(0.1, 1.0), 1000)
    assert (low.end, both.end, low.phase, both.phase) == (200, 1000, 0, 0)
    assert [dict(stage.weights) for stage in cotam_stages(0.1, 1.0)] == [{"low": 0.1}, {"low": 0.1, "high": 1.0}]
    assert [dict(stage.weights) for stage in cotam_stages(0, 1.0)] == [{"high": 1.0}]
    assert [dict(stage.weights) for stage in cotam_stages(0.1, 0)] == [{"low": 0.1}, {"low": 0.1}]
    for weights in ((0, 0), (-1, 1)):
        with pytest.raises(ValueError, match="must not be negative, and not both 0"):
            cotam_stages(*weights)


@torch.no_grad()
def test_crops_are_coded_with_the_guides_maps_and_with_others(model):
    pictures = synthetic_pictures(64, 3)
    guided = code_crops(model, pictures, RandomGains(guided_share=1.0), generator=torch.Generator())
    assert torch.equal(guided["latents"], model.encode(pictures).latents)
    assert torch.equal(
        guided["picture_tokens"], model.vision_model.picture_tokens(model.reconstruct(guided["latents"]))
    )
    assert guided["token_weights"].min() < 1
    plain = code_crops(model, pictures, RandomGains(), generator=torch.Generator())
    assert torch.equal(plain["latents"], model.codec.encode(pictures).latents)
    assert (plain["token_weights"] == 1).all()
    assert not torch.equal(plain["latents"], guided["latents"])


@pytest.fixture(scope="module")
def pack() -> ImagePack:
    return ImagePack((synthetic_pictures(80, 5) * 255).round().to(torch.uint8), None, ())


def test_coded_crops_give_the_loss_of_the_crops(model, small_clip, pack, tmp_path):
    model.vision_model.adapter.gate.data.fill_(0.5)
    variants, gains = Variants(pack, Augmentation(64), 2), RandomGains(0.5, 0.5, guided_share=1.0)
    objective = new_objective(model, small_clip, gains=gains)
    inputs = coded_inputs(model, variants, tmp_path, gains)
    pictures = CodedPictures([inputs, teacher_targets(small_clip, variants, tmp_path, objective.targets)], None)
    crops = {"pixel_values": next(variants.batches(1))}
    with torch.no_grad():
        loss = objective(crops, objective.stages[1])[0]
        again = objective(pictures.__getitems__([5, 6, 7, 8, 9]), objective.stages[1])[0]
    assert again.item() == pytest.approx(loss.item(), rel=2e-3)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(files) == 2 + 3 * 2  # three targets
    with torch.no_grad():
        model.vision_model.adapter.projection.weight.add_(1)  # what trains decides on no coded crop
    read = coded_inputs(model, variants, tmp_path, gains)
    assert all(torch.equal(one[name], other[name]) for one, other in zip(read, inputs, strict=True) for name in one)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files
    model.config.guide_threshold = 0.3
    coded_inputs(model, variants, tmp_path, gains)
    assert len(list(tmp_path.iterdir())) == 4 + 3 * 2


def test_a_saved_model_is_whole(model, small_clip, tmp_path):
    new_objective(model, small_clip).save(tmp_path)
    saved = CotamModel.from_pretrained(tmp_path).eval()
    assert isinstance(saved, CodecVisionModel)
    pictures = synthetic_pictures(64, 2)
    assert torch.equal(saved.decompress(saved.compress(pictures)), saved.encode(pictures).latents)
    assert (tmp_path / "preprocessor_config.json").exists()


@torch.no_grad()
def test_crops_of_a_codec_with_vectors_are_decoded_at_their_gains(codec_folder, small_clip):
    codec = add_gain_vectors(ElicModel.from_pretrained(codec_folder).eval(), levels=2, level_range=(-1.0, 1.0))
    codec.g_s.log_vectors.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
    model = CotamModel.from_codec_and_clip(codec, small_clip, guide_grid=[4, 4]).eval()
    pictures = synthetic_pictures(64, 4)
    crops = code_crops(model, pictures, GAINS, generator=torch.Generator().manual_seed(0))
    gain, gain_maps = GAINS.draw(4, model.gain_maps(pictures), generator=torch.Generator().manual_seed(0))
    right, wrong = (
        model.vision_model.picture_tokens(codec.decode(crops["latents"], **options))
        for options in ({"gain": gain, "gain_maps": gain_maps}, {})
    )
    assert torch.equal(crops["picture_tokens"], right)
    assert not torch.allclose(right, wrong, atol=1e-2)
