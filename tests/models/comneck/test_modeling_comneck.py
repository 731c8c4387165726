"""Codec, neck, tower and projection together: bytes in, CLIP features out."""

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    pipeline,
)

from comneck_hf import (
    ComNeckConfig,
    ComNeckImageProcessor,
    ComNeckImageProcessorPil,
    ComNeckModel,
    ComNeckVisionModel,
    ElicModel,
)


@pytest.fixture
def picture():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))


def buffers_of(codec):
    return {name: buffer.clone() for name, buffer in codec.named_buffers()}


@torch.no_grad()
def test_bytes_carry_everything_that_the_features_need(comneck, picture):
    model = comneck()
    bitstreams = model.compress(picture)
    latents = model.decompress(bitstreams)
    from_bytes, from_picture = model(latents=latents), model(picture)
    assert all(isinstance(bitstream, bytes) for bitstream in bitstreams)
    assert torch.equal(from_picture.latents, latents) and latents.shape == (2, 16, 4, 4)
    assert torch.equal(from_bytes.image_embeds, from_picture.image_embeds)
    assert from_bytes.image_embeds.shape == (2, 24) and from_bytes.last_hidden_state.shape == (2, 17, 32)


@torch.no_grad()
def test_the_embedding_is_the_projected_class_token(comneck, latents):
    model = comneck()
    outputs = model(latents=latents)
    tower = model.vision_model(latents=latents)
    assert torch.equal(outputs.last_hidden_state, tower.last_hidden_state)
    assert torch.equal(outputs.image_embeds, tower.pooler_output @ model.visual_projection.weight.T)
    assert torch.equal(model.get_image_features(latents=latents).pooler_output, outputs.image_embeds)
    assert torch.equal(model(latents).image_embeds, outputs.image_embeds)  # by position, as LLaVA passes them


@torch.no_grad()
def test_a_tuple_comes_back_where_one_is_asked_for(comneck, latents):
    model = comneck()
    assert torch.equal(model(latents, return_dict=False)[0], model(latents).last_hidden_state)


@torch.no_grad()
def test_reconstruction_is_the_codecs_and_can_be_cropped(comneck, picture):
    model = comneck()
    latents = model(picture[..., :50, :60]).latents
    whole, cropped = model.reconstruct(latents), model.reconstruct(latents, size=(50, 60))
    assert whole.shape == (2, 3, 64, 64) and torch.equal(cropped, whole[..., :50, :60])
    assert whole.min() >= 0 and whole.max() <= 1


@torch.no_grad()
def test_a_picture_of_another_size_needs_interpolated_positions(comneck):
    model, wide = comneck(), torch.rand(1, 3, 64, 128)
    with pytest.raises(ValueError, match="Latents are 4x8, but this neck was built for 4x4"):
        model(wide)
    assert model(wide, interpolate_pos_encoding=True).last_hidden_state.shape == (1, 33, 32)


@torch.no_grad()
def test_inputs_must_be_unambiguous(comneck, latents, picture):
    model = comneck()
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="exactly one"):
        model(picture, latents)


@pytest.mark.parametrize("call", ["forward", "compress", "decompress", "reconstruct"])
@torch.no_grad()
def test_a_model_without_codec_takes_latents_only(vision_config, latents, picture, call):
    model = ComNeckModel(ComNeckConfig(codec_config=None, vision_config=vision_config())).eval()
    assert model(latents).image_embeds.shape == (2, 24)
    argument = {"decompress": [b"x"], "reconstruct": latents}.get(call, picture)
    with pytest.raises(ValueError, match="without a codec"):
        getattr(model, call)(argument)


def test_a_saved_model_is_complete_and_bit_equal(comneck, picture, tmp_path):
    model = comneck()
    model.save_pretrained(tmp_path)
    reloaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(reloaded) is ComNeckModel and not info["missing_keys"] and not info["unexpected_keys"]
    assert reloaded.config.quality == 2
    assert not reloaded.training and not reloaded.codec.training
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in reloaded.state_dict().items())
    bitstreams = model.compress(picture)
    assert reloaded.compress(picture) == bitstreams
    with torch.no_grad():
        assert torch.equal(reloaded(picture).image_embeds, model(picture).image_embeds)


def test_each_part_loads_from_the_folder_of_the_whole(comneck, picture, latents, tmp_path):
    model = comneck()
    model.save_pretrained(tmp_path)
    codec, codec_info = ElicModel.from_pretrained(tmp_path, output_loading_info=True)
    tower, tower_info = ComNeckVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not codec_info["missing_keys"] and not tower_info["missing_keys"]
    assert not tower_info["unexpected_keys"] and not codec_info["unexpected_keys"]
    assert codec.compress(picture) == model.compress(picture)
    with torch.no_grad():
        expected = model(latents).pooler_output
        assert torch.equal(tower(latents).pooler_output, expected)
        tower.save_pretrained(tmp_path / "tower")
        again = ComNeckVisionModel.from_pretrained(tmp_path / "tower")
        assert torch.equal(again(latents).pooler_output, expected)


@pytest.mark.parametrize("route", ["to", "dtype"])
def test_bfloat16_leaves_the_integers_of_the_codec_alone(comneck, picture, tmp_path, route):
    model = comneck()
    model.save_pretrained(tmp_path)
    integers = {name: buffer for name, buffer in buffers_of(model.codec).items() if not buffer.is_floating_point()}
    bitstreams = model.compress(picture)
    latents = model.decompress(bitstreams)
    with torch.no_grad():
        expected = model(latents).image_embeds
    cast = (
        ComNeckModel.from_pretrained(tmp_path, dtype=torch.bfloat16) if route == "dtype" else model.to(torch.bfloat16)
    )
    after = buffers_of(cast.codec)
    assert integers and all(torch.equal(after[name], buffer) for name, buffer in integers.items())
    assert torch.equal(cast.decompress(bitstreams), latents)
    with torch.no_grad():
        embeds = cast(latents).image_embeds
    assert embeds.dtype is torch.bfloat16
    assert torch.nn.functional.cosine_similarity(embeds.float(), expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_device_map_changes_nothing(comneck, picture, tmp_path, device_map):
    model = comneck()
    model.save_pretrained(tmp_path)
    bitstreams = model.compress(picture)
    placed = ComNeckModel.from_pretrained(tmp_path, device_map=device_map)
    assert torch.equal(placed.decompress(bitstreams).cpu(), model.decompress(bitstreams))


def test_a_frozen_codec_stays_in_evaluation_mode(comneck):
    model = comneck()
    assert model.train().codec.training
    model.codec.requires_grad_(False)
    model.train()
    assert model.vision_model.training and not model.codec.training
    assert not any(module.training for module in model.codec.modules())


def test_the_neck_learns_through_a_frozen_codec_and_tower(comneck, picture):
    model = comneck()
    model.requires_grad_(False)
    model.vision_model.neck.requires_grad_(True)
    model.train()
    model(picture).image_embeds.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.vision_model.neck.parameters())
    assert all(parameter.grad is None for parameter in model.codec.parameters())


@pytest.mark.parametrize("with_projection_only", [False, True])
@pytest.mark.parametrize("keep_clip_stem", [False, True])
def test_a_model_is_built_from_a_codec_and_a_clip(
    comneck, clip, picture, latents, with_projection_only, keep_clip_stem
):
    codec = comneck(seed=8).codec
    source = clip
    if with_projection_only:
        vision_config = clip.config.vision_config
        vision_config.projection_dim = clip.config.projection_dim
        source = CLIPVisionModelWithProjection(vision_config)
        source.load_state_dict(clip.state_dict(), strict=False)
    model = ComNeckModel.from_codec_and_clip(
        codec, source, scenario="d2", quality=3, num_skipped_layers=1, keep_clip_stem=keep_clip_stem
    ).eval()
    assert (model.config.scenario, model.config.quality, model.config.vision_config.num_skipped_layers) == ("d2", 3, 1)
    assert model.config.vision_config.latent_grid == (4, 4)
    assert model.compress(picture) == codec.compress(picture)
    assert torch.equal(model.visual_projection.weight, clip.visual_projection.weight)
    theirs, ours = clip.vision_model.state_dict(), model.vision_model.state_dict()
    assert {key for key in theirs if key in ours} >= {key for key in theirs if "encoder.layers.1." in key}
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items() if not key.startswith("neck."))
    with torch.no_grad():
        model.vision_model.neck.class_embedding.add_(1)
        assert model(latents).image_embeds.shape == (2, 24)
        if keep_clip_stem:
            pixels = torch.randn(1, 3, 56, 56)
            expected = clip.get_image_features(pixels).pooler_output
            assert torch.equal(model.visual_projection(model.vision_model(pixels).pooler_output), expected)


def test_misspelled_options_are_refused(comneck, clip):
    with pytest.raises(ValueError, match=r"\['num_skiped_layers'\] are no fields"):
        ComNeckModel.from_codec_and_clip(comneck().codec, clip, num_skiped_layers=1)


@pytest.mark.parametrize("layer", [-2, [1, -1]])
def test_the_whole_model_is_a_tower_for_llava(comneck, picture, latents, tmp_path, layer):
    torch.manual_seed(0)
    tower = comneck()
    tower.compress(picture)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=LlamaConfig(vocab_size=99, **text),
        image_token_index=98,
        vision_feature_layer=layer,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    input_ids = torch.tensor([[1, *[98] * 16, 2]] * 2)
    coded = tower.decompress(tower.compress(picture))
    with torch.no_grad():
        logits = model(input_ids=input_ids, pixel_values=coded).logits
        assert torch.equal(model(input_ids=input_ids, pixel_values=picture).logits, logits)
    model.save_pretrained(tmp_path)
    reloaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    assert type(reloaded.model.vision_tower) is ComNeckModel
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=input_ids, pixel_values=picture).logits, logits)


def test_the_feature_extraction_pipeline_runs_from_a_saved_folder(comneck, tmp_path):
    model = comneck()
    model.save_pretrained(tmp_path)
    ComNeckImageProcessorPil(size={"shortest_edge": 64}, crop_size=64).save_pretrained(tmp_path)
    photo = Image.linear_gradient("L").resize((90, 70)).convert("RGB")
    features = pipeline("image-feature-extraction", model=str(tmp_path))(photo, pool=True, return_tensors=True)
    pixel_values = ComNeckImageProcessor(size={"shortest_edge": 64}, crop_size=64)(photo, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(features, model(**pixel_values).pooler_output)
