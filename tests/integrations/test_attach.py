"""Attaching a tower: what it shares, what it leaves alone, and what it refuses."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
)

from comneck_hf import (
    ComNeckModel,
    ComNeckProcessor,
    attach_vision_tower,
    image_features,
    pretrained,
)


def test_attaching_leaves_the_comneck_alone_and_frozen_parts_frozen(llava, comneck):
    before = {name: weight.clone() for name, weight in comneck.state_dict().items()}
    frozen = llava()
    frozen.model.vision_tower.requires_grad_(False)
    first = attach_vision_tower(frozen, comneck)
    second = attach_vision_tower(llava().to(torch.bfloat16), comneck, force=True)
    assert not any(weight.requires_grad for weight in first.model.vision_tower.parameters())
    trainable = {name for name, weight in second.model.vision_tower.named_parameters() if weight.requires_grad}
    assert trainable and all(name.startswith("vision_model.encoder") or "norm" in name for name in trainable)
    after = comneck.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert next(first.parameters()).dtype == comneck.dtype == torch.float32
    assert all(weight.requires_grad for weight in comneck.parameters())


def test_offloaded_and_quantized_towers_are_named(llava, comneck):
    model = llava()
    weight = model.model.vision_tower.post_layernorm.weight
    model.model.vision_tower.post_layernorm.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="offloaded or quantized \\(post_layernorm.weight: torch.int8\\)"):
        attach_vision_tower(model, comneck)
    with pytest.raises(ValueError, match="offloaded or quantized"):
        attach_vision_tower(llava().to("meta"), comneck)


@torch.no_grad()
def test_a_model_inside_adapters_gets_its_tower(llava, comneck):
    adapted = get_peft_model(llava(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="CLIP has adapters. Merge them first"):
        attach_vision_tower(adapted, comneck)
    adapted = get_peft_model(llava(), LoraConfig(r=2, target_modules=r".*language_model.*\.q_proj"))
    assert type(attach_vision_tower(adapted, comneck).model.vision_tower) is ComNeckModel
    bitstreams = comneck.compress(torch.rand(1, 3, 128, 128))
    assert image_features(adapted, bitstreams=bitstreams).images[0].shape == (64, 32)


def test_another_tower_may_follow(llava, processor, comneck):
    """A second rate is attached to the same model."""
    model = attach_vision_tower(llava(), comneck)
    other = AutoModel.from_pretrained(pretrained("comneck-tiny-d1-q2"))
    torch.nn.init.zeros_(other.vision_model.neck.projection.weight)
    attach_vision_tower(model, other)
    assert model.model.vision_tower.vision_model.neck.projection.weight.abs().max() == 0
    attach_vision_tower(model, "comneck-tiny-d1-q2")  # by its packaged name
    expected = comneck.vision_model.neck.projection.weight
    assert torch.equal(model.model.vision_tower.vision_model.neck.projection.weight, expected)
    with pytest.raises(ValueError, match="No model at 'nowhere'"):
        attach_vision_tower(model, "nowhere")


def test_a_neck_of_another_clip_is_refused_unless_forced(llava, comneck):
    model = llava()
    with torch.no_grad():
        for parameter in model.model.vision_tower.parameters():
            parameter.add_(0.05 * parameter.std() * torch.randn_like(parameter))
    weight = model.model.vision_tower.encoder.layers[-1].mlp.fc1.weight
    with pytest.raises(ValueError, match="trained for another CLIP: .* differs by .* %"):
        attach_vision_tower(model, comneck)
    assert type(model.model.vision_tower) is CLIPVisionModel
    attach_vision_tower(model, comneck, force=True)
    assert torch.equal(model.model.vision_tower.vision_model.encoder.layers[-1].mlp.fc1.weight, weight)


def test_rounding_to_bfloat16_is_not_another_clip(llava, comneck):
    model = attach_vision_tower(llava().to(torch.bfloat16), comneck)
    assert model.model.vision_tower.vision_model.neck.projection.weight.dtype == torch.bfloat16


def test_wrong_models_are_refused(llava, comneck, clip):
    with pytest.raises(ValueError, match="CLIPModel has no CLIP in `vision_tower`"):
        attach_vision_tower(clip, comneck)
    with pytest.raises(ValueError, match="must be a `ComNeckModel`"):
        attach_vision_tower(llava(), clip)
    paper = ComNeckModel.from_codec_and_clip(comneck.codec, clip, num_skipped_layers=2)
    with pytest.raises(ValueError, match="reads hidden state 0 of its tower"):
        attach_vision_tower(llava(vision_feature_layer=0), paper)
    with pytest.raises(ValueError, match="The tower of this model is 'clip_vision_model'"):
        ComNeckProcessor.for_llava(llava(), None)
    with pytest.raises(ValueError, match="exactly one"):
        image_features(attach_vision_tower(llava(), comneck))


def test_a_wider_clip_is_refused_by_its_shape(llava, comneck):
    model = llava()
    config = comneck.config.vision_config.to_dict() | {"hidden_size": 2 * comneck.config.hidden_size}
    other = ComNeckModel(type(comneck.config)(codec_config=comneck.config.codec_config, vision_config=config))
    with pytest.raises(ValueError, match="was trained for a CLIP of .* layers and width"):
        attach_vision_tower(model, other)


def test_a_fresh_llava_whose_codec_never_coded_reloads_and_codes(llava, comneck, tmp_path):
    config = llava().config
    config.vision_config = comneck.config
    config.vision_config.codec_config.build_entropy_networks = True
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    reloaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    picture = torch.rand(1, 3, 128, 128)
    towers = [one.model.vision_tower for one in (model, reloaded)]
    assert towers[0].compress(picture) == towers[1].compress(picture)
