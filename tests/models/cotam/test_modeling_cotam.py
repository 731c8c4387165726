"""CoTAM's tower and model: equal to CLIP on decoded pictures at the start, guided, saved, and read by others."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModel, CLIPVisionModel

from comneck_hf import (
    ComNeckForZeroShotImageClassification,
    CotamConfig,
    CotamModel,
    CotamVisionConfig,
    CotamVisionModel,
    ElicConfig,
    ElicModel,
)
from comneck_hf.coding.bitstream import Bitstream
from comneck_hf.coding.gain_map import GainMap
from comneck_hf.models.clip_inputs import clip_inputs
from comneck_hf.models.comneck.codec_owner import codec_from_pretrained
from comneck_hf.models.cotam.guide_cotam import ShallowAttentionGuide
from comneck_hf.models.elic.gain_vectors_elic import add_gain_vectors
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.initialization import init_transforms_from_images


GRID = (4, 4)


@pytest.fixture(scope="module")
def codec() -> ElicModel:
    """Codes pictures; its entropy networks are random."""
    torch.manual_seed(3)
    widths = {"group_channels": [1, 1, 2, 3, 5], "context_channels": [6, 4], "aggregation_channels": [12, 10]}
    codec = ElicModel(ElicConfig(hidden_channels=8, latent_channels=12, quality=2, **widths)).eval()
    init_transforms_from_images(codec, synthetic_pictures(128, 6), lmbda=0.02)
    codec.calibrate(synthetic_pictures(128, 6))
    return codec


@pytest.fixture
def cotam(codec, clip):
    """Builds models around the small CLIP; `gate` opens the adapter, as training does."""

    def make(*, gate: float | None = None, **options) -> CotamModel:
        torch.manual_seed(4)
        model = CotamModel.from_codec_and_clip(codec, clip, **{"guide_grid": list(GRID), **options}).eval()
        if gate is not None:
            model.vision_model.adapter.gate.data.fill_(gate)
        return model

    return make


@pytest.fixture
def pictures() -> torch.Tensor:
    return synthetic_pictures(64, 3)


@torch.no_grad()
def test_before_training_features_are_those_of_clip_on_the_decoded_pictures(cotam, clip, pictures):
    """Acceptance test: step 0 is plain decode-then-CLIP, to the bit and in every hidden state."""
    model = cotam()
    latents = model.decompress(model.compress(pictures))
    outputs = model(latents=latents, output_hidden_states=True)
    pixels = clip_inputs(model.reconstruct(latents), 56)
    expected = clip.vision_model(pixels, output_hidden_states=True)
    assert len(outputs.hidden_states) == 5
    for found, wanted in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(outputs.image_embeds, clip.visual_projection(expected.pooler_output))
    (second_last,) = model(latents=latents, output_hidden_states=-2).hidden_states[-2][None]
    assert torch.equal(second_last, expected.hidden_states[-2])
    model.set_attn_implementation("eager")  # which alone returns attentions
    assert len(model(latents=latents, output_attentions=True).attentions) == 4


@torch.no_grad()
def test_the_open_gate_adds_the_adapter_to_the_tokens_of_the_picture(cotam, pictures):
    model = cotam(gate=0.5)
    tower, latents = model.vision_model, model.encode(pictures).latents
    outputs = model(latents=latents, output_hidden_states=True)
    prior = tower.picture_tokens(model.reconstruct(latents))
    adapted = tower.adapter(latents)
    assert adapted.abs().max() > 0.1
    assert torch.equal(outputs.hidden_states[0], prior + adapted)
    tower.adapter.gate.data.fill_(1.0)
    torch.testing.assert_close(tower.adapter(latents), 2 * adapted)


@torch.no_grad()
def test_without_prior_the_adapter_stands_alone_and_is_not_zero(cotam, pictures):
    model = cotam(use_reconstruction_prior=False)
    assert model.vision_model.adapter.gate is None
    latents = model.encode(pictures).latents
    outputs = model(latents=latents, output_hidden_states=True)
    assert torch.equal(outputs.hidden_states[0], model.vision_model.adapter(latents))
    assert outputs.hidden_states[0].std() > 0.1
    with pytest.raises(ValueError, match="reads `latents` alone"):
        model.vision_model(latents=latents, reconstruction=pictures)


@torch.no_grad()
def test_without_adapter_the_tower_is_clip(cotam, clip, pictures):
    model = cotam(use_adapter=False)
    assert model.vision_model.state_dict().keys() == clip.vision_model.state_dict().keys()
    latents = model.encode(pictures).latents
    pixels = clip_inputs(model.reconstruct(latents), 56)
    assert torch.equal(model(latents=latents).last_hidden_state, clip.vision_model(pixels).last_hidden_state)


@torch.no_grad()
def test_pictures_in_clips_own_form_take_clips_path(cotam, clip, pictures):
    pixels = clip_inputs(pictures, 56)
    tower = cotam(gate=1.0).vision_model
    assert torch.equal(tower(pixels).last_hidden_state, clip.vision_model(pixels).last_hidden_state)


@torch.no_grad()
def test_inputs_that_fit_no_path_are_refused(cotam, pictures):
    model = cotam()
    latents = model.encode(pictures).latents
    with pytest.raises(ValueError, match="exactly one of `pixel_values` and `latents`, got both"):
        model(pictures, latents)
    with pytest.raises(ValueError, match="exactly one of `pixel_values` and `latents`, got none"):
        model()
    with pytest.raises(ValueError, match="pass `reconstruction`, or use `CotamModel`"):
        model.vision_model(latents=latents)
    with pytest.raises(ValueError, match="must have shape .batch, 3"):
        model(pictures[:, :2])
    assert torch.equal(model(pictures).image_embeds, model(latents).image_embeds)


@torch.no_grad()
def test_other_sizes_need_interpolated_positions(cotam):
    model = cotam(gate=0.3)
    wide = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(6))
    with pytest.raises(ValueError, match="Latents are 4x8"):
        model(wide)
    outputs = model(wide, interpolate_pos_encoding=True)
    assert outputs.last_hidden_state.shape == (1, 33, 24)


def maps_in(bitstreams: list[bytes]) -> list[GainMap | None]:
    return [Bitstream.parse(bitstream, max_pixels=10**6).gain_map for bitstream in bitstreams]


@torch.no_grad()
def test_the_guide_decides_where_the_bits_go(cotam, codec, pictures):
    model = cotam(gain_step=4)
    maps = model.gain_maps(pictures)
    assert any(level for gain_map in maps for row in gain_map.gain_index for level in row)
    assert all((gain_map.rows, gain_map.columns, gain_map.step) == (*GRID, 4) for gain_map in maps)
    bitstreams = model.compress(pictures)
    assert maps_in(bitstreams) == maps
    assert bitstreams == codec.compress(pictures, gain_maps=maps)
    assert torch.equal(model.decompress(bitstreams), model.encode(pictures).latents)
    assert not torch.equal(model.decompress(bitstreams), codec.encode(pictures).latents)
    own = GainMap(((1, 0), (0, -1)))
    assert maps_in(model.compress(pictures, gain_maps=own)) == [own] * 3
    assert model.compress(pictures, gain_maps=None) == codec.compress(pictures)
    assert model.compress(pictures, gain=-1.0) == codec.compress(pictures, gain=-1.0, gain_maps=maps)


@torch.no_grad()
def test_pictures_of_any_sizes_are_guided_one_by_one(cotam, pictures):
    model = cotam()
    wide = torch.rand(3, 64, 128, generator=torch.Generator().manual_seed(6))
    maps = maps_in(model.compress([pictures[0], wide]))
    assert maps == [model.gain_maps(pictures[:1])[0], model.gain_maps(wide[None])[0]]


@torch.no_grad()
def test_an_unguided_model_codes_as_its_codec(cotam, codec, pictures):
    assert cotam(use_guide=False).compress(pictures) == codec.compress(pictures)


@torch.no_grad()
def test_the_guide_has_no_weights_of_its_own_and_its_layers_count(cotam, pictures):
    model = cotam()
    names = {name.partition(".")[0] for name in model.state_dict()}
    assert names == {"codec", "vision_model", "visual_projection"}
    deep = cotam(guide_layers=[3])
    assert not torch.equal(model.importance(pictures), deep.importance(pictures))
    before = model.importance(pictures)
    model.vision_model.encoder.layers[0].self_attn.q_proj.weight.data.mul_(2)
    assert not torch.equal(model.importance(pictures), before)


@torch.no_grad()
def test_a_saved_model_is_found_by_the_auto_class_whole_and_in_parts(cotam, codec, clip, pictures, tmp_path):
    model = cotam(gate=0.4, guide_threshold=0.5)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is CotamModel and loaded.config.guide_threshold == 0.5
    assert torch.equal(loaded(pictures).image_embeds, model(pictures).image_embeds)
    assert loaded.compress(pictures) == model.compress(pictures)
    own = codec_from_pretrained(tmp_path)
    assert own.compress(pictures) == codec.compress(pictures)
    edge = CLIPVisionModel.from_pretrained(tmp_path, key_mapping={r"^vision_model\.": ""}).eval()
    assert torch.equal(edge.post_layernorm.weight, clip.vision_model.post_layernorm.weight)


@torch.no_grad()
def test_towers_load_the_files_of_a_clip(clip, pictures, tmp_path):
    clip.vision_model.save_pretrained(tmp_path)
    config = CotamVisionConfig(**{**clip.config.vision_config.to_dict(), "model_type": "cotam_vision"})
    tower, report = CotamVisionModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert all(name.startswith("adapter.") for name in report["missing_keys"])
    assert float(tower.adapter.gate) == 0
    assert all(
        torch.equal(tower.state_dict()[name], weight) for name, weight in clip.vision_model.state_dict().items()
    )


@torch.no_grad()
def test_scores_of_texts(cotam, clip, pictures):
    model = cotam(gate=0.4)
    scorer = ComNeckForZeroShotImageClassification.from_comneck_and_clip(model, clip)
    input_ids = torch.randint(2, 20, (2, 6), generator=torch.Generator().manual_seed(7))
    image, text = model(pictures).image_embeds, clip.get_text_features(input_ids).pooler_output
    expected = clip.logit_scale.exp() * torch.cosine_similarity(image[:, None], text[None], dim=-1)
    torch.testing.assert_close(scorer(input_ids, pictures).logits_per_image, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide_layers": [0, 4]}, r"`guide_layers` must be some of 0 to 3, got \[0, 4\]"),
        ({"guide_layers": []}, "`guide_layers` must be some of 0 to 3"),
        ({"guide_grid": [8]}, r"`guide_grid` must be \[rows, columns\], got \[8\]"),
        ({"guide_threshold": 0}, "`guide_threshold` must be above 0, got 0"),
        ({"guide_levels": 4}, "`levels` must be odd"),
        ({"gain_step": 16}, "`step` must be 1 to 15"),
        ({"use_adapter": False, "use_reconstruction_prior": False}, "the tower sees nothing"),
        ({"latent_size": 5}, r"grid of \[5, 5\] and CLIP's patches one of \[4, 4\]"),
        ({"adapter_num_attention_heads": 5}, "`adapter_num_attention_heads` must divide `hidden_size` 24, got 5"),
        ({"adapter_width": 5}, r"\['adapter_width'\] are no fields of `CotamVisionConfig`"),
    ],
)
def test_options_that_do_not_fit_are_refused(cotam, options, message):
    with pytest.raises(Exception, match=message):
        cotam(**options)


def test_a_codec_without_decoder_is_refused():
    with pytest.raises(Exception, match="`build_synthesis=False`"):
        CotamConfig(codec_config={"model_type": "elic", "build_synthesis": False})


def test_the_adapter_takes_its_own_widths(cotam):
    adapter = cotam(adapter_num_attention_heads=2, adapter_intermediate_size=10).vision_model.adapter
    assert adapter.layer.mlp.fc1.out_features == 10 and adapter.layer.self_attn.num_heads == 2


def test_the_full_size_adapter_has_the_papers_parameters():
    """13.5 M, and the gate."""
    with torch.device("meta"):
        tower = CotamVisionModel(CotamVisionConfig(image_size=336, num_hidden_layers=1))
    assert sum(parameter.numel() for parameter in tower.adapter.parameters()) == 13_518_849


@torch.no_grad()
def test_a_codec_with_vectors_decodes_at_the_gains_of_the_bitstreams(codec, clip, pictures):
    richer = add_gain_vectors(codec, levels=2, level_range=(-1.0, 1.0))
    richer.g_s.log_vectors.normal_(std=0.3, generator=torch.Generator().manual_seed(8))
    model = CotamModel.from_codec_and_clip(richer, clip, guide_grid=list(GRID)).eval()
    for options in ({}, {"gain": 0.8}, {"gain": [0.0, 0.5, -1.0], "gain_maps": GainMap(((0, 1),))}):
        bitstreams = model.compress(pictures, **options)
        latents, gains = model.decompress(bitstreams), model.coded_gains(bitstreams)
        outputs = model(latents=latents, **gains)
        assert torch.equal(outputs.image_embeds, model(pictures, **options).image_embeds)
        expected = model.vision_model(latents=latents, reconstruction=richer.decode(latents, **gains))
        assert torch.equal(outputs.last_hidden_state, expected.last_hidden_state)
        assert not torch.allclose(outputs.image_embeds, model(latents=latents, gain=-0.9).image_embeds, atol=1e-4)
    for needy in (model, model.reconstruct):
        with pytest.raises(ValueError, match=r"Pass `\*\*model.coded_gains\(bitstreams\)` beside the latents"):
            needy(latents=latents)
    alone = CotamModel.from_codec_and_clip(richer, clip, use_reconstruction_prior=False).eval()
    assert alone(latents=latents).image_embeds.shape == (3, 16)  # no picture, no gains


@torch.no_grad()
def test_whose_attention_guides_is_configured(cotam, clip, pictures):
    model = cotam(guide_source="mean_query")
    assert torch.equal(model.importance(pictures), ShallowAttentionGuide(clip, source="mean_query")(pictures))
    assert model.gain_maps(pictures) != cotam().gain_maps(pictures)
    with pytest.raises(StrictDataclassClassValidationError, match="guide_source"):
        cotam(guide_source="patches")


@torch.no_grad()
def test_a_tower_without_adapter_checks_the_grid_as_one_with(cotam, pictures):
    model = cotam(use_adapter=False)
    wide = torch.cat([pictures, pictures], dim=3)
    latents = model.encode(wide, gain_maps=None).latents
    with pytest.raises(ValueError, match="grid of 4x8, but the tower was built for 4x4"):
        model(latents=latents)
    assert model(latents=latents, interpolate_pos_encoding=True).last_hidden_state.shape[1] == 33
    tower, small = model.vision_model, model.encode(pictures, gain_maps=None).latents
    tokens = tower.picture_tokens(pictures)
    with pytest.raises(ValueError, match="not both"):
        tower(latents=small, reconstruction=pictures, picture_tokens=tokens)
