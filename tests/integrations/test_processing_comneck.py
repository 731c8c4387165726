"""The processor: what it takes, how many placeholders it writes, and how it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, CLIPModel

from comneck_hf import (
    BitstreamError,
    ComNeckForZeroShotImageClassification,
    ComNeckImageProcessor,
    ComNeckProcessor,
    attach_vision_tower,
    pretrained,
)
from comneck_hf.models.comneck.codec_owner import codec_from_pretrained


@pytest.fixture
def ours(llava, processor, comneck):
    return ComNeckProcessor.for_llava(attach_vision_tower(llava(), comneck), processor)


def test_placeholders_are_as_many_as_tokens(ours, photos):
    inputs = ours(text="<image> what ?", images=photos[0], return_tensors="pt")
    assert int((inputs["input_ids"] == 4).sum()) == 64
    assert ours._get_num_multimodal_tokens(image_sizes=[[300, 200], [10, 10]]).num_image_tokens == [64, 64]
    ours.vision_feature_select_strategy = "full"
    assert int((ours(text="<image>", images=photos[0], return_tensors="pt")["input_ids"] == 4).sum()) == 65
    ours.vision_feature_select_strategy, ours.pool_stride = "default", 6
    assert int((ours(text="<image>", images=photos[0], return_tensors="pt")["input_ids"] == 4).sum()) == 11
    assert ours._get_num_multimodal_tokens(image_sizes=[[10, 10]]).num_image_tokens == [11]


def test_paths_of_pictures_and_bitstreams_are_taken(ours, photos, tmp_path):
    photos[0].save(tmp_path / "photo.png")
    (tmp_path / "photo.CNK").write_bytes(ours.compress(tmp_path / "photo.png")[0])
    assert ours.compress([str(tmp_path / "photo.png")]) == ours.compress(photos[:1])
    by_picture = ours(text="<image> <image>", images=[tmp_path / "photo.png", photos[0]], return_tensors="pt")
    by_path = ours(text="<image>", images=tmp_path / "photo.CNK", return_tensors="pt")
    assert torch.equal(by_picture["pixel_values"][0], by_picture["pixel_values"][1])
    assert torch.equal(by_path["pixel_values"], ours.codec.encode(by_picture["pixel_values"][:1]).latents)


def test_text_alone_and_images_alone_are_taken(ours, photos):
    assert set(ours(text=["what is this ?"], return_tensors="pt")) == {"input_ids", "attention_mask"}
    assert set(ours(images=ours.compress(photos[:1]), return_tensors="pt")) == {"pixel_values"}
    assert "pixel_values" not in ours(text=["what ?"], images=[[]], return_tensors="pt")


def test_saving_and_printing_leave_the_codec_alone(ours, tmp_path, photos):
    codec = ours.codec
    assert "ElicModel" not in repr(ours)
    ours.pool_stride, ours.pool_grid = 2, [8, 8]
    ours.save_pretrained(tmp_path)
    assert ours.codec is codec
    reloaded = ComNeckProcessor.from_pretrained(tmp_path)
    assert type(reloaded.image_processor) is ComNeckImageProcessor
    assert (reloaded.pool_stride, list(reloaded.pool_grid), reloaded.latent_channels) == (
        2,
        [8, 8],
        ours.latent_channels,
    )
    assert reloaded.chat_template == ours.chat_template
    reloaded.codec = codec
    assert reloaded.compress(photos[:1]) == ours.compress(photos[:1])


def test_a_picture_as_high_as_latents_have_channels_is_a_picture(ours, photos):
    picture = np.array(photos[0].resize((100, ours.latent_channels)))
    assert picture.shape[0] == ours.latent_channels
    assert ours(text="<image>", images=picture, return_tensors="pt")["pixel_values"].shape == (1, 3, 128, 128)


def test_wrong_images_are_named(ours, photos, tmp_path):
    bitstream = ours.compress(photos[:1])[0]
    with pytest.raises(BitstreamError, match="checksum"):
        ours(text="<image>", images=bitstream[:-5] + b"\0" + bitstream[-4:], return_tensors="pt")
    with pytest.raises(BitstreamError, match="Not a comneck_hf bitstream"):
        ours(text="<image>", images=b"\xff\xd8\xff\xe0 a JPEG file", return_tensors="pt")
    with pytest.raises(ValueError, match=r"missing.cnk cannot be read: No such file"):
        ours(text="<image>", images=str(tmp_path / "missing.cnk"), return_tensors="pt")
    with pytest.raises(ValueError, match="is not base64"):
        ours(text="<image>", images="data:application/x-comneck;base64,@@", return_tensors="pt")
    with pytest.raises(ValueError, match="is not base64"):
        ours(text="<image>", images="data:application/x-comneck;base64,\u00fc", return_tensors="pt")
    with pytest.raises(ValueError, match="fetch URLs yourself"):
        ours(text="<image>", images="https://example.org/photo.cnk", return_tensors="pt")
    for images in ([], [bitstream]):
        with pytest.raises(ValueError, match="at least one, and none that is a bitstream"):
            ours.compress(images)
    with pytest.raises(ValueError, match="latents of 4x6, but the tower takes 8x8"):
        ours(text="<image>", images=torch.zeros(ours.latent_channels, 4, 6), return_tensors="pt")
    with pytest.raises(ValueError, match="2 <image> tokens and 1 images"):
        ours(text="<image> <image>", images=bitstream, return_tensors="pt")


def test_files_of_pictures_are_read_as_on_the_command_line(ours, photos, tmp_path):
    photos[0].save(tmp_path / "moving.webp", save_all=True, append_images=[photos[0].rotate(180)], lossless=True)
    assert ours.compress(str(tmp_path / "moving.webp")) == ours.compress(photos[:1])
    Image.fromarray(np.random.default_rng(0).random((80, 80), dtype=np.float32)).save(tmp_path / "floats.tif")
    for name, complaint in (
        ("floats.tif", r"floats.tif is not a readable picture: the range of its 32-bit values"),
        ("missing.jpg", r"missing.jpg cannot be read: No such file or directory. Give the path or URL"),
    ):
        for given in (tmp_path / name, str(tmp_path / name)):
            with pytest.raises(ValueError, match=complaint):
                ours.compress([given])
            with pytest.raises(ValueError, match=complaint):
                ours(text="<image>", images=given, return_tensors="pt")


def test_a_processor_without_a_codec_says_how_to_get_one(ours, photos):
    bitstreams = ours.compress(photos[:1])
    ours.codec = None
    with pytest.raises(ValueError, match="Set `processor.codec`"):
        ours(text="<image>", images=bitstreams, return_tensors="pt")


def test_the_codec_loads_alone_from_every_folder_that_holds_one(comneck, tmp_path):
    folder = pretrained("comneck-tiny-d1-q2")
    codec = codec_from_pretrained(Path(folder))
    assert type(codec) is type(comneck.codec)
    picture = torch.rand(1, 3, 64, 64)
    assert codec.compress(picture) == comneck.compress(picture)
    assert type(AutoModel.from_pretrained(folder)) is type(comneck)
    codec.save_pretrained(tmp_path / "codec")
    assert codec_from_pretrained(tmp_path / "codec").compress(picture) == codec.compress(picture)
    clip = CLIPModel.from_pretrained(pretrained("comneck-tiny-clip"))
    ComNeckForZeroShotImageClassification.from_comneck_and_clip(comneck, clip).save_pretrained(tmp_path / "zero")
    assert codec_from_pretrained(tmp_path / "zero").compress(picture) == codec.compress(picture)
    with pytest.raises(ValueError, match="holds no model to take the codec from. Set `processor.codec`"):
        codec_from_pretrained(tmp_path)
