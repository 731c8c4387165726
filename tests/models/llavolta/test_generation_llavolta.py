"""Generation with pooled tokens: every cache, every way, and caches that were changed in between."""

import copy

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    StaticCache,
)

from comneck_hf import (
    pool_visual_tokens,
)

from .prompts import PICTURE, PROMPT, batch


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


@torch.no_grad()
def test_a_placeholder_that_the_model_generates_is_a_word(llava, pixels):
    model = pool_visual_tokens(llava(), pool_layer=2, pool_stride=4)
    image_token = model.config.image_token_id
    others = [number for number in range(model.config.text_config.vocab_size) if number != image_token]
    inputs = {**batch([1, 4, *PICTURE]), "pixel_values": pixels(1)}
    found = model.generate(**inputs, max_new_tokens=3, do_sample=False, suppress_tokens=others)
    assert found[0, -3:].tolist() == [image_token] * 3
