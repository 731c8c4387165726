"""Zero-shot classification by the Auto classes and the pipeline."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForZeroShotImageClassification,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionConfig,
    pipeline,
)

from comneck_hf import ComNeckForZeroShotImageClassification, ComNeckImageProcessor, ComNeckModel, pretrained


@pytest.fixture(scope="module")
def parts():
    comneck = ComNeckModel.from_pretrained(pretrained("comneck-tiny-d1-q2")).eval()
    return comneck, CLIPModel.from_pretrained(pretrained("comneck-tiny-clip")).eval()


@torch.no_grad()
def test_scores_are_those_of_the_two_towers(parts):
    comneck, clip = parts
    model = ComNeckForZeroShotImageClassification.from_comneck_and_clip(comneck, clip)
    latents = torch.randn(3, comneck.config.vision_config.latent_channels, 8, 8).round()
    input_ids = torch.randint(3, 90, (2, 6))
    outputs = model(input_ids=input_ids, latents=latents)
    image, text = comneck(latents=latents).image_embeds, clip.get_text_features(input_ids).pooler_output
    expected = clip.logit_scale.exp() * torch.cosine_similarity(image[:, None], text[None], dim=-1)
    assert torch.allclose(outputs.logits_per_image, expected, atol=1e-4)
    assert torch.equal(outputs.logits_per_text, outputs.logits_per_image.T)
    assert model(input_ids=input_ids, latents=latents, return_dict=False)[0].shape == (3, 2)


@torch.no_grad()
def test_the_pipeline_runs_from_a_saved_folder(parts, tmp_path):
    model = ComNeckForZeroShotImageClassification.from_comneck_and_clip(*parts)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(pretrained("comneck-tiny-clip")).save_pretrained(tmp_path)
    ComNeckImageProcessor.for_size(128).save_pretrained(tmp_path)
    reloaded = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path)
    assert type(reloaded) is ComNeckForZeroShotImageClassification
    assert all(
        torch.equal(a, b) for a, b in zip(reloaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    photo = Image.linear_gradient("L").resize((150, 130)).convert("RGB")
    labels = ["airplane", "sunflower"]
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path))
    found = {label["label"]: label["score"] for label in classify(photo, candidate_labels=labels)}
    pixel_values = classify.image_processor(photo, return_tensors="pt").pixel_values
    tokens = classify.tokenizer(
        [f"This is a photo of {label}." for label in labels], padding="max_length", return_tensors="pt"
    )
    expected = reloaded(**tokens, pixel_values=pixel_values).logits_per_image.softmax(-1)[0]
    assert [found[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-5)


def test_towers_that_do_not_fit_are_refused(parts):
    comneck, clip = parts
    config = clip.config.to_dict() | {"projection_dim": 7}
    other = CLIPModel(type(clip.config)(**config))
    with pytest.raises(ValueError, match=f"have {comneck.config.projection_dim} and 7 dimensions"):
        ComNeckForZeroShotImageClassification.from_comneck_and_clip(comneck, other)
    assert isinstance(clip.config.vision_config, CLIPVisionConfig)
