"""LLaVA that pools visual tokens: equal to a slow computation, and to itself in every way it can be run."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlavaForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from comneck_hf import (
    LlavoltaConfig,
    LlavoltaForConditionalGeneration,
    LlavoltaNextForConditionalGeneration,
    LlavoltaTextConfig,
    LlavoltaTextModel,
    pool_visual_tokens,
)

from .prompts import IMAGE, LENGTH, PICTURE, PROMPT, batch, greedy


def by_hand(model, ids, features, layer, stride):
    """Logits of one row without cache, batch, masks or groups: lists of tokens, and layers called one by one."""
    language_model = model.model.language_model
    states = [language_model.embed_tokens(torch.tensor(token)) for token in ids]
    visual = [index for index, token in enumerate(ids) if token == IMAGE]
    for index, feature in zip(visual, features, strict=True):
        states[index] = feature
    positions, owners = list(range(len(ids))), list(range(len(ids)))

    def run(layers):
        hidden = torch.stack(states)[None]
        mask = torch.full((len(states),) * 2, -torch.inf).triu(1)[None, None]
        rotary = language_model.rotary_emb(hidden, torch.tensor([positions]))
        for one in layers:
            hidden = one(hidden, attention_mask=mask, position_embeddings=rotary)
        return list(hidden[0])

    states = run(language_model.layers[:layer])
    pooled, pooled_positions, index = [], [], 0
    while index < len(ids):
        width = 1
        if index in visual:
            rank = visual.index(index) % LENGTH
            width = min(stride, LENGTH - rank)
        for member in range(index, index + width):
            owners[member] = len(pooled)
        pooled.append(torch.stack(states[index : index + width]).mean(0))
        pooled_positions.append(sum(positions[index : index + width]) // width)
        index += width
    states, positions = pooled, pooled_positions
    states = run(language_model.layers[layer:])
    return model.lm_head(language_model.norm(torch.stack(states)))[torch.tensor(owners)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_stride_one_is_the_model_without_pooling(llava, pixels, attention):
    model = llava(attn_implementation=attention)
    model.set_attn_implementation(attention)
    inputs = {**batch(PROMPT, [1, *PICTURE, 4, *PICTURE, 3]), "pixel_values": pixels(3)}
    expected = model(**inputs).logits
    pool_visual_tokens(model, pool_layer=2, pool_stride=1)
    assert (model(**inputs).logits - expected).abs().max() == 0
    model.set_visual_pooling(2, 4)
    assert (model(**inputs).logits - expected).abs().max() > 0.1


@pytest.mark.parametrize(("layer", "stride"), [(1, 4), (2, 8), (3, 5), (2, 16)])
@torch.no_grad()
def test_logits_equal_those_of_tokens_pooled_by_hand(llava, pixels, layer, stride):
    model = pool_visual_tokens(llava(), pool_layer=layer, pool_stride=stride)
    model.set_attn_implementation("eager")
    ids = [1, 5, *PICTURE, *PICTURE, 6, 7, *PICTURE]
    features = torch.cat(model.get_image_features(pixels(3)).pooler_output)
    logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels(3)).logits[0]
    assert torch.allclose(logits, by_hand(model, ids, features, layer, stride), atol=2e-5)


@torch.no_grad()
def test_positions_with_gaps_are_not_taken_for_packed_sequences(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=1, pool_stride=8)
    inputs = {"input_ids": torch.tensor([PROMPT]), "pixel_values": pixels(1), "use_cache": False}
    positions = torch.arange(len(PROMPT))[None]
    expected = model(**inputs, attention_mask=torch.ones(1, len(PROMPT))).logits
    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(model(**inputs, position_ids=positions).logits, expected)


@pytest.mark.parametrize("stride", [4, 8])
@torch.no_grad()
def test_a_left_padded_batch_gives_the_tokens_of_its_rows(llava, pixels, stride):
    """Rows with one picture, two pictures and none, that lose different numbers of tokens."""
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=stride)
    rows = [PROMPT, [1, *PICTURE, 4, *PICTURE, 3], [1, 5, 3, 4]]
    pictures = pixels(3)
    together = greedy(model, **batch(*rows), pixel_values=pictures)
    alone = [
        greedy(model, **batch(rows[0]), pixel_values=pictures[:1]),
        greedy(model, **batch(rows[1]), pixel_values=pictures[1:]),
        greedy(model, **batch(rows[2])),
    ]
    assert torch.equal(together, torch.cat(alone))


def test_the_loss_of_a_mixed_batch_is_the_sum_of_its_rows(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=1, pool_stride=8)
    rows = [PROMPT, [1, *PICTURE, 4, *PICTURE, 3], [1, 5, 3, 4]]
    inputs = batch(*rows, side="right")
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE), -100)
    pictures, count = pixels(3), torch.tensor(1)
    loss = model(**inputs, pixel_values=pictures, labels=labels, num_items_in_batch=count).loss
    single = [
        model(
            input_ids=torch.tensor([row]),
            pixel_values=images if len(images) else None,
            labels=torch.tensor([row]).masked_fill(torch.tensor([row]) == IMAGE, -100),
            num_items_in_batch=count,
        ).loss
        for row, images in zip(rows, (pictures[:1], pictures[1:], pictures[:0]), strict=True)
    ]
    assert torch.allclose(loss, sum(single), rtol=1e-6)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.language_model.parameters())


def test_labels_are_predicted_from_the_last_group_before_them(llava, pixels):
    """The first word behind a picture is predicted from the picture's last pooled token, as in the paper."""
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=8)
    ids = [1, *PICTURE, 7]
    labels = torch.tensor([[-100] * (1 + LENGTH) + [7]])
    features = torch.cat(model.get_image_features(pixels(1)).pooler_output)
    logits = by_hand(model, ids, features, 2, 8)
    expected = torch.nn.functional.cross_entropy(logits[LENGTH], torch.tensor(7))
    loss = model(input_ids=torch.tensor([ids]), pixel_values=pixels(1), labels=labels).loss
    assert torch.allclose(loss, expected, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(llava, pixels):
    gradients = []
    for checkpointing in (False, True):
        model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        inputs = batch(PROMPT, [1, *PICTURE, 4], side="right")
        model(**inputs, pixel_values=pixels(2), labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.model.language_model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_features_and_pixels_give_the_same_tokens(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    expected = greedy(model, **batch(PROMPT), pixel_values=pixels(1))
    features = model.get_image_features(pixels(1)).pooler_output
    ready = BaseModelOutputWithPooling(pooler_output=features)
    assert torch.equal(greedy(model, **batch(PROMPT), mm_encoder_outputs={"image": ready}), expected)
    inputs = batch(PROMPT)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    by_embeds = model(inputs_embeds=embeds, **inputs, mm_encoder_outputs={"image": ready}).logits
    assert torch.equal(by_embeds, model(**batch(PROMPT), pixel_values=pixels(1)).logits)


@torch.no_grad()
def test_layer_zero_pools_before_the_language_model(llava, pixels):
    model = llava()
    features = model.get_image_features(pixels(1)).pooler_output[0]
    short = [1, 5, 6, *[IMAGE] * (LENGTH // 4), 7, 8, 9]
    averaged = features.unflatten(0, (-1, 4)).mean(1)
    ready = BaseModelOutputWithPooling(pooler_output=[averaged])
    expected = model(input_ids=torch.tensor([short]), mm_encoder_outputs={"image": ready}).logits
    tokens = greedy(
        model, **batch(short), mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=[averaged])}
    )
    pool_visual_tokens(model, pool_layer=0, pool_stride=4)
    assert torch.allclose(model(input_ids=torch.tensor([short]), pixel_values=pixels(1)).logits, expected, atol=1e-6)
    assert torch.equal(greedy(model, **batch(short), pixel_values=pixels(1)), tokens)


@torch.no_grad()
def test_squares_of_tokens_can_be_pooled(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=2, pool="avg2d")
    cache = model(**batch(PROMPT), pixel_values=pixels(1), use_cache=True).past_key_values
    assert cache.get_seq_length(2) == len(PROMPT) - LENGTH + LENGTH // 4
    runs = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    assert not torch.allclose(
        model(**batch(PROMPT), pixel_values=pixels(1)).logits, runs(**batch(PROMPT), pixel_values=pixels(1)).logits
    )


@torch.no_grad()
def test_llava_next_pools_its_tiles(llava_next):
    sizes = torch.tensor([[40, 80], [80, 40]])
    pictures = torch.randn(2, 3, 3, 56, 56)
    lengths = [len(f) for f in llava_next.get_image_features(pictures, sizes).pooler_output]
    rows = [[1, *[IMAGE] * lengths[0], 4, 5], [1, 3, *[IMAGE] * lengths[1], 4]]
    inputs = {**batch(*rows), "pixel_values": pictures, "image_sizes": sizes}
    expected = llava_next(**inputs).logits
    model = pool_visual_tokens(llava_next, pool_layer=2, pool_stride=1)
    assert type(model) is LlavoltaNextForConditionalGeneration
    assert torch.equal(model(**inputs).logits, expected)
    model.set_visual_pooling(2, 4)
    cache = model(**inputs, use_cache=True).past_key_values
    assert cache.get_seq_length(3) == max(map(len, rows)) - min(n - -(-n // 4) for n in lengths)
    tokens = greedy(model, **inputs)
    assert torch.equal(tokens, greedy(model, **inputs, use_cache=False))
    with pytest.raises(ValueError, match="LLaVA-NeXT pools with `pool_layer` of 1 or more"):
        model.set_visual_pooling(0, 4)
    assert model.config.text_config.pool_layer == 2


@torch.no_grad()
def test_settings_and_weights_survive_saving(llava, pixels, tmp_path):
    model = pool_visual_tokens(llava(), pool_layer=3, pool_stride=2, pool="avg2d", pool_grid=(2, 8))
    expected = model(**batch(PROMPT), pixel_values=pixels(1)).logits
    model.save_pretrained(tmp_path)
    reloaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(reloaded) is LlavoltaForConditionalGeneration
    assert type(reloaded.model.language_model) is LlavoltaTextModel
    assert torch.equal(reloaded(**batch(PROMPT), pixel_values=pixels(1)).logits, expected)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.text_config.pool_layer, config.text_config.pool, list(config.text_config.pool_grid)) == (
        3,
        "avg2d",
        [2, 8],
    )


@pytest.mark.parametrize("layout", ["transformers 4", "transformers 5"])
@torch.no_grad()
def test_checkpoints_of_llava_load(llava, pixels, tmp_path, layout):
    plain = llava()
    plain.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "language_model.model.norm.weight" in weights  # transformers saves as its version 4 did
    if layout == "transformers 5":
        save_file(plain.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, report = LlavoltaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    inputs = {**batch(PROMPT), "pixel_values": pixels(1)}
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    model.set_visual_pooling(1, 8)
    assert torch.equal(model(**inputs).logits, pool_visual_tokens(plain, pool_layer=1, pool_stride=8)(**inputs).logits)


def test_states_are_recorded_when_no_such_model_was_ever_built(tmp_path):
    code = """
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from comneck_hf import pool_visual_tokens
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
config = LlavaConfig(
    vision_config=CLIPVisionConfig(**sizes, image_size=56, patch_size=14),
    text_config=LlamaConfig(vocab_size=99, **sizes), image_token_index=98)
model = pool_visual_tokens(LlavaForConditionalGeneration(config), pool_layer=1, pool_stride=4)
model.set_attn_implementation("eager")
ids = torch.tensor([[1, *[98] * 16, 3]])
out = model(input_ids=ids, pixel_values=torch.randn(1, 3, 56, 56), output_hidden_states=True, output_attentions=True)
print([state.shape[1] for state in out.hidden_states], [weights.shape[-1] for weights in out.attentions])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[18, 18, 6, 18] [18, 6, 6]"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_layer": 4}, r"`pool_layer` must be in \[0, 4\), got 4"),
        ({"pool_stride": 0}, "`pool_stride` must be at least 1"),
        ({"pool_grid": (4, 0)}, "positive"),
    ],
)
def test_impossible_settings_change_nothing(llava, settings, message):
    model = llava()
    with pytest.raises(ValueError, match=message):
        pool_visual_tokens(model, **settings)
    assert type(model) is LlavaForConditionalGeneration
    assert type(model.config.text_config) is LlamaConfig


def test_a_model_that_pools_already_gets_the_new_settings(llava):
    model = pool_visual_tokens(llava(), pool_layer=1, pool_stride=2)
    assert pool_visual_tokens(model, pool_layer=2, pool_stride=4, pool="avg2d", pool_grid=(4, 4)) is model
    text_config = model.config.text_config
    assert (text_config.pool_layer, text_config.pool_stride, text_config.pool) == (2, 4, "avg2d")
    with pytest.raises(ValueError, match="pool_layer"):
        pool_visual_tokens(model, pool_layer=99, pool_stride=8)
    assert (text_config.pool_layer, text_config.pool_stride, text_config.pool) == (2, 4, "avg2d")


def test_other_models_are_refused(llava, llava_next):
    with pytest.raises(ValueError, match="got LlavaNextModel with LlamaConfig"):
        pool_visual_tokens(llava_next.model)
    with pytest.raises(ValueError, match="without `attention_bias`"):
        pool_visual_tokens(llava(attention_bias=True))
    with pytest.raises(ValueError, match="this one is 'qwen2'"):
        LlavoltaConfig(text_config={"model_type": "qwen2"})
    assert type(LlavoltaConfig(text_config={"num_hidden_layers": 3}).text_config) is LlavoltaTextConfig
