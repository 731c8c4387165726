import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel

from comneck_hf.evaluation.pictures import tensor_picture
from comneck_hf.evaluation.rate_accuracy import measure_accuracy
from comneck_hf.models.clip_inputs import clip_inputs
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel


@torch.no_grad()
def embeddings(model: ComNeckModel, clip: CLIPModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each of the three ways gives, computed picture by picture."""
    size = clip.config.vision_config.image_size
    result: dict[str, list[torch.Tensor]] = {"original": [], "decoded": [], "latents": []}
    for image in images[:, None].float() / 255:
        latents = model.decompress(model.compress(image))
        decoded = (model.reconstruct(latents) * 255).round() / 255
        result["original"].append(clip.get_image_features(clip_inputs(image, size)).pooler_output)
        result["decoded"].append(clip.get_image_features(clip_inputs(decoded, size)).pooler_output)
        result["latents"].append(model(latents=latents).image_embeds)
    return {name: F.normalize(torch.cat(parts), dim=-1) for name, parts in result.items()}


def test_pictures_reach_clip_as_its_own_processor_would_send_them(images):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
    expected = processor([tensor_picture(image) for image in images], return_tensors="pt").pixel_values
    found = clip_inputs(images.float() / 255, 112)
    assert (found - expected).abs().mean() < 0.01  # Pillow rounds to 8 bits between
    assert (found - expected).abs().max() < 0.1


@pytest.mark.parametrize("way", ["original", "decoded", "latents"])
def test_each_accuracy_counts_its_own_embeddings(model, clip, images, way):
    """Every picture is a class of its own, whose text is what one way says of it: that way is always right."""
    weights = embeddings(model, clip, images)[way]
    labels = torch.arange(len(images))
    right = measure_accuracy(model, clip, images, labels, zero_shot_weights=weights, batch_size=4)
    wrong = measure_accuracy(model, clip, images, labels.roll(1), zero_shot_weights=weights, batch_size=4)
    assert right[f"{way}_top1"] == 100
    assert wrong[f"{way}_top1"] == 0
    assert right["pictures"] == len(images)


def test_top5_holds_what_top1_misses(model, clip, images):
    """The right class comes second everywhere: its text is the picture's embedding, slightly bent."""
    way = embeddings(model, clip, images)["latents"]
    bent = F.normalize(way + 0.01 * way.roll(1, 0), dim=-1)
    weights = torch.cat([way, bent])
    report = measure_accuracy(model, clip, images, torch.arange(6) + 6, zero_shot_weights=weights)
    assert (report["latents_top1"], report["latents_top5"]) == (0, 100)


def test_bytes_are_those_of_the_bitstreams(model, clip, images):
    bitstreams = model.compress(images.float() / 255)
    weights = embeddings(model, clip, images)["original"]
    report = measure_accuracy(model, clip, images, torch.arange(6), zero_shot_weights=weights, batch_size=4)
    assert report["bytes_per_picture"] == pytest.approx(sum(map(len, bitstreams)) / 6)
    assert report["bpp"] == pytest.approx(8 * report["bytes_per_picture"] / 128**2)
