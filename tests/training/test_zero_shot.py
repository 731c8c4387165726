import json

import pytest
import torch
import torch.nn.functional as F

from comneck_hf.training.zero_shot import ClassPrompts, load_class_prompts, save_class_prompts, zero_shot_weights

from .conftest import CLASSES, TEMPLATES


def test_zero_shot_weights_are_unit_norm_means_of_unit_norm_prompt_embeddings(tiny_clip, tokenizer):
    weights = zero_shot_weights(tiny_clip, tokenizer, class_names=CLASSES, templates=TEMPLATES)
    assert weights.shape == (len(CLASSES), 128) and not weights.requires_grad
    with torch.no_grad():
        prompts = tokenizer([t.format("bonsai") for t in TEMPLATES], padding=True, return_tensors="pt")
        features = tiny_clip.get_text_features(**prompts).pooler_output
    expected = F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1)
    assert torch.allclose(weights[1], expected, atol=1e-5)
    assert torch.allclose(weights.norm(dim=-1), torch.ones(len(CLASSES)))


def test_zero_shot_weights_leave_the_mode_of_the_model_alone(tiny_clip, tokenizer):
    tiny_clip.train()
    zero_shot_weights(tiny_clip, tokenizer, class_names=("cup",), templates=TEMPLATES)
    assert tiny_clip.training


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


def test_kept_weights_are_read_again_and_belong_to_their_model_and_prompts(tiny_clip, tokenizer, tmp_path):
    def weights(*, templates: tuple[str, ...] = TEMPLATES) -> torch.Tensor:
        return zero_shot_weights(tiny_clip, tokenizer, class_names=CLASSES, templates=templates, cache_dir=tmp_path)

    first = weights()
    assert torch.equal(first, zero_shot_weights(tiny_clip, tokenizer, class_names=CLASSES, templates=TEMPLATES))
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    assert torch.equal(weights(), first) and file.stat().st_mtime_ns == written
    assert not torch.equal(weights(templates=TEMPLATES[:1]), first)
    with torch.no_grad():
        tiny_clip.text_projection.weight.mul_(-1)
    assert torch.allclose(weights(), -first, atol=1e-6)
    assert len(list(tmp_path.iterdir())) == 3
