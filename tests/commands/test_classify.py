"""`comneck classify`."""

import json

import pytest
import torch
from command_inputs import CLASSES, only_error_line
from transformers import AutoTokenizer, CLIPConfig, CLIPModel


def test_classify_ranks_the_classes_of_the_clip(comneck, bitstream):
    (entry,) = json.loads(comneck("classify", bitstream, "--json").stdout)
    assert sorted(row["label"] for row in entry["labels"]) == sorted(CLASSES)
    probabilities = [row["probability"] for row in entry["labels"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_classify_compares_latent_embeddings_with_prompts(comneck, models, model, bitstream):
    clip = CLIPModel.from_pretrained(models / "clip").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "clip")
    with torch.no_grad():
        image = model(latents=model.decompress([bitstream.read_bytes()])).image_embeds[0]
        rows = []
        for name in ("tree", "a red car"):
            inputs = tokenizer([f"a photo of a {name}.", name], padding=True, return_tensors="pt")
            rows.append(torch.nn.functional.normalize(clip.get_text_features(**inputs).pooler_output, dim=-1).mean(0))
        weights = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
        expected = (clip.logit_scale.exp() * torch.nn.functional.normalize(image, dim=0) @ weights.T).softmax(0)
    (entry,) = json.loads(comneck("classify", bitstream, "--json", labels="tree, a red car,").stdout)
    probabilities = {row["label"]: row["probability"] for row in entry["labels"]}
    assert probabilities == pytest.approx({"tree": expected[0].item(), "a red car": expected[1].item()}, abs=1e-5)


def test_classify_prints_a_line_per_file_with_the_labels_asked_for(comneck, bitstream, tmp_path):
    (tmp_path / "bad.cnk").write_bytes(b"CNK")
    result = comneck("classify", "bad.cnk", "photo.cnk", "--top", 2, "--quiet", code=1)
    assert "truncated" in only_error_line(result)
    (line,) = comneck("classify", "photo.cnk", "--top", 2).stdout.splitlines()
    assert line.startswith("photo.cnk  ") and line.count("%") == 2


def test_labels_without_a_name_are_wrong_usage(comneck, bitstream):
    assert "names no label" in comneck("classify", bitstream, labels=" , ", code=2).stderr


def test_a_clip_of_another_width_is_an_error(comneck, models, bitstream, tmp_path):
    clip = CLIPModel.from_pretrained(models / "clip")
    config = CLIPConfig.from_dict({**clip.config.to_dict(), "projection_dim": 8})
    CLIPModel(config).save_pretrained(tmp_path / "narrow")
    for file in (models / "clip").iterdir():
        if not (tmp_path / "narrow" / file.name).exists():
            (tmp_path / "narrow" / file.name).write_bytes(file.read_bytes())
    message = only_error_line(comneck("classify", bitstream, clip=tmp_path / "narrow", code=1))
    assert "24 dimensions" in message and "8" in message


def test_a_clip_without_classes_needs_labels(comneck, models, bitstream, tmp_path):
    (tmp_path / "bare").mkdir()
    for file in (models / "clip").iterdir():
        if file.name != "zero_shot.json":
            (tmp_path / "bare" / file.name).write_bytes(file.read_bytes())
    assert "--labels" in only_error_line(comneck("classify", bitstream, clip=tmp_path / "bare", code=1))
    comneck("classify", bitstream, clip=tmp_path / "bare", labels="cup, cat")
