"""CoTAM as the tower of LLaVA models that were trained on pixels."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from comneck_hf import (
    ComNeckProcessor,
    CotamModel,
    attach_vision_tower,
    image_features,
    llava_next_processor,
)
from comneck_hf.coding.bitstream import Bitstream
from comneck_hf.integrations.coded_llava import CodedLlava
from comneck_hf.models.elic.gain_vectors_elic import add_gain_vectors


PROMPTS = ["USER: <image> what is this ? ASSISTANT:", "USER: <image> <image> what ? ASSISTANT:"]


def has_map(bitstream):
    return Bitstream.parse(bitstream, max_pixels=10**6).gain_map is not None


@torch.no_grad()
def test_pictures_latents_bitstreams_and_features_give_the_same_tokens(llava, processor, cotam, photos):
    model = attach_vision_tower(llava(), cotam)
    processor = ComNeckProcessor.for_llava(model, processor)
    bitstreams = processor.compress(photos)
    assert all(has_map(bitstream) for bitstream in bitstreams)
    latents = cotam.decompress(bitstreams)
    sizes = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    found = []
    for images in (photos, list(latents), bitstreams, [photos[0], latents[1], bitstreams[2]]):
        inputs = processor(text=PROMPTS, images=images, padding=True, return_tensors="pt")
        found.append(model.generate(**inputs, **sizes)[:, inputs["input_ids"].shape[1] :])
    assert all(torch.equal(tokens, found[0]) for tokens in found)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    features = image_features(model, bitstreams=bitstreams)
    assert features.images[0].shape == (64, 32)
    tokens = model.generate(**text, **sizes, mm_encoder_outputs=features.mm_encoder_outputs())
    assert torch.equal(tokens[:, text["input_ids"].shape[1] :], found[0])


@torch.no_grad()
def test_a_codec_that_follows_the_gain_is_decoded_by_that_of_each_bitstream(llava, processor, cotam, clip, photos):
    """LLaVA has no place for gains, so the processor joins latents with the pictures they decode to."""
    model = CotamModel.from_codec_and_clip(add_gain_vectors(cotam.codec, levels=2, level_range=(-1.0, 1.0)), clip)
    torch.manual_seed(0)
    model.codec.g_s.log_vectors.normal_(std=0.5)
    model = attach_vision_tower(llava(), model.eval())
    tower = model.model.vision_tower
    processor = ComNeckProcessor.for_llava(model, processor)
    bitstreams = [
        processor.compress(photo, gain=gain)[0] for photo, gain in zip(photos, (-0.9, 0.2, 0.8), strict=True)
    ]
    latents, gains = tower.decompress(bitstreams), tower.coded_gains(bitstreams)
    assert [round(gain, 1) for gain in gains["gain"]] == [-0.9, 0.2, 0.8]
    states = tower(latents=latents, output_hidden_states=True, **gains).hidden_states[-2][:, 1:]
    expected = model.model.multi_modal_projector(states)
    inputs = processor(text=PROMPTS, images=bitstreams, padding=True, return_tensors="pt")
    found = model.model.get_image_features(inputs["pixel_values"]).pooler_output
    close = {"atol": 1e-3, "rtol": 1e-3}  # one picture or several decoded at a time
    torch.testing.assert_close(torch.stack(list(found)), expected, **close)
    features = image_features(model, bitstreams=bitstreams).images
    torch.testing.assert_close(torch.stack(list(features)), expected, **close)
    wrong = tower(latents=latents, output_hidden_states=True, gain=0.0).hidden_states[-2][:, 1:]
    assert (model.model.multi_modal_projector(wrong) - expected).abs().max() > 0.05
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 2
    mixed = processor(text=PROMPTS, images=[inputs["pixel_values"][0], *photos[1:]], padding=True, return_tensors="pt")
    assert mixed["pixel_values"].shape == inputs["pixel_values"].shape
    assert torch.equal(mixed["pixel_values"][0], inputs["pixel_values"][0])
    with pytest.raises(ValueError, match="Some of these latents are joined"):
        processor(text=PROMPTS, images=[latents[0], *bitstreams[1:]], padding=True, return_tensors="pt")


@torch.no_grad()
def test_processors_code_to_a_wanted_size(llava, processor, next_processor, cotam, photos):
    model = attach_vision_tower(llava(), cotam)
    processor = ComNeckProcessor.for_llava(model, processor)
    free = processor.compress(photos)
    for data, other in zip(processor.compress(photos, target_bytes=500), free, strict=True):
        assert abs(len(data) - 500) <= 10 and len(other) != len(data)
    assert processor.compress(photos, gain=-1.0, gain_maps=None) == cotam.compress(
        processor.image_processor(photos, return_tensors="pt").pixel_values, gain=-1.0, gain_maps=None
    )
    model = attach_vision_tower(llava("next"), cotam)
    tiled = llava_next_processor(model, next_processor)
    assert sum(map(len, tiled.compress(photos, gain=-2.0))) < 0.8 * sum(map(len, tiled.compress(photos)))
    with pytest.raises(ValueError, match="code_canvas=True"):
        tiled.compress(photos, target_bytes=900)
    canvas = llava_next_processor(model, next_processor, code_canvas=True)
    for data in canvas.compress(photos[:1], target_bytes=900):
        assert 880 <= len(data) <= 940  # and the container of tiles around it


@torch.no_grad()
def test_llava_reads_the_second_last_layer_of_the_tower(llava, cotam, photos):
    model = attach_vision_tower(llava(), cotam)
    latents = torch.randn(2, 80, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    features = model.model.get_image_features(latents).pooler_output
    states = cotam(latents=latents, output_hidden_states=True).hidden_states
    expected = model.model.multi_modal_projector(states[-2][:, 1:])
    torch.testing.assert_close(torch.stack(list(features)), expected)


@torch.no_grad()
def test_a_saved_llava_comes_back_with_its_tower(llava, cotam, processor, photos, tmp_path, capfd):
    model = attach_vision_tower(llava(), cotam)
    model.save_pretrained(tmp_path)
    ComNeckProcessor.for_llava(model, processor).save_pretrained(tmp_path)
    loaded, report = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(loaded.model.vision_tower) is CotamModel
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    bitstreams = cotam.compress(torch.rand(1, 3, 128, 128))
    own = ComNeckProcessor.from_pretrained(tmp_path)
    latents = own(text=PROMPTS[:1], images=bitstreams, return_tensors="pt")
    assert torch.equal(latents["pixel_values"], cotam.decompress(bitstreams))
    assert "LOAD REPORT" not in capfd.readouterr().err
    guided = ComNeckProcessor.for_llava(model, processor).compress(photos)
    assert own.compress(photos) == guided and all(has_map(bitstream) for bitstream in guided)
    assert "LOAD REPORT" not in capfd.readouterr().err
    coded = CodedLlava.from_pretrained(tmp_path)
    assert has_map(coded.code(photos[:1]).images[0])


@torch.no_grad()
def test_a_llava_on_pixels_is_coded_through_a_saved_cotam(llava, cotam, processor, photos, tmp_path):
    cotam.save_pretrained(tmp_path / "cotam")
    llava().save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    for source in ("latents", "reconstruction"):
        coded = CodedLlava.from_pretrained(tmp_path / "llava", comneck=tmp_path / "cotam", source=source)
        images = coded.code(photos[:2])
        conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}]
        answers = coded.answer([conversation], [images.images[:1]], max_new_tokens=2, do_sample=False)
        assert len(answers.texts) == 1
        if source == "latents":
            assert all(has_map(bitstream) for bitstream in images.images)


@torch.no_grad()
def test_tiles_of_llava_next_are_read(llava, cotam, next_processor, photos):
    model = attach_vision_tower(llava("next"), cotam)
    inputs = llava_next_processor(model, next_processor)(text=PROMPTS[:1], images=photos[:1], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_a_tower_alone_is_refused_and_other_towers_may_follow(llava, cotam, comneck):
    model = llava()
    with pytest.raises(ValueError, match="Attach the whole `CotamModel`"):
        attach_vision_tower(model, cotam.vision_model)
    attach_vision_tower(model, cotam)
    weight = model.model.vision_tower.vision_model.encoder.layers[5].mlp.fc1.weight
    attach_vision_tower(model, comneck)
    assert type(model.model.vision_tower) is type(comneck)
    assert torch.equal(model.model.vision_tower.vision_model.encoder.layers[5].mlp.fc1.weight, weight)
