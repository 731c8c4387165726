"""ComNeck as the tower of LLaVA models that were trained on pixels, with the packaged weights."""

import base64
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    pipeline,
)

from comneck_hf import (
    ComNeckImageProcessor,
    ComNeckModel,
    ComNeckProcessor,
    attach_vision_tower,
    image_features,
    llava_next_processor,
    pool_visual_tokens,
)
from comneck_hf.integrations.vllm import register


PROMPTS = ["USER: <image> what is this ? ASSISTANT:", "USER: <image> <image> what ? ASSISTANT:", "USER: a cat"]


def attached(llava, processor, comneck, **options):
    model = attach_vision_tower(llava(**options), comneck)
    return model, ComNeckProcessor.for_llava(model, processor)


def greedy(model, inputs, **options):
    sizes = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    return model.generate(**inputs, **sizes, **options)[:, inputs["input_ids"].shape[1] :]


def is_equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


@torch.no_grad()
def test_pictures_latents_bitstreams_and_features_give_the_same_tokens(llava, processor, comneck, photos):
    """A batch with one picture, two pictures and text only, left-padded."""
    model, processor = attached(llava, processor, comneck)
    bitstreams = processor.compress(photos)
    latents = comneck.decompress(bitstreams)
    by_pixels = processor(text=PROMPTS, images=photos, padding=True, return_tensors="pt")
    assert by_pixels["pixel_values"].shape == (3, 3, 128, 128)
    expected = greedy(model, by_pixels)
    assert expected.unique(dim=0).shape[0] > 1
    mixed, nested = [photos[0], latents[1], bitstreams[2]], [bitstreams[:1], bitstreams[1:], []]
    for images in (list(latents), latents, latents.numpy(), bitstreams, mixed, nested):
        inputs = processor(text=PROMPTS, images=images, padding=True, return_tensors="pt")
        assert torch.equal(inputs["pixel_values"], latents)
        assert torch.equal(inputs["input_ids"], by_pixels["input_ids"])
        assert torch.equal(greedy(model, inputs), expected)
    text = {name: by_pixels[name] for name in ("input_ids", "attention_mask")}
    features = image_features(model, bitstreams=bitstreams)
    assert torch.equal(greedy(model, text, mm_encoder_outputs=features.mm_encoder_outputs()), expected)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}]
)
@torch.no_grad()
def test_every_way_to_generate_takes_latents(llava, processor, comneck, photos, options):
    model, processor = attached(llava, processor, comneck)
    bitstreams = processor.compress(photos[:1])
    found = []
    for images in (photos[:1], bitstreams):
        inputs = processor(text=PROMPTS[:1], images=images, return_tensors="pt")
        found.append(greedy(model, inputs, **options))
    assert torch.equal(*found)


@torch.no_grad()
def test_tokens_are_those_of_the_decoded_bits_not_of_the_picture(llava, processor, comneck, photos):
    """The tower's features are ComNeck's, computed apart from LLaVA."""
    model, processor = attached(llava, processor, comneck)
    latents = comneck.decompress(processor.compress(photos[:1]))
    states = comneck(latents=latents, output_hidden_states=True).hidden_states[-2][:, 1:]
    expected = model.model.multi_modal_projector(states)
    features = image_features(model, latents)
    assert torch.equal(features.image_embeds(), expected)
    assert features.precomputed_embeddings()[0]["feature"].shape == (64, 32)


@pytest.mark.parametrize("layout", ["transformers 4", "transformers 5", "in memory"])
@torch.no_grad()
def test_the_swapped_model_saves_and_reloads(llava, processor, comneck, photos, tmp_path, layout):
    model = llava()
    if layout != "in memory":
        model.save_pretrained(tmp_path / "plain")
        if layout == "transformers 5":
            file = tmp_path / "plain" / "model.safetensors"
            save_file(model.state_dict(), file, metadata={"format": "pt"})
        model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "plain")
        assert type(model.model.vision_tower) is CLIPVisionModel
    attach_vision_tower(model, comneck)
    processor = ComNeckProcessor.for_llava(model, processor)
    inputs = processor(text=PROMPTS[:1], images=photos[:1], return_tensors="pt")
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path / "swapped")
    processor.save_pretrained(tmp_path / "swapped")
    reloaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "swapped", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert type(reloaded.model.vision_tower) is ComNeckModel
    assert is_equal(reloaded.state_dict(), model.state_dict())
    assert torch.equal(reloaded(**inputs).logits, expected)
    assert reloaded.config.image_seq_length == 64


@torch.no_grad()
def test_a_saved_folder_is_all_that_a_server_needs(llava, processor, comneck, photos, tmp_path):
    """Model, processor and codec come from one folder by the Auto classes."""
    model, processor = attached(llava, processor, comneck)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    bitstreams = processor.compress(photos[:1])
    (tmp_path / "photo.cnk").write_bytes(bitstreams[0])
    expected = greedy(model, processor(text=PROMPTS[:1], images=bitstreams, return_tensors="pt"))

    server = AutoProcessor.from_pretrained(tmp_path)
    assert type(server) is ComNeckProcessor
    assert server.codec.exact.fingerprint == comneck.codec.exact.fingerprint
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    data_url = "data:application/x-comneck;base64," + base64.b64encode(bitstreams[0]).decode()
    for image in ({"path": str(tmp_path / "photo.cnk")}, {"url": data_url}, {"image": bitstreams[0]}):
        content = [{"type": "image", **image}, {"type": "text", "text": "what is this ?"}]
        inputs = server.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert torch.equal(greedy(model, inputs), expected)


@torch.no_grad()
def test_pipelines_answer_from_pictures_and_bitstreams(llava, processor, comneck, photos, tmp_path):
    model, processor = attached(llava, processor, comneck)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    photos[0].save(tmp_path / "photo.png")
    (tmp_path / "photo.cnk").write_bytes(processor.compress(photos[:1])[0])
    answer = pipeline("image-text-to-text", model=str(tmp_path))
    texts = []
    for name in ("photo.png", "photo.cnk"):
        content = [{"type": "image", "path": str(tmp_path / name)}, {"type": "text", "text": "what ?"}]
        options = {"generate_kwargs": {"max_new_tokens": 5, "do_sample": False}, "return_full_text": False}
        texts.append(answer(text=[{"role": "user", "content": content}], **options)[0]["generated_text"])
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize("kind", ["llava", "vip"])
@torch.no_grad()
def test_half_precision_and_device_maps_work(llava, processor, comneck, photos, tmp_path, kind):
    """Bitstreams mean the same latents as in float32; the features are those of the tower in half precision."""
    model = attach_vision_tower(llava(kind), comneck)
    model.save_pretrained(tmp_path)
    processor = ComNeckProcessor.for_llava(model, processor)
    bitstreams = processor.compress(photos[:1])
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="auto").eval()
    tower, latents = loaded.model.vision_tower, comneck.decompress(bitstreams)
    assert torch.equal(tower.decompress(bitstreams), latents)
    assert tower.vision_model.neck.projection.weight.dtype == torch.bfloat16
    inputs = processor(text=PROMPTS[:1], images=bitstreams, return_tensors="pt")
    by_bitstream = greedy(loaded, inputs.to(torch.bfloat16))
    features = image_features(loaded, bitstreams=bitstreams)
    assert features.images[0].dtype == torch.bfloat16
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(greedy(loaded, text, mm_encoder_outputs=features.mm_encoder_outputs()), by_bitstream)
    exact = image_features(model, latents).images[0]
    assert (features.images[0].float() - exact).norm() < 0.05 * exact.norm()


@torch.no_grad()
def test_vip_llava_reads_several_layers_of_the_tower(llava, comneck):
    model = attach_vision_tower(llava("vip"), comneck)
    latents = torch.randn(2, comneck.config.vision_config.latent_channels, 8, 8).round()
    input_ids = torch.tensor([[1, *[4] * 64, 7]] * 2)
    states = comneck(latents=latents, output_hidden_states=True).hidden_states
    joined = torch.cat([states[layer][:, 1:] for layer in (-2, -3, 3)], dim=-1)
    outputs = model(input_ids=input_ids, pixel_values=latents)
    assert torch.equal(outputs.image_hidden_states, model.model.multi_modal_projector(joined))


def test_the_quickstart_of_transformers_runs_with_another_path(llava, processor, comneck, photos, tmp_path):
    """The example of `LlavaForConditionalGeneration.forward`, but for the model and where the picture comes from."""
    model, ours = attached(llava, processor, comneck)
    model.save_pretrained(tmp_path / "model")
    ours.save_pretrained(tmp_path / "model")
    photos[0].save(tmp_path / "stop.png")
    code = f"""
import comneck_hf
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained({str(tmp_path / "model")!r})
processor = AutoProcessor.from_pretrained({str(tmp_path / "model")!r})

prompt = "USER: <image>\\nWhat's the content of the image? ASSISTANT:"
image = Image.open({str(tmp_path / "stop.png")!r})

inputs = processor(images=image, text=prompt, return_tensors="pt")

# Generate
generate_ids = model.generate(**inputs, max_new_tokens=15)
print(processor.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    prompt = "USER: <image>\nWhat's the content of the image? ASSISTANT:"
    inputs = ours(images=photos[0], text=prompt, return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=15)
    assert shown.strip() == ours.batch_decode(expected, skip_special_tokens=True)[0].strip()


@torch.no_grad()
def test_llava_next_takes_tiles_as_pictures_and_as_latents(llava, next_processor, comneck, photos, tmp_path):
    model = attach_vision_tower(llava("next"), comneck)
    assert model.config.image_grid_pinpoints == [[128, 256], [256, 128]]
    processor = llava_next_processor(model, next_processor)
    inputs = processor(text=PROMPTS[:2], images=photos, padding=True, return_tensors="pt")
    expected = greedy(model, inputs)
    tiles = inputs["pixel_values"]
    latents = comneck.decompress(comneck.compress(tiles.flatten(0, 1))).unflatten(0, tiles.shape[:2])
    assert torch.equal(greedy(model, {**inputs, "pixel_values": latents}), expected)
    features = image_features(model, latents, image_sizes=inputs["image_sizes"])
    with pytest.raises(ValueError, match="needs `image_sizes`"):
        image_features(model, latents)
    bitstreams = processor.compress(photos)
    with pytest.raises(ValueError, match="which its processor reads"):
        image_features(model, bitstreams=bitstreams)
    received = image_features(model, **processor(images=bitstreams, return_tensors="pt"))
    assert all(torch.equal(*pair) for pair in zip(received.images, features.images, strict=True))
    with pytest.raises(ValueError, match="its processor is `llava_next_processor"):
        ComNeckProcessor.for_llava(model, processor)
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(greedy(model, text, mm_encoder_outputs=features.mm_encoder_outputs()), expected)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(greedy(reloaded, {**inputs, "pixel_values": latents}), expected)


@torch.no_grad()
def test_a_tower_without_codec_takes_latents_only(llava, processor, comneck, photos, tmp_path):
    full, full_processor = attached(llava, processor, comneck)
    latents = comneck.decompress(full_processor.compress(photos[:1]))
    model = attach_vision_tower(llava(), comneck.vision_model)
    server = ComNeckProcessor.for_llava(model, processor)
    inputs = server(text=PROMPTS[:1], images=latents, return_tensors="pt")
    assert torch.equal(model(**inputs).logits, full(**inputs).logits)
    model.save_pretrained(tmp_path)
    server.save_pretrained(tmp_path)
    server = AutoProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no codec: its tower takes latents only"):
        server(text=PROMPTS[:1], images=full_processor.compress(photos[:1]), return_tensors="pt")
    with pytest.raises(ValueError, match="Bitstreams need a `ComNeckModel`"):
        image_features(model, bitstreams=full_processor.compress(photos[:1]))


@torch.no_grad()
def test_bytes_pass_through_neck_clip_and_pooling_to_an_answer(llava, processor, comneck, photos, tmp_path):
    model = pool_visual_tokens(attach_vision_tower(llava(), comneck), pool_layer=1, pool_stride=8)
    processor = ComNeckProcessor.for_llava(model, processor)
    bitstreams = processor.compress(photos)
    inputs = processor(text=PROMPTS, images=bitstreams, padding=True, return_tensors="pt")
    expected = greedy(model, inputs)
    one = processor(text=PROMPTS[:1], images=bitstreams[:1], return_tensors="pt")
    cache = model(**one, use_cache=True).past_key_values
    length = one["input_ids"].shape[1]
    assert [cache.get_seq_length(layer) for layer in range(3)] == [length, length - 56, length - 56]
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(greedy(reloaded, inputs), expected)


@pytest.mark.parametrize("tower", ["comneck", "clip"])
@torch.no_grad()
def test_pooling_before_the_language_model_needs_fewer_placeholders(llava, processor, comneck, photos, tower):
    model = attach_vision_tower(llava(), comneck) if tower == "comneck" else llava()
    if tower == "clip":
        with pytest.raises(ValueError, match="The tower of this model is 'clip_vision_model'"):
            ComNeckProcessor.for_llava(model, processor)
    picture = processor(images=photos[:1], return_tensors="pt")["pixel_values"] if tower == "clip" else None
    plain = image_features(model, picture, bitstreams=None if tower == "clip" else [comneck_bits(comneck, photos[0])])
    pool_visual_tokens(model, pool_layer=0, pool_stride=4, pool="avg2d")
    pooled = ComNeckProcessor.for_llava(model, processor)
    inputs = pooled(text=PROMPTS, images=photos, padding=True, return_tensors="pt")
    assert (inputs["input_ids"] == 4).sum(1).tolist() == [4, 8, 0]
    assert greedy(model, inputs).shape == (3, 6)
    squares = plain.images[0].T.unflatten(1, (8, 8))
    expected = torch.nn.functional.avg_pool2d(squares, 4).flatten(1).T
    found = image_features(model, inputs["pixel_values"][:1]).images[0]
    assert torch.allclose(found, expected, atol=1e-4)


def comneck_bits(comneck, photo):
    pictures = ComNeckImageProcessor.for_size(128)(photo, return_tensors="pt").pixel_values
    return comneck.compress(pictures)[0]


def test_vllm_finds_the_plugin():
    from importlib.metadata import entry_points

    (plugin,) = [entry for entry in entry_points(group="vllm.general_plugins") if entry.name == "comneck_hf"]
    assert plugin.load() is register
    register()
