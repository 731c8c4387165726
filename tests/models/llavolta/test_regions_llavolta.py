"""Strides that differ by region: groups, their number, and a LLaVA that pools by them."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoModelForImageTextToText

from comneck_hf import GainMap, LlavoltaConfig, pool_visual_tokens
from comneck_hf.models.llavolta.pooling_llavolta import TokenGroups, image_offsets, map_strides, region_offsets

from .prompts import IMAGE, LENGTH, batch, greedy


SIDE = 4  # of a picture in tokens
STRIDES = [4, 2, 1]


def prompt(*counts):
    """Words around pictures of so many tokens."""
    return [1, 5, *(token for count in counts for token in (*[IMAGE] * count, 7)), 8, 9]


def num_groups(strides, **options):
    return int((region_offsets(strides, length=strides.numel(), **options) == 0).sum())


@pytest.fixture
def model(llava):
    return pool_visual_tokens(llava(), pool_layer=0, pool_stride=1, region_strides=STRIDES)


@pytest.fixture
def three_maps():
    """Strides of a picture whose halves differ, one of four quarters, and one without a map."""
    maps = [GainMap(((1, -1),)), GainMap(((1, 0), (-1, 1))), None]
    return torch.stack([map_strides(one, (SIDE, SIDE), region_strides=STRIDES, pool_stride=2) for one in maps])


def test_strides_follow_the_cells_of_the_map():
    gain_map = GainMap(((1, 0, -1), (0, 0, 1)))
    found = map_strides(gain_map, (4, 6), region_strides=(4, 2, 1), pool_stride=8)
    assert found.tolist() == [[1, 1, 2, 2, 4, 4]] * 2 + [[2, 2, 2, 2, 1, 1]] * 2
    fine = GainMap(((-3, -1, 0, 2),), levels=7)
    assert map_strides(fine, (1, 4), region_strides=(4, 2, 1), pool_stride=8).tolist() == [[4, 4, 2, 1]]
    assert map_strides(None, (2, 2), region_strides=(4, 2, 1), pool_stride=8).tolist() == [[8, 8], [8, 8]]


@pytest.mark.parametrize("pool", ["avg1d", "avg2d"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_one_stride_everywhere_gives_the_groups_without_regions(pool, stride):
    for height, width in ((4, 4), (5, 6), (1, 7)):
        found = region_offsets(torch.full((height, width), stride), length=height * width, pool=pool)
        assert torch.equal(found, image_offsets(height * width, stride=stride, pool=pool, grid=(height, width)))


def test_groups_end_where_the_stride_changes():
    strides = torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2], [4, 4, 4, 4], [4, 4, 4, 4]])
    runs = TokenGroups.from_offsets(region_offsets(strides, length=16, pool="avg1d")[None])
    assert runs.group.tolist() == [[0, 1, 2, 2, 3, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7]]
    squares = TokenGroups.from_offsets(region_offsets(strides, length=16, pool="avg2d")[None])
    assert squares.group.tolist() == [[0, 1, 2, 2, 3, 4, 2, 2, 5, 5, 5, 5, 5, 5, 5, 5]]
    tokens = torch.randn(1, 16, 3)
    assert torch.allclose(squares.mean(tokens)[0, 2], tokens[0, [2, 3, 6, 7]].mean(0))
    assert torch.allclose(squares.mean(tokens)[0, 5], tokens[0, 8:].mean(0))


def test_a_class_token_stays_alone():
    strides = torch.full((2, 2), 4)
    assert region_offsets(strides, length=5, pool="avg1d").tolist() == [0, 0, 1, 2, 3]
    with pytest.raises(ValueError, match="2x2 do not fit an image of 7 tokens"):
        region_offsets(strides, length=7, pool="avg1d")
    with pytest.raises(ValueError, match="at least 1, .* got 0"):
        region_offsets(strides * 0, length=4, pool="avg1d")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_the_highest_level_everywhere_is_the_model_without_pooling(llava, pixels, attention):
    model = llava()
    model.set_attn_implementation(attention)
    inputs = {**batch(prompt(LENGTH), prompt(LENGTH, LENGTH)), "pixel_values": pixels(3)}
    expected, tokens = model(**inputs).logits, greedy(model, **inputs)
    pool_visual_tokens(model, pool_layer=0, pool_stride=8, region_strides=STRIDES)
    one = map_strides(GainMap(((1,),)), (SIDE, SIDE), region_strides=STRIDES, pool_stride=8)
    inputs["pool_strides"] = one.expand(3, -1, -1)
    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(greedy(model, **inputs), tokens)


@torch.no_grad()
def test_logits_equal_those_of_features_averaged_by_hand(model, pixels, three_maps):
    images = pixels(3)
    with pytest.raises(ValueError, match="pools no regions"):
        model.set_visual_pooling(0, 1)
        model.get_image_features(images, pool_strides=three_maps)
    features = model.get_image_features(images).pooler_output
    left, lower_left, upper_right = features[0].view(4, 4, -1), features[1].view(4, 4, -1), features[1].view(4, 4, -1)
    by_hand = [
        # runs of 4 hold one half of a row each: two tokens alone, two averaged
        torch.cat([torch.stack([*row[:2], row[2:].mean(0)]) for row in left]),
        torch.cat(
            [torch.stack([*row[:2], row[2:].mean(0)]) for row in upper_right[:2]]
            + [torch.stack([row[:2].mean(0), *row[2:]]) for row in lower_left[2:]]
        ),
        features[2].view(8, 2, -1).mean(1),
    ]
    model.set_visual_pooling(0, 2, region_strides=STRIDES)
    found = model.get_image_features(images, pool_strides=three_maps).pooler_output
    for one, expected in zip(found, by_hand, strict=True):
        torch.testing.assert_close(one, expected)
    counts = [len(image) for image in found]
    assert counts == [num_groups(strides, pool="avg1d") for strides in three_maps] == [12, 12, 8]
    ids = torch.tensor([prompt(*counts)])
    embeds = model.get_input_embeddings()(ids)
    embeds[ids == IMAGE] = torch.cat(by_hand)
    expected = model(inputs_embeds=embeds).logits
    logits = model(input_ids=ids, pixel_values=images, pool_strides=three_maps).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2, "num_return_sequences": 2}])
@torch.no_grad()
def test_a_left_padded_batch_gives_the_tokens_of_its_rows(model, pixels, three_maps, options):
    images = pixels(3)
    rows = [prompt(12), [1, 3], prompt(12, 8)]
    pictures = [slice(0, 1), None, slice(1, 3)]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **options}

    def run(ids, **inputs):
        inputs = batch(*ids) | inputs
        outputs = model.generate(**inputs, **options)
        return outputs[:, inputs["input_ids"].shape[1] :]

    together = run(rows, pixel_values=images, pool_strides=three_maps)
    alone = [
        run([row], **({} if own is None else {"pixel_values": images[own], "pool_strides": three_maps[own]}))
        for row, own in zip(rows, pictures, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_the_loss_of_a_batch_has_gradients(model, pixels, three_maps):
    inputs = batch(prompt(12), prompt(12, 8), side="right")
    labels = inputs["input_ids"].masked_fill((inputs["input_ids"] == IMAGE) | (inputs["attention_mask"] == 0), -100)
    model(**inputs, pixel_values=pixels(3), pool_strides=three_maps, labels=labels).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_settings_survive_saving(model, pixels, three_maps, tmp_path):
    inputs = {**batch(prompt(12, 12, 8)), "pixel_values": pixels(3), "pool_strides": three_maps}
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert list(loaded.config.text_config.region_strides) == STRIDES
    assert torch.equal(loaded(**inputs).logits, expected)


@torch.no_grad()
def test_strides_that_do_not_fit_are_refused(model, llava, pixels, three_maps):
    with pytest.raises(ValueError, match=r"must be \(2 images, height, width\), got \(3, 4, 4\)"):
        model.get_image_features(pixels(2), pool_strides=three_maps)
    with pytest.raises(ValueError, match="2x4 do not fit an image of 16 tokens"):
        model.get_image_features(pixels(3), pool_strides=three_maps[:, :2])
    with pytest.raises(ValueError, match="'pool_strides'"):
        llava().generate(**batch(prompt(LENGTH)), pixel_values=pixels(1), pool_strides=three_maps)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_layer": 2, "region_strides": [4, 2, 1]}, "`pool_layer` is 2. Set it to 0"),
        ({"pool_layer": 0, "region_strides": [2, 1]}, r"three strides of at least 1, .* got \[2, 1\]"),
        ({"pool_layer": 0, "region_strides": [4, 0, 1]}, r"got \[4, 0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(llava, llava_next, settings, message):
    with pytest.raises(ValueError, match=message):
        pool_visual_tokens(llava(), **settings)
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        LlavoltaConfig(text_config=settings)
    model = pool_visual_tokens(llava(), pool_layer=0, pool_stride=2)
    with pytest.raises(ValueError, match=message):
        model.set_visual_pooling(settings["pool_layer"], 2, region_strides=settings["region_strides"])
    assert model.config.text_config.region_strides is None
    with pytest.raises(ValueError, match="LLaVA-NeXT pools with"):
        pool_visual_tokens(llava_next, pool_layer=0, pool_stride=1, region_strides=[4, 2, 1])
