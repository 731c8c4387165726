"""The U-Net of the Post-processing baseline: what trains, by which loss, and that its codec finds it again."""

import copy

import pytest
import torch

from comneck_hf.commands.evaluation_parts import Parts
from comneck_hf.evaluation.baselines import PostProcessing
from comneck_hf.models.clip_inputs import clip_inputs
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.models.unet import PostProcessingUNet
from comneck_hf.training.post_processing import PostProcessingObjective, post_processing_stages
from comneck_hf.training.stages import PRESETS

from .launch import run_script


@pytest.fixture
def objective(codec_folder, clip) -> PostProcessingObjective:
    torch.manual_seed(0)
    codec = ElicModel.from_pretrained(codec_folder)
    weights = torch.nn.functional.normalize(torch.randn(3, 128), dim=-1)
    stages = post_processing_stages(PRESETS["paper"])
    unet = PostProcessingUNet((4, 8), fingerprint=codec.exact.fingerprint)
    return PostProcessingObjective(codec, unet, clip, stages, zero_shot_weights=weights)


def test_every_parameter_of_the_unet_trains_and_nothing_else(objective, clip):
    codec, teacher = objective._codec[0], copy.deepcopy(clip.state_dict())
    kept = copy.deepcopy(codec.state_dict())
    batch = {"pixel_values": synthetic_pictures(128, 2), "labels": torch.tensor([0, 2])}
    assert [stage.name for stage in objective.stages] == ["classify", "align", "distill"]
    for stage in objective.stages:
        objective.begin(stage)
        objective.train()
        loss, terms = objective(batch, stage)
        assert ("distillation" in terms, "cross_entropy" in terms) == (
            stage.name != "classify",
            stage.name != "distill",
        )
        loss.backward()
        assert all(parameter.grad is not None for parameter in objective.parameters())
        assert any(parameter.grad.abs().max() > 0 for parameter in objective.parameters())
        objective.zero_grad()
    assert all(name.startswith("unet.") for name in objective.state_dict())
    assert all(torch.equal(value, kept[name]) for name, value in codec.state_dict().items())
    assert all(torch.equal(value, teacher[name]) for name, value in clip.state_dict().items())


def test_the_loss_is_that_of_the_decoded_pictures_behind_the_unet(objective, clip):
    pictures, stage = synthetic_pictures(128, 2), objective.stages[2]
    objective.begin(stage)
    objective.eval()
    codec = objective._codec[0]
    with torch.no_grad():
        decoded = (codec.decode(codec.decompress(codec.compress(pictures))) * 255).round() / 255
        student, teacher = (
            clip.get_image_features(clip_inputs(values, 112)).pooler_output
            for values in (objective.unet(decoded), pictures)
        )
        expected = stage.weights["distillation"] * (student - teacher).square().mean()
        fresh, _ = objective({"pixel_values": pictures}, stage)
        coded, _ = objective({"latents": codec.encode(pictures).latents, "image_embeds": teacher}, stage)
    assert fresh.item() == pytest.approx(expected.item(), rel=1e-4)
    assert coded.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_trained_unet_is_measured_behind_its_codec_and_no_other(
    data_folder, codec_folder, clip_folder, clip, tmp_path
):
    codec = ElicModel.from_pretrained(codec_folder)
    ComNeckModel.from_codec_and_clip(codec, clip, quality=2).save_pretrained(tmp_path / "d1")
    words = ["--data", data_folder, "--clip", clip_folder, "--model", tmp_path / "d1", "--steps", 3]
    words += ["--scenario", "post-processing", "--unet_widths", 4, 8, "--coded_variants", 1, "--batch_size", 4]
    words += ["--validation_steps", 3, "--validation_pictures", 4, "--output_dir", tmp_path / "run"]
    run_script("train_comneck", *words)
    folder = str(tmp_path / "run" / "model")
    options = {"clip": str(clip_folder), "data": str(data_folder), "split": "validation", "pictures": 4}
    options |= {"llava": None, "questions_data": None, "questions": 1, "distortion_data": None, "num_proc": 1}
    options |= {"device": torch.device("cpu"), "dtype": torch.float32}
    builder, _ = Parts(models=[str(tmp_path / "d1")], **options).baselines([f"post-processing={folder}"])
    baseline = builder()
    assert isinstance(baseline, PostProcessing)
    assert (baseline.name, baseline.quality) == ("post-processing", "q2")
    other, _ = Parts(models=["comneck-tiny-d1-q2"], **options).baselines([f"post-processing={folder}"])
    with pytest.raises(ValueError, match="that none of the models has"):
        other()
