"""The CLIP tower fed by latents: equal to CLIP where it must be, numbered as CLIP, at home in LLaVA."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
)

from comneck_hf import ComNeckVisionModel


def clip_states(model, start, layer):
    """Outputs of CLIP's layers from `layer` on, called one by one."""
    states = [start]
    for encoder_layer in model.encoder.layers[layer:]:
        states.append(encoder_layer(states[-1], None))
    return states


def with_clip_weights(tower, clip_vision):
    keys = tower.load_state_dict(clip_vision.state_dict(), strict=False)
    assert all(key.startswith("neck.") for key in keys.missing_keys)
    return tower


def tiny_llava(vision_config, **options):
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlavaConfig(
        vision_config=vision_config, text_config=LlamaConfig(vocab_size=99, **text), image_token_index=98, **options
    )


@torch.no_grad()
def test_the_pixel_path_is_bit_equal_to_clip(vision_model, clip_vision, pixel_values):
    tower = with_clip_weights(vision_model(keep_clip_stem=True), clip_vision)
    ours = tower(pixel_values, output_hidden_states=True)
    theirs = clip_vision(pixel_values, output_hidden_states=True)
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    assert torch.equal(ours.pooler_output, theirs.pooler_output)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 5
    assert all(torch.equal(a, b) for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True))


@torch.no_grad()
def test_the_pixel_path_interpolates_positions_as_clip_does(vision_model, clip_vision):
    tower = with_clip_weights(vision_model(keep_clip_stem=True), clip_vision)
    picture = torch.randn(1, 3, 84, 70)
    ours = tower(picture, interpolate_pos_encoding=True).last_hidden_state
    assert torch.equal(ours, clip_vision(picture, interpolate_pos_encoding=True).last_hidden_state)


@pytest.mark.parametrize("keep_clip_stem", [False, True])
@pytest.mark.parametrize("skipped", [0, 1, 2, 3])
@torch.no_grad()
def test_latents_enter_behind_the_skipped_layers(vision_model, clip_vision, latents, skipped, keep_clip_stem):
    tower = with_clip_weights(vision_model(num_skipped_layers=skipped, keep_clip_stem=keep_clip_stem), clip_vision)
    expected = clip_states(clip_vision, tower.neck(latents), skipped)
    outputs = tower(latents=latents, output_hidden_states=True)
    assert torch.equal(outputs.last_hidden_state, expected[-1])
    assert torch.equal(outputs.pooler_output, clip_vision.post_layernorm(expected[-1][:, 0]))
    assert len(outputs.hidden_states) == 5
    numbered = [expected[0]] * skipped + expected
    assert all(torch.equal(a, b) for a, b in zip(outputs.hidden_states, numbered, strict=True))


def test_eight_skipped_layers_leave_the_rest(vision_config):
    with torch.device("meta"):
        tower = ComNeckVisionModel(vision_config(num_hidden_layers=10, num_skipped_layers=8))
    layers = {key.split(".")[2] for key in tower.state_dict() if key.startswith("encoder.layers.")}
    assert layers == {"8", "9"}
    assert not any(key.startswith(("embeddings.", "pre_layrnorm.")) for key in tower.state_dict())


@torch.no_grad()
def test_the_final_norm_can_be_repeated_as_in_the_released_code(vision_model, latents):
    once, twice = vision_model(), vision_model(post_layernorm_repeats=2)
    pooled = once(latents=latents).pooler_output
    assert torch.equal(twice(latents=latents).pooler_output, once.post_layernorm(pooled))
    assert (twice(latents=latents).pooler_output - pooled).abs().max() > 1e-2


@torch.no_grad()
def test_pixel_values_with_the_channels_of_latents_are_latents(vision_model, latents):
    tower = vision_model(keep_clip_stem=True)
    assert torch.equal(tower(latents).last_hidden_state, tower(latents=latents).last_hidden_state)


@torch.no_grad()
def test_inputs_that_fit_no_path_are_refused(vision_model, latents, pixel_values):
    tower = vision_model()
    with pytest.raises(ValueError, match="exactly one of `pixel_values` and `latents`, got none"):
        tower()
    with pytest.raises(ValueError, match="exactly one of `pixel_values` and `latents`, got both"):
        tower(pixel_values, latents)
    with pytest.raises(ValueError, match=r"without CLIP's patch embedding. Pass `latents`, or .*keep_clip_stem"):
        tower(pixel_values)
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\), or \(batch, 16, .* got \(1, 5, 4, 4\)"):
        tower(torch.zeros(1, 5, 4, 4))


@pytest.mark.parametrize("keep_clip_stem", [False, True])
@torch.no_grad()
def test_attentions_are_those_of_the_layers_that_ran(vision_model, latents, pixel_values, keep_clip_stem):
    tower = vision_model(keep_clip_stem=keep_clip_stem)
    tower.set_attn_implementation("eager")
    attentions = tower(latents=latents, output_attentions=True).attentions
    assert [tuple(attention.shape) for attention in attentions] == [(2, 4, 17, 17)] * 2
    if keep_clip_stem:
        assert len(tower(pixel_values, output_attentions=True).attentions) == 4


@pytest.mark.parametrize("layer", [-2, -1, 3, 1, [1, -2], [0, 4]])
@torch.no_grad()
def test_llava_selects_the_layers_that_it_means(vision_model, latents, layer):
    tower = vision_model()
    model = LlavaModel(tiny_llava(tower.config, vision_feature_layer=layer)).eval()
    model.vision_tower.load_state_dict(tower.state_dict())
    model.multi_modal_projector = torch.nn.Identity()
    states = tower(latents=latents, output_hidden_states=True).hidden_states
    expected = torch.cat([states[index][:, 1:] for index in ([layer] if isinstance(layer, int) else layer)], dim=-1)
    assert torch.equal(torch.stack(model.get_image_features(latents).pooler_output), expected)


def test_llava_runs_on_latents_and_survives_saving(vision_config, latents, tmp_path):
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(tiny_llava(vision_config())).eval()
    assert isinstance(model.model.vision_tower, ComNeckVisionModel)
    input_ids = torch.tensor([[1, *[98] * 16, 2]] * 2)
    with torch.no_grad():
        logits = model(input_ids=input_ids, pixel_values=latents).logits
        tokens = model.generate(input_ids=input_ids, pixel_values=latents, max_new_tokens=3, do_sample=False)
    model.save_pretrained(tmp_path)
    reloaded = LlavaForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=input_ids, pixel_values=latents).logits, logits)
        assert not torch.equal(reloaded(input_ids=input_ids, pixel_values=-latents).logits, logits)
    assert tokens.shape == (2, 21)


@pytest.mark.parametrize("keep_clip_stem", [False, True])
def test_a_tower_survives_saving(vision_model, latents, pixel_values, tmp_path, keep_clip_stem):
    tower = vision_model(keep_clip_stem=keep_clip_stem)
    tower.save_pretrained(tmp_path)
    reloaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(reloaded) is ComNeckVisionModel and not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        for inputs in [latents, pixel_values][: 1 + keep_clip_stem]:
            assert torch.equal(reloaded(inputs).pooler_output, tower(inputs).pooler_output)


@pytest.mark.parametrize("keep_clip_stem", [False, True])
@pytest.mark.parametrize("source", ["clip", "vision", "old vision"])
def test_a_tower_loads_the_weights_of_every_clip_layout(
    vision_config, clip, latents, tmp_path, source, keep_clip_stem
):
    weights = {key: value.clone() for key, value in clip.vision_model.state_dict().items()}
    if source == "clip":
        clip.save_pretrained(tmp_path)
    else:
        prefix = "vision_model." if source == "old vision" else ""
        save_file({f"{prefix}{key}": value for key, value in weights.items()}, tmp_path / "model.safetensors")
    tower, info = ComNeckVisionModel.from_pretrained(
        tmp_path, config=vision_config(keep_clip_stem=keep_clip_stem), output_loading_info=True
    )
    assert info["missing_keys"] == {key for key in tower.state_dict() if key.startswith("neck.")}
    assert not info["unexpected_keys"]
    shared = tower.state_dict().keys() & weights.keys()
    assert len(shared) == len(weights) - (0 if keep_clip_stem else 37)
    assert all(torch.equal(tower.state_dict()[key], weights[key]) for key in shared)


@pytest.mark.parametrize("prefix", ["vision_tower.vision_model.", "model.vision_tower."])
def test_a_llava_checkpoint_fills_our_tower(vision_config, clip_vision, tmp_path, prefix):
    plain = LlavaForConditionalGeneration(tiny_llava(clip_vision.config))
    plain.model.vision_tower.load_state_dict(clip_vision.state_dict())
    plain.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    tower_prefix = next(key for key in saved if "pre_layrnorm.weight" in key).removesuffix("pre_layrnorm.weight")
    save_file(
        {key.replace(tower_prefix, prefix): value for key, value in saved.items()}, tmp_path / "model.safetensors"
    )

    config = LlavaConfig.from_pretrained(tmp_path)
    config.vision_config = vision_config()
    model, info = LlavaForConditionalGeneration.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert all(".neck." in key for key in info["missing_keys"]) and info["missing_keys"]
    assert not info["unexpected_keys"]
    tower = model.model.vision_tower.state_dict()
    shared = tower.keys() & clip_vision.state_dict().keys()
    assert len(shared) == 34 and all(torch.equal(tower[key], clip_vision.state_dict()[key]) for key in shared)

    model.save_pretrained(tmp_path / "again")
    again, info = LlavaForConditionalGeneration.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_follows_float32(vision_model, latents, dtype):
    tower = vision_model()
    expected = tower(latents=latents).last_hidden_state
    outputs = tower.to(dtype)(latents=latents).last_hidden_state
    assert outputs.dtype is dtype
    assert torch.nn.functional.cosine_similarity(outputs.float(), expected, dim=-1).min() > 0.99


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_device_map_changes_nothing(vision_model, latents, tmp_path, device_map):
    tower = vision_model()
    tower.save_pretrained(tmp_path)
    placed = ComNeckVisionModel.from_pretrained(tmp_path, device_map=device_map)
    with torch.no_grad():
        assert torch.allclose(
            placed(latents=latents.to(placed.device)).pooler_output.cpu(),
            tower(latents=latents).pooler_output,
            atol=1e-5,
        )


@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
@torch.no_grad()
def test_attention_implementations_agree(vision_model, latents, implementation):
    tower = vision_model()
    expected = tower(latents=latents).last_hidden_state
    tower.set_attn_implementation(implementation)
    assert tower.neck.layer.self_attn.config._attn_implementation == implementation
    assert torch.allclose(tower(latents=latents).last_hidden_state, expected, atol=1e-5)


def gradients(tower, latents):
    tower.train().zero_grad()
    tower(latents=latents).pooler_output.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in tower.named_parameters()}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_does_not_change_gradients(vision_model, latents, use_reentrant):
    tower = vision_model()
    expected = gradients(tower, latents)
    calls = []
    tower.neck.layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    tower.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed = gradients(tower, latents.clone().requires_grad_())
    assert len(calls) == 2  # once more in the backward pass
    assert all(torch.equal(checkpointed[name], gradient) for name, gradient in expected.items())


def test_every_weight_of_a_latent_tower_learns(vision_model, latents):
    assert all(gradient.abs().sum() > 0 for gradient in gradients(vision_model(), latents).values())


@torch.no_grad()
def test_the_tower_compiles_without_graph_breaks(vision_model, latents):
    tower = vision_model()
    compiled = torch.compile(tower, fullgraph=True, backend="aot_eager")
    expected = tower(latents=latents)
    outputs = compiled(latents=latents)
    assert torch.allclose(outputs.last_hidden_state, expected.last_hidden_state, atol=1e-5)
    assert torch.allclose(outputs.pooler_output, expected.pooler_output, atol=1e-5)


def test_the_exported_tower_takes_any_batch_size(vision_model, latents):
    tower = vision_model()
    program = torch.export.export(
        tower, (), {"latents": latents}, dynamic_shapes={"latents": {0: torch.export.Dim("batch", min=1, max=64)}}
    ).module()
    more = torch.cat([latents, -latents, latents.flip(0)])[:5]
    with torch.no_grad():
        for batch in (latents, more, more[:1]):
            assert torch.allclose(
                program(latents=batch).last_hidden_state, tower(latents=batch).last_hidden_state, atol=1e-5
            )


def test_the_class_stays_a_clip_vision_model(vision_model):
    assert isinstance(vision_model(), CLIPVisionModel)
    assert vision_model().get_input_embeddings() is not None
