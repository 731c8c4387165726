"""Bits times tokens: a LLaVA whose visual tokens are pooled by the gain map in each picture's bitstream."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from comneck_hf import (
    Bitstream,
    ComNeckProcessor,
    GainMap,
    attach_vision_tower,
    gain_map_from_boxes,
    image_features,
    pool_visual_tokens,
)


PROMPTS = ["USER: <image> what is this ? ASSISTANT:", "USER: <image> <image> what ? ASSISTANT:", "USER: a cat"]
IMAGE = 4
STRIDES = [4, 2, 1]


@pytest.fixture
def model(llava, cotam):
    llava = attach_vision_tower(llava(), cotam)
    return pool_visual_tokens(llava, pool_layer=0, pool_stride=1, region_strides=STRIDES)


@pytest.fixture
def ours(model, processor):
    return ComNeckProcessor.for_llava(model, processor)


def map_in(bitstream):
    return Bitstream.parse(bitstream).gain_map


def expected_count(gain_map):
    """Tokens of 8x8, in runs of equal stride that begin at its multiples: counted one by one."""
    strides = [STRIDES[1 + level] for row in gain_map.levels_at(8, 8) for level in row]
    return len({(stride, index // stride) for index, stride in enumerate(strides)})


def placeholders(inputs):
    return (inputs["input_ids"] == IMAGE).sum(1).tolist()


def greedy(model, inputs):
    outputs = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    return outputs[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def test_a_batch_has_as_many_tokens_as_its_maps_leave(model, ours, photos):
    """A batch with one picture, two pictures and text only, left-padded, against each row alone."""
    bitstreams = ours.compress(photos)
    counts = [expected_count(map_in(bitstream)) for bitstream in bitstreams]
    assert len(set(counts)) == 3 and max(counts) < 64
    inputs = ours(text=PROMPTS, images=bitstreams, padding=True, return_tensors="pt")
    assert placeholders(inputs) == [counts[0], counts[1] + counts[2], 0]
    assert inputs["pool_strides"].shape == (3, 8, 8)
    together = greedy(model, inputs)
    for row, own in enumerate((bitstreams[:1], bitstreams[1:], None)):
        alone = ours(text=PROMPTS[row], images=own, return_tensors="pt")
        assert torch.equal(greedy(model, alone), together[row : row + 1])
    assert together.unique(dim=0).shape[0] > 1


@torch.no_grad()
def test_pictures_are_pooled_by_the_guide_as_their_bitstreams_are(model, ours, photos):
    bitstreams = ours.compress(photos)
    expected = ours(text=PROMPTS, images=bitstreams, padding=True, return_tensors="pt")
    for images in (photos, [photos[0], bitstreams[1], photos[2]]):
        inputs = ours(text=PROMPTS, images=images, padding=True, return_tensors="pt")
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(inputs[name], expected[name]) for name in inputs)


@pytest.mark.parametrize("stride", [1, 4])
@torch.no_grad()
def test_images_without_a_map_are_pooled_as_configured(model, ours, processor, cotam, photos, stride):
    model.set_visual_pooling(0, stride, region_strides=STRIDES)
    ours = ComNeckProcessor.for_llava(model, processor)
    pixel_values = ours.image_processor(photos, return_tensors="pt").pixel_values
    plain = cotam.compress(pixel_values[:1], gain_maps=None)[0]
    mapped = ours.compress(photos[1])[0]
    latents = cotam.decompress([plain])[0]
    inputs = ours(text=PROMPTS, images=[plain, mapped, latents], padding=True, return_tensors="pt")
    assert placeholders(inputs) == [64 // stride, expected_count(map_in(mapped)) + 64 // stride, 0]
    found = model(**inputs).logits
    model.set_visual_pooling(0, stride)
    alone = ComNeckProcessor.for_llava(model, processor)(text=PROMPTS[:1], images=[plain], return_tensors="pt")
    assert "pool_strides" not in alone
    torch.testing.assert_close(found[0, -alone["input_ids"].shape[1] :], model(**alone).logits[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_highest_level_everywhere_keeps_every_token(llava, model, ours, cotam, processor, photos):
    pixel_values = ours.image_processor(photos[:2], return_tensors="pt").pixel_values
    bitstreams = cotam.compress(pixel_values, gain_maps=GainMap(((1,) * 8,) * 8))
    plain = attach_vision_tower(llava(), cotam)
    prompts = [PROMPTS[0], PROMPTS[0]]
    expected = ComNeckProcessor.for_llava(plain, processor)(text=prompts, images=bitstreams, return_tensors="pt")
    inputs = ours(text=prompts, images=bitstreams, return_tensors="pt")
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(model(**inputs).logits, plain(**expected).logits)


@torch.no_grad()
def test_a_users_region_keeps_its_tokens_with_a_comneck_tower(llava, comneck, processor, photos):
    model = pool_visual_tokens(
        attach_vision_tower(llava(), comneck), pool_layer=0, pool_stride=2, pool="avg2d", region_strides=STRIDES
    )
    ours = ComNeckProcessor.for_llava(model, processor)
    pixel_values = ours.image_processor(photos[:1], return_tensors="pt").pixel_values
    gain_map = gain_map_from_boxes([(0, 0, 64, 64)], size=(128, 128), outside=-1)
    (bitstream,) = comneck.compress(pixel_values, gain_maps=gain_map)
    inputs = ours(text=PROMPTS[0], images=bitstream, return_tensors="pt")
    assert placeholders(inputs) == [16 + 3]  # 4x4 tokens of the box, and three squares of 4x4
    by_picture = ours(text=PROMPTS[0], images=photos[0], return_tensors="pt")
    assert by_picture["pixel_values"].shape[1] == 3 and placeholders(by_picture) == [16]
    states = model.get_image_features(pixel_values=inputs["pixel_values"], pool_strides=inputs["pool_strides"])
    model.set_visual_pooling(0, 1)
    whole = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0].view(8, 8, -1)
    found = states.pooler_output[0]
    assert torch.equal(found[:4], whole[0, :4])
    torch.testing.assert_close(found[4], whole[:4, 4:].mean((0, 1)))
    torch.testing.assert_close(found[-1], whole[4:, 4:].mean((0, 1)))


@torch.no_grad()
def test_features_of_bitstreams_are_pooled_by_their_maps(model, ours, photos):
    bitstreams = ours.compress(photos)
    inputs = ours(text=PROMPTS, images=bitstreams, padding=True, return_tensors="pt")
    expected = greedy(model, inputs)
    by_latents = image_features(model, inputs["pixel_values"], pool_strides=inputs["pool_strides"])
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for features in (image_features(model, bitstreams=bitstreams), by_latents):
        assert torch.equal(greedy(model, {**text, "mm_encoder_outputs": features.mm_encoder_outputs()}), expected)


@torch.no_grad()
def test_a_saved_folder_pools_by_maps(model, ours, photos, tmp_path):
    bitstreams = ours.compress(photos)
    expected = greedy(model, ours(text=PROMPTS, images=bitstreams, padding=True, return_tensors="pt"))
    model.save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    server = AutoProcessor.from_pretrained(tmp_path)
    assert list(server.region_strides) == STRIDES
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    inputs = server(text=PROMPTS, images=bitstreams, padding=True, return_tensors="pt")
    assert torch.equal(greedy(loaded, inputs), expected)
    assert server._codec is None  # bitstreams need no guide
    by_pictures = server(text=PROMPTS, images=photos, padding=True, return_tensors="pt")
    assert all(torch.equal(by_pictures[name], inputs[name]) for name in inputs)
