"""ComNeck in both towers of a Video-LLaVA: pictures and frames."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionModel,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from comneck_hf import (
    ComNeckConfig,
    ComNeckImageProcessor,
    ComNeckModel,
    ComNeckProcessor,
    attach_vision_tower,
    image_features,
)


TOWERS = ("image_tower", "video_tower")
VIDEO_PROMPT = torch.tensor([[1, *[13] * 130, 7, 8]])


def another_clip(model, tower):
    """Gives a tower weights that are near those of before, but too far for their neck."""
    with torch.no_grad():
        for weight in model.model.get_submodule(tower).parameters():
            weight.add_(0.05 * weight.std() * torch.randn_like(weight))


def frames_of(comneck, photos):
    """Two frames as pictures and as latents, `(1, 2, ...)`."""
    pictures = ComNeckImageProcessor.for_size(128)(photos[:2], return_tensors="pt").pixel_values
    return pictures[None], comneck.decompress(comneck.compress(pictures))[None]


@torch.no_grad()
def test_video_llava_builds_its_towers_from_our_configuration(llava, comneck):
    """Pictures and frames as latents, through towers that transformers builds by `AutoModel.from_config`."""
    sizes = llava().config.text_config
    config = VideoLlavaConfig(
        vision_config=comneck.config,
        text_config=sizes,
        image_token_index=4,
        video_token_index=13,
        video_seq_length=130,
    )
    model = VideoLlavaForConditionalGeneration(config).eval()
    for tower in (model.model.image_tower, model.model.video_tower):
        assert type(tower) is ComNeckModel
        tower.load_state_dict(comneck.state_dict())
    frames = torch.randn(1, 2, comneck.config.vision_config.latent_channels, 8, 8).round()
    states = comneck(latents=frames[0], output_hidden_states=True).hidden_states[-2]
    images = model.model.get_image_features(frames[0], return_dict=True).pooler_output
    assert torch.equal(torch.stack(list(images)), model.model.multi_modal_projector(states[:, 1:]))
    videos = model.model.get_video_features(frames, return_dict=True).pooler_output
    assert torch.equal(torch.cat(list(videos)).flatten(0, -2), model.model.multi_modal_projector(states).flatten(0, 1))
    input_ids = torch.tensor([[1, *[13] * 130, 7]])
    assert torch.isfinite(model(input_ids=input_ids, pixel_values_videos=frames).logits).all()


@torch.no_grad()
def test_a_loaded_video_llava_gets_both_towers(llava, processor, comneck, photos):
    """Each tower keeps its own CLIP; pictures, latents and bitstreams, of images and of frames, give equal tokens."""
    model = llava("video")
    another_clip(model, "video_tower")
    clips = [model.model.get_submodule(tower) for tower in TOWERS]
    attach_vision_tower(model, comneck, force=True)
    for tower, clip in zip(TOWERS, clips, strict=True):
        tower = model.model.get_submodule(tower)
        assert type(tower) is ComNeckModel
        assert torch.equal(
            tower.vision_model.encoder.layers[-1].mlp.fc1.weight, clip.encoder.layers[-1].mlp.fc1.weight
        )
    assert (model.config.image_seq_length, model.config.video_seq_length) == (64, 130)

    processor = ComNeckProcessor.for_llava(model, processor)
    bitstreams = processor.compress(photos[:1])
    text = "USER: <image> what is this ?"
    inputs = [processor(text=text, images=images, return_tensors="pt") for images in (photos[:1], bitstreams)]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    answers = [model.generate(**one, **options) for one in inputs]
    assert torch.equal(*answers)
    features = image_features(model, bitstreams=bitstreams).mm_encoder_outputs()
    assert torch.equal(model.generate(inputs[0]["input_ids"], mm_encoder_outputs=features, **options), answers[0])

    pictures, latents = frames_of(comneck, photos)
    logits = [model(input_ids=VIDEO_PROMPT, pixel_values_videos=frames).logits for frames in (pictures, latents)]
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], model(input_ids=VIDEO_PROMPT, pixel_values_videos=pictures.flip(1)).logits)
    states = model.model.video_tower(latents=latents[0], output_hidden_states=True).hidden_states[-2]
    found = model.model.get_video_features(latents, return_dict=True).pooler_output
    assert torch.equal(found, model.model.multi_modal_projector(states))


@pytest.mark.parametrize("layout", ["transformers 4", "transformers 5", "in memory"])
@torch.no_grad()
def test_the_swapped_video_llava_saves_and_reloads(llava, comneck, photos, tmp_path, layout):
    model = llava("video")
    if layout != "in memory":
        model.save_pretrained(tmp_path / "plain")
        if layout == "transformers 5":
            save_file(model.state_dict(), tmp_path / "plain" / "model.safetensors", metadata={"format": "pt"})
        model = VideoLlavaForConditionalGeneration.from_pretrained(tmp_path / "plain")
    attach_vision_tower(model, comneck)
    _, latents = frames_of(comneck, photos)
    expected = model(input_ids=VIDEO_PROMPT, pixel_values_videos=latents).logits
    model.save_pretrained(tmp_path / "swapped")
    reloaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path / "swapped", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    states = model.state_dict(), reloaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(reloaded(input_ids=VIDEO_PROMPT, pixel_values_videos=latents).logits, expected)


@torch.no_grad()
def test_a_processor_finds_the_codec_in_a_saved_video_llava(llava, processor, comneck, photos, tmp_path):
    model = attach_vision_tower(llava("video"), comneck)
    ours = ComNeckProcessor.for_llava(model, processor)
    assert ours.codec is model.model.image_tower.codec
    model.save_pretrained(tmp_path)
    ours.save_pretrained(tmp_path)
    assert ComNeckProcessor.from_pretrained(tmp_path).compress(photos) == ours.compress(photos)


def test_each_tower_is_checked_against_its_own_neck(llava, comneck):
    model = llava("video")
    another_clip(model, "video_tower")
    with pytest.raises(ValueError, match="trained for another CLIP: video_tower.* differs by .* %"):
        attach_vision_tower(model, comneck)
    assert all(type(model.model.get_submodule(tower)) is CLIPVisionModel for tower in TOWERS)
    assert model.config.vision_config.model_type == "clip_vision_model"

    other = ComNeckModel(comneck.config).eval()
    other.load_state_dict(comneck.state_dict())
    other.vision_model.load_state_dict(model.model.video_tower.state_dict(), strict=False)
    torch.nn.init.ones_(other.vision_model.neck.projection.weight)
    other.config.quality, other.config.codec_config.lmbda = 4, 0.5
    attach_vision_tower(model, comneck, video_tower=other)
    necks = [model.model.get_submodule(tower).vision_model.neck.projection.weight for tower in TOWERS]
    assert torch.equal(necks[0], comneck.vision_model.neck.projection.weight)
    assert bool((necks[1] == 1).all())


def test_towers_that_one_configuration_cannot_build_are_refused(llava, comneck):
    config = ComNeckConfig.from_dict(comneck.config.to_dict())
    config.vision_config.post_layernorm_repeats = 2
    other = ComNeckModel(config)
    model = llava("video")
    with pytest.raises(ValueError, match=r"differ in \['vision_config.post_layernorm_repeats'\]"):
        attach_vision_tower(model, comneck, video_tower=other)
    with pytest.raises(ValueError, match="differ in .*'model_type'"):
        attach_vision_tower(model, comneck, video_tower=comneck.vision_model)
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration takes no `video_tower`"):
        attach_vision_tower(llava(), comneck, video_tower=comneck)
