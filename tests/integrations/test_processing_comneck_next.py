"""The processor of LLaVA-NeXT: pictures of any size and their bitstreams lead to the same inputs and answers."""

import base64

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaNextProcessor

from comneck_hf import (
    BitstreamError,
    ComNeckNextProcessor,
    ComNeckProcessor,
    attach_vision_tower,
    image_features,
    llava_next_processor,
)
from comneck_hf.coding.tiles import TiledBitstream


PROMPTS = ["USER: <image> what is this ? ASSISTANT:", "USER: <image> <image> what ? ASSISTANT:", "USER: a cat"]
POINTS = [[112, 224], [224, 112], [224, 224]]


@pytest.fixture
def model(llava, comneck):
    return attach_vision_tower(llava("next", image_grid_pinpoints=POINTS), comneck)


@pytest.fixture
def ours(model, next_processor, processor):
    next_processor.chat_template = processor.chat_template
    return llava_next_processor(model, next_processor)


@pytest.fixture(scope="session")
def pictures(photos):
    """A square, a wide and a high picture: 5, 3 and 3 tiles."""
    return [photos[0], photos[1].resize((300, 101)), photos[2].resize((90, 201))]


def greedy(model, inputs):
    outputs = model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    return outputs[:, inputs["input_ids"].shape[1] :]


@torch.no_grad()
def test_pictures_and_bitstreams_give_the_same_tokens(model, ours, comneck, pictures):
    """A batch with one picture, two pictures and text only, left-padded; bitstreams alone and mixed with pictures."""
    bitstreams = ours.compress(pictures)
    assert [len(TiledBitstream.parse(data).tiles) for data in bitstreams] == [5, 3, 3]
    by_pixels = ours(text=PROMPTS, images=pictures, padding=True, return_tensors="pt")
    assert by_pixels["pixel_values"].shape == (3, 5, 3, 128, 128)
    expected = greedy(model, by_pixels)
    assert expected.unique(dim=0).shape[0] > 1

    tiles = by_pixels["pixel_values"]
    latents = comneck.decompress(comneck.compress(torch.cat([tiles[0], tiles[1, :3], tiles[2, :3]]))).split([5, 3, 3])
    for images in (bitstreams, [bitstreams[0], pictures[1], bitstreams[2]], [bitstreams[:1], bitstreams[1:], []]):
        inputs = ours(text=PROMPTS, images=images, padding=True, return_tensors="pt")
        assert inputs["pixel_values"].shape == (3, 5, comneck.config.vision_config.latent_channels, 8, 8)
        for found, own in zip(inputs["pixel_values"], latents, strict=True):
            assert torch.equal(found[: len(own)], own) and not found[len(own) :].any()
        for name in ("input_ids", "attention_mask", "image_sizes"):
            assert torch.equal(inputs[name], by_pixels[name])
        assert torch.equal(greedy(model, inputs), expected)

    features = image_features(model, inputs["pixel_values"], image_sizes=inputs["image_sizes"]).mm_encoder_outputs()
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(greedy(model, {**text, "mm_encoder_outputs": features}), expected)


@torch.no_grad()
def test_pictures_alone_are_processed_as_transformers_does(model, ours, pictures):
    plain = LlavaNextProcessor(
        ours.image_processor,
        ours.tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    for strategy in ("default", "full"):
        plain.vision_feature_select_strategy = ours.vision_feature_select_strategy = strategy
        inputs = [one(text=PROMPTS, images=pictures, padding=True, return_tensors="pt") for one in (plain, ours)]
        assert inputs[0].keys() == inputs[1].keys()
        assert all(torch.equal(inputs[0][name], inputs[1][name]) for name in inputs[0])
        assert plain._get_num_multimodal_tokens([[101, 300]]) == ours._get_num_multimodal_tokens([[101, 300]])


@torch.no_grad()
def test_a_saved_folder_is_all_that_a_server_needs(model, ours, pictures, tmp_path):
    model.save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    bitstream = ours.compress(pictures[1])[0]
    (tmp_path / "photo.cnk").write_bytes(bitstream)
    expected = greedy(model, ours(text=PROMPTS[:1], images=[bitstream], return_tensors="pt"))

    server = AutoProcessor.from_pretrained(tmp_path)
    assert type(server) is ComNeckNextProcessor
    assert server.compress(pictures[1]) == [bitstream]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    data_url = "data:application/x-comneck;base64," + base64.b64encode(bitstream).decode()
    for image in ({"path": str(tmp_path / "photo.cnk")}, {"url": data_url}, {"image": bitstream}):
        content = [{"type": "image", **image}, {"type": "text", "text": "what is this ?"}]
        inputs = server.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert torch.equal(greedy(loaded, inputs), expected)


def test_text_alone_and_images_alone_are_taken(ours, pictures, tmp_path):
    assert set(ours(text=["what is this ?"], return_tensors="pt")) == {"input_ids", "attention_mask"}
    assert set(ours(images=ours.compress(pictures[:1]), return_tensors="pt")) == {"pixel_values", "image_sizes"}
    assert "pixel_values" not in ours(text=["what ?"], images=[[]], return_tensors="pt")
    pictures[0].save(tmp_path / "photo.png")
    assert ours.compress(tmp_path / "photo.png") == ours.compress(pictures[0])


def test_wrong_images_are_named(ours, pictures, comneck):
    bitstream = ours.compress(pictures[1])[0]
    parsed = TiledBitstream.parse(bitstream)
    with pytest.raises(BitstreamError, match="Not a picture in tiles: it starts with b'CNK'"):
        ours(text="<image>", images=parsed.tiles[0], return_tensors="pt")
    with pytest.raises(BitstreamError, match="checksum of this .*-byte container"):
        ours(text="<image>", images=bitstream[:-5], return_tensors="pt")
    fewer = TiledBitstream(parsed.height, parsed.width, parsed.tiles[:2]).pack()
    with pytest.raises(ValueError, match="101x300 pixels was coded as 2 tiles, but this model reads 3"):
        ours(text="<image>", images=fewer, return_tensors="pt")
    small = comneck.compress(torch.rand(1, 3, 64, 128)) * 3
    with pytest.raises(ValueError, match="A tile has latents of 4x8, but the tower takes 8x8"):
        ours(text="<image>", images=TiledBitstream(101, 300, tuple(small)).pack(), return_tensors="pt")
    with pytest.raises(ValueError, match="2 <image> tokens and 1 images"):
        ours(text="<image> <image>", images=bitstream, return_tensors="pt")
    for images in ([], [bitstream]):
        with pytest.raises(ValueError, match="at least one, and none that is a bitstream"):
            ours.compress(images)


def test_models_of_the_other_kind_are_sent_to_their_processor(llava, model, comneck, processor, ours):
    with pytest.raises(ValueError, match="its processor is `llava_next_processor"):
        ComNeckProcessor.for_llava(model, processor)
    with pytest.raises(ValueError, match="its processor is `ComNeckProcessor`"):
        llava_next_processor(attach_vision_tower(llava(), comneck), processor)
    with pytest.raises(ValueError, match="The tower of this model is 'clip_vision_model'"):
        llava_next_processor(llava("next"), processor)
    with pytest.raises(ValueError, match="The tower of this model is 'comneck_vision'"):
        llava_next_processor(attach_vision_tower(llava("next"), comneck.vision_model), processor)
