"""LLaVA that pools visual tokens: equal to a slow computation, and to itself in every way it can be run."""

import copy
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    StaticCache,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from comneck_hf.models.llavolta import (
    LlavoltaConfig,
    LlavoltaForConditionalGeneration,
    LlavoltaNextForConditionalGeneration,
    LlavoltaTextConfig,
    LlavoltaTextModel,
    pool_visual_tokens,
)

from .conftest import IMAGE, LENGTH


PICTURE = [IMAGE] * LENGTH
PROMPT = [1, 5, 6, *PICTURE, 7, 8, 9]


def batch(*rows, side="left"):
    longest = max(map(len, rows))
    padding = [[0] * (longest - len(row)) for row in rows]
    pairs = [(p, r) if side == "left" else (r, p) for p, r in zip(padding, rows, strict=True)]
    ones = [(p, [1] * len(r)) if side == "left" else ([1] * len(r), p) for p, r in zip(padding, rows, strict=True)]
    return {
        "input_ids": torch.tensor([a + b for a, b in pairs]),
        "attention_mask": torch.tensor([a + b for a, b in ones]),
    }


def greedy(model, count=8, **inputs):
    length = inputs["input_ids"].shape[1]
    return model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False)[:, length:]


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


@torch.no_grad()
def test_the_cache_holds_fewer_tokens_behind_the_pooling(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=8)
    cache = model(**batch(PROMPT), pixel_values=pixels(1), use_cache=True).past_key_values
    assert [cache.get_seq_length(layer) for layer in range(4)] == [22, 22, 8, 8]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_decoding_from_the_cache_equals_computing_everything_anew(llava, pixels, attention):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    model.set_attn_implementation(attention)
    inputs = {**batch(PROMPT, [1, *PICTURE, 4, *PICTURE, 3], [1, 2, 3]), "pixel_values": pixels(3)}
    outputs = model.generate(
        **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    for step, logits in enumerate(outputs.logits):
        length = inputs["input_ids"].shape[1] + step
        mask = torch.cat([inputs["attention_mask"], torch.ones(3, step)], dim=1)
        anew = model(
            input_ids=outputs.sequences[:, :length],
            attention_mask=mask,
            position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
            pixel_values=pixels(3),
            use_cache=False,
        )
        assert torch.allclose(anew.logits[:, -1], logits, atol=1e-5)


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


@pytest.mark.parametrize(
    "options", [{"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 1}]
)
@torch.no_grad()
def test_other_ways_to_generate_give_the_greedy_tokens(llava, pixels, options):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    rows = [PROMPT] if "prompt_lookup_num_tokens" in options else [PROMPT, [1, *PICTURE, 4]]
    inputs = {**batch(*rows), "pixel_values": pixels(len(rows))}
    sizes = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    found = model.generate(**inputs, **sizes, **options)
    anew = model.generate(**inputs, **sizes, use_cache=False)
    assert torch.equal(found, anew)


@torch.no_grad()
def test_beam_search_finds_what_it_finds_without_a_cache(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    inputs = {**batch(PROMPT, [1, *PICTURE, 4, *PICTURE, 3]), "pixel_values": pixels(3)}
    sizes = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **sizes), model.generate(**inputs, **sizes, use_cache=False))


@torch.no_grad()
def test_an_assistant_model_changes_no_token(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    assistant = pool_visual_tokens(llava(), pool_layer=1, pool_stride=8)
    inputs = {**batch(PROMPT), "pixel_values": pixels(1)}
    sizes = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **sizes, assistant_model=assistant), model.generate(**inputs, **sizes))


@torch.no_grad()
def test_a_picture_in_a_later_turn_is_pooled_behind_the_first(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    pictures = pixels(3)
    first = batch(PROMPT, [1, 4, *PICTURE, 5])
    second = batch([6, *PICTURE, 3, 4], [3, 5])
    length = first["input_ids"].shape[1]
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model(
        **first, pixel_values=pictures[:2], position_ids=positions[:, :length], use_cache=True
    ).past_key_values
    later = model(
        input_ids=second["input_ids"],
        pixel_values=pictures[2:],
        past_key_values=cache,
        attention_mask=mask,
        position_ids=positions[:, length:],
    )
    features = model.get_image_features(pictures[[0, 2, 1]])  # in the order of the whole sequence
    ids = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
    anew = model(
        input_ids=ids,
        mm_encoder_outputs={"image": features},
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
    )
    valid = second["attention_mask"].bool()
    assert torch.allclose(later.logits[valid], anew.logits[:, length:][valid], atol=1e-5)


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


def ragged(model, pixels, **options):
    """A left-padded batch whose rows lose 0, 12 and 24 tokens; returns its inputs and the cache."""
    inputs = batch([1, 5, 3, 4], PROMPT, [1, *PICTURE, 4, *PICTURE, 3])
    positions = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    outputs = model(**inputs, pixel_values=pixels(3), position_ids=positions, use_cache=True, **options)
    return inputs, outputs.past_key_values


def next_logits(model, cache, mask, tokens):
    mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], dim=1)
    positions = mask.sum(1, keepdim=True) - 1
    ids = torch.tensor(tokens)[:, None]
    return model(input_ids=ids, past_key_values=cache, attention_mask=mask, position_ids=positions).logits


@pytest.mark.parametrize("rows", [[1, 0, 2], [2, 1], [1, 1, 0, 0, 2, 2]])
@torch.no_grad()
def test_caches_may_be_reordered_selected_and_repeated(llava, pixels, rows):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    inputs, cache = ragged(model, pixels)
    expected = next_logits(model, copy.deepcopy(cache), inputs["attention_mask"], [3, 4, 5])
    if len(rows) == 3:
        cache.reorder_cache(torch.tensor(rows))
    elif len(rows) == 2:
        cache.batch_select_indices(torch.tensor(rows))
    else:
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([2, 3, 0, 1, 4, 5]))
    tokens = [[3, 4, 5][row] for row in rows]
    found = next_logits(model, cache, inputs["attention_mask"][rows], tokens)
    assert torch.allclose(found, expected[rows], atol=1e-5)


@pytest.mark.parametrize("static", [False, True])
@torch.no_grad()
def test_a_cache_that_was_reset_forgets_its_images(llava, pixels, static):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    caches = [StaticCache(config=model.config, max_cache_len=64) if static else DynamicCache() for _ in range(2)]
    ragged(model, pixels, past_key_values=caches[0])
    caches[0].reset()
    text = batch([1, 5, 3, 4, 6, 7], [1, 3], [4, 5, 6])
    positions = (text["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = []
    for cache in caches:
        model(**text, past_key_values=cache, position_ids=positions)
        logits.append(next_logits(model, cache, text["attention_mask"], [3, 4, 5]))
    assert torch.allclose(*logits, atol=1e-5)


@torch.no_grad()
def test_a_copied_cache_serves_several_questions(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    inputs, cache = ragged(model, pixels)
    first = next_logits(model, copy.deepcopy(cache), inputs["attention_mask"], [3, 4, 5])
    next_logits(model, copy.deepcopy(cache), inputs["attention_mask"], [7, 7, 7])
    assert torch.equal(next_logits(model, cache, inputs["attention_mask"], [3, 4, 5]), first)


@torch.no_grad()
def test_caches_that_do_not_fit_are_refused(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    cache = model(**batch(PROMPT), pixel_values=pixels(1), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="has 1 rows and 22 tokens, where 2 rows"):
        model(input_ids=torch.tensor([[3], [3]]), past_key_values=cache)
    cache.crop(-3)
    assert model(input_ids=torch.tensor([[3]]), past_key_values=cache).logits.shape[1] == 1
    cache.crop(-6)
    with pytest.raises(ValueError, match="14 tokens, where 1 rows and at least 19 tokens"):
        model(input_ids=torch.tensor([[3]]), past_key_values=cache)
    with pytest.raises(ValueError, match="4 dimensions"):
        model(**{**batch(PROMPT), "attention_mask": torch.ones(1, 1, 22, 22)}, pixel_values=pixels(1))
    with pytest.raises(ValueError, match="has 3 columns"):
        model(**{**batch(PROMPT), "attention_mask": torch.ones(1, 3)}, pixel_values=pixels(1))


@pytest.mark.parametrize("way", ["keyword", "positional", "default"])
@torch.no_grad()
def test_an_image_that_is_read_in_chunks_is_refused(llava, pixels, way):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    sizes = {"max_new_tokens": 2, "do_sample": False}
    config = GenerationConfig(prefill_chunk_size=8, **sizes)
    words, options = ([config], {}) if way == "positional" else ([], {"prefill_chunk_size": 8, **sizes})
    if way == "default":
        model.generation_config.prefill_chunk_size, options = 8, sizes
    inputs = batch(PROMPT)
    ids = inputs.pop("input_ids")
    with pytest.raises(ValueError, match="pieces would be pooled apart. Leave out `prefill_chunk_size`"):
        model.generate(ids, *words, **inputs, pixel_values=pixels(1), **options)
    text = torch.arange(1, 30)[None]
    assert model.generate(text, *words, **options).shape == (1, 31)


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


def test_other_models_are_refused(llava, llava_next):
    model = pool_visual_tokens(llava())
    with pytest.raises(ValueError, match="pools already; change its setting with `set_visual_pooling`"):
        pool_visual_tokens(model)
    with pytest.raises(ValueError, match="got LlavaNextModel with LlamaConfig"):
        pool_visual_tokens(llava_next.model)
    with pytest.raises(ValueError, match="without `attention_bias`"):
        pool_visual_tokens(llava(attention_bias=True))
    with pytest.raises(ValueError, match="this one is 'qwen2'"):
        LlavoltaConfig(text_config={"model_type": "qwen2"})
    assert type(LlavoltaConfig(text_config={"num_hidden_layers": 3}).text_config) is LlavoltaTextConfig
