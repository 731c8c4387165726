"""Neck and CLIP tower from the authors' and OpenAI's names."""

import json

import pytest
import torch
from transformers import CLIPModel

from comneck_hf.hub.transformer_weights import authors_neck_weights, load_clip_tower, neck_sizes, neck_weights


def test_the_tower_of_openais_names_is_that_of_transformers(authors_files, tmp_path):
    tower = load_clip_tower(str(authors_files.clip))
    tower.save_pretrained(tmp_path)
    again = load_clip_tower(str(tmp_path))
    pixel_values = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(tower(pixel_values).image_embeds, again(pixel_values).image_embeds)
    assert tower.config.num_attention_heads == 1
    assert tower.visual_projection.weight.shape == (48, 64)


def test_the_tower_of_a_whole_clip_is_taken(authors_files, tmp_path):
    tower = load_clip_tower(str(authors_files.clip))
    from transformers import CLIPConfig, CLIPTextConfig

    text = CLIPTextConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=tower.config, projection_dim=48))
    clip.save_pretrained(tmp_path)
    again = load_clip_tower(str(tmp_path)).state_dict()
    assert all(torch.equal(value, clip.state_dict()[key]) for key, value in again.items())


def test_a_tower_with_a_missing_layer_is_refused(authors_files, tmp_path):
    clip = torch.load(authors_files.clip, weights_only=True)
    del clip["visual.transformer.resblocks.3.ln_1.weight"]
    torch.save(clip, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"lacks 1 of its 68 tensors: transformer\.resblocks\.3\.ln_1\.weight"):
        load_clip_tower(str(tmp_path / "clip.pt"))


def test_a_folder_that_lacks_part_of_the_tower_is_refused(authors_files, tmp_path):
    tower = load_clip_tower(str(authors_files.clip))
    tower.vision_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing or of a wrong shape: visual_projection\.weight"):
        load_clip_tower(str(tmp_path))


def test_a_codec_given_as_clip_is_refused(authors_files):
    with pytest.raises(ValueError, match="no CLIP vision transformer: it looks like"):
        load_clip_tower(str(authors_files.checkpoint))


def test_the_necks_names_lead_there_and_back(authors_files):
    assert len(authors_files.neck) == 18
    again = authors_neck_weights(neck_weights(authors_files.neck))
    assert again.keys() == authors_files.neck.keys()
    assert all(torch.equal(again[key], value) for key, value in authors_files.neck.items())


def test_missing_and_surplus_tensors_of_the_neck_are_listed(authors_files):
    neck = {**authors_files.neck, "extra.weight": torch.ones(1)}
    del neck["ln_pre.bias"]
    with pytest.raises(ValueError, match=r"lacks 1 .*: ln_pre\.bias and has 1 tensors too many: extra\.weight"):
        neck_weights(neck)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("class_embedding", torch.ones(1, 64), r"class_embedding is \(1, 64\), not \(64,\)"),
        ("trans_latent_dim.weight", torch.ones(64, 24, 1), r"trans_latent_dim\.weight is \(64, 24, 1\)"),
        ("ln_pre.bias", torch.full((64,), torch.nan), r"not finite.* ln_pre\.bias"),
    ],
)
def test_a_neck_of_wrong_shapes_or_values_is_refused(authors_files, name, value, message):
    with pytest.raises(ValueError, match=message):
        neck_weights({**authors_files.neck, name: value})


def test_a_folder_whose_config_and_weights_disagree_is_refused(authors_files, tmp_path):
    tower = load_clip_tower(str(authors_files.clip))
    tower.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(ValueError, match=r"wrong shape: .*mlp\.fc1"):
        load_clip_tower(str(tmp_path))


def test_positions_that_are_no_square_are_refused(authors_files):
    neck = {**authors_files.neck, "positional_embedding": torch.ones(64, 64)}
    with pytest.raises(ValueError, match="64 positions"):
        neck_sizes(neck)
