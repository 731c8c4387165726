"""The guide against the attention maps that transformers returns."""

import pytest
import torch
from torch import nn
from transformers import CLIPVisionModelWithProjection, Dinov2Config

from comneck_hf.models.clip_inputs import clip_inputs
from comneck_hf.models.comneck.configuration_comneck import ComNeckVisionConfig
from comneck_hf.models.comneck.modeling_comneck import ComNeckVisionModel
from comneck_hf.models.cotam.guide_cotam import ShallowAttentionGuide


HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def pictures(height=70, width=90, count=2):
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(3))


def attentions(tower, pixels):
    """Every layer's full attention, eagerly: `(layers, batch, heads, tokens, tokens)`."""
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return torch.stack(tower(pixel_values=pixels, output_attentions=True).attentions)
    finally:
        tower.set_attn_implementation(before)


@pytest.mark.parametrize("layers", [(0, 1, 2), (0,), (3, 1), (-1,), (-4, -2), (1, -3)])
def test_class_token_attention_is_that_of_the_full_maps(clip, layers):
    maps = attentions(clip.vision_model, clip_inputs(pictures(), 56))
    expected = maps[list(layers)][:, :, :, 0, 1:].mean(dim=(0, 2)) if len(set(layers)) == len(layers) else None
    if layers == (1, -3):  # the same layer, once
        expected = maps[1][:, :, 0, 1:].mean(1)
    found = ShallowAttentionGuide(clip, layers=layers)(pictures())
    assert found.shape == (2, 1, 4, 4) and found.dtype == torch.float32
    assert torch.allclose(found.flatten(1), expected, atol=1e-6)
    assert found.std(dim=(2, 3)).min() > 0.003  # the comparison means something


def test_mean_query_averages_over_the_patches_and_leaves_the_class_token_out(clip):
    maps = attentions(clip.vision_model, clip_inputs(pictures(), 56))
    expected = maps[:2, :, :, 1:, 1:].mean(dim=(0, 2, 3))
    found = ShallowAttentionGuide(clip, layers=(0, 1), source="mean_query")(pictures())
    assert torch.allclose(found.flatten(1), expected, atol=1e-6)


@pytest.mark.parametrize("layers", [(0, 1, 2), (-1,)])
def test_encoders_without_class_token_average_over_their_queries(siglip, layers):
    maps = attentions(siglip, clip_inputs(pictures(), 80, **HALF))
    expected = maps[list(layers)].mean(dim=(0, 2, 3))
    found = ShallowAttentionGuide(siglip, layers=layers, source="mean_query", **HALF)(pictures())
    assert found.shape == (2, 1, 10, 10)
    assert torch.allclose(found.flatten(1), expected, atol=1e-6)
    assert torch.allclose(found.sum(dim=(1, 2, 3)), torch.ones(2), atol=1e-5)
    other = ShallowAttentionGuide(siglip, layers=layers, source="mean_query")(pictures())
    assert not torch.allclose(found, other, atol=1e-4)  # the normalization is used


def test_encoders_without_class_token_have_no_class_attention(siglip):
    with pytest.raises(ValueError, match="mean_query"):
        ShallowAttentionGuide(siglip)


def test_only_the_layers_that_are_needed_run(clip):
    ran = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(clip.vision_model.encoder.layers)
    ]
    ShallowAttentionGuide(clip, layers=(0, 2))(pictures())
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]  # of layer 2 only queries and keys


def test_all_holders_of_a_tower_give_the_same_map(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    expected = ShallowAttentionGuide(clip)(pictures())
    for model in (clip.vision_model, CLIPVisionModelWithProjection.from_pretrained(tmp_path).eval()):
        assert torch.equal(ShallowAttentionGuide(model)(pictures()), expected)


def test_from_pretrained_loads_no_more_layers_than_it_needs(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    for layers, count in (((0, 1), 2), ((-1,), 4)):
        guide = ShallowAttentionGuide.from_pretrained(str(tmp_path), layers=layers)
        assert len(guide.vision_model.encoder.layers) == count
        assert torch.equal(guide(pictures()), ShallowAttentionGuide(clip, layers=layers)(pictures()))


def test_a_tower_that_keeps_its_stem_can_guide_and_one_that_does_not_cannot(clip):
    vision = clip.config.vision_config.to_dict()
    vision.pop("model_type")
    keeping, bare = (
        ComNeckVisionModel(ComNeckVisionConfig(**{**vision, "latent_channels": 6, "keep_clip_stem": keep})).eval()
        for keep in (True, False)
    )
    keeping.load_state_dict(clip.vision_model.state_dict(), strict=False)
    assert torch.equal(ShallowAttentionGuide(keeping)(pictures()), ShallowAttentionGuide(clip)(pictures()))
    with pytest.raises(ValueError, match="keep_clip_stem"):
        ShallowAttentionGuide(bare)


def test_an_owner_does_not_list_the_weights_twice(clip):
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower = clip.vision_model
            self.guide = ShallowAttentionGuide(self.tower)

    owner = Owner()
    assert set(owner.state_dict()) == {f"tower.{name}" for name in clip.vision_model.state_dict()}
    assert len(list(owner.parameters())) == len(list(clip.vision_model.parameters()))


def test_a_16_bit_tower_gives_a_float32_map(clip):
    expected = ShallowAttentionGuide(clip)(pictures())
    half = CLIPVisionModelWithProjection(clip.config.vision_config).to(torch.bfloat16).eval()
    half.vision_model.load_state_dict(clip.vision_model.state_dict())
    found = ShallowAttentionGuide(half)(pictures())
    assert found.dtype == torch.float32
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.98


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"layers": ()}, "at least one"),
        ({"layers": (4,)}, r"\[-4, 4\), got 4"),
        ({"layers": (0, -5)}, "got -5"),
        ({"source": "pooler"}, "'pooler'"),
    ],
)
def test_wrong_arguments_are_named(clip, wrong, message):
    with pytest.raises(ValueError, match=message):
        ShallowAttentionGuide(clip, **wrong)


def test_what_is_no_batch_of_pictures_is_refused(clip):
    with pytest.raises(ValueError, match=r"\(3, 70, 90\)"):
        ShallowAttentionGuide(clip)(pictures()[0])
    with pytest.raises(ValueError, match="no vision tower"):
        ShallowAttentionGuide(clip.text_model.encoder)


def test_a_siglip_is_loaded_with_its_own_colors_and_without_class_token(siglip, tmp_path):
    siglip.save_pretrained(tmp_path)
    guide = ShallowAttentionGuide.from_pretrained(str(tmp_path), layers=(0, 1))
    assert len(guide.vision_model.encoder.layers) == 2 and guide.source == "mean_query"
    expected = ShallowAttentionGuide(siglip, layers=(0, 1), source="mean_query", **HALF)(pictures())
    assert torch.allclose(guide(pictures()), expected, atol=1e-6)


def test_other_encoders_are_refused(tmp_path):
    Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"guides are made of \['clip', 'siglip'\]"):
        ShallowAttentionGuide.from_pretrained(str(tmp_path))
