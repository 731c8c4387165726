"""Both image processors: what they compute, that they agree, and that they are found again."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from comneck_hf import ComNeckConfig, ComNeckImageProcessor, ComNeckImageProcessorPil, ComNeckVisionConfig, ElicConfig


@pytest.fixture(params=[ComNeckImageProcessor, ComNeckImageProcessorPil])
def processor_class(request):
    return request.param


@pytest.fixture(scope="module")
def photo():
    """A drawn picture with smooth and sharp parts, 300 wide and 200 high."""
    y, x = np.mgrid[0:200, 0:300]
    channels = [x * 255 / 300, y * 255 / 200, ((x // 9 + y // 7) % 2) * 200 + 20]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def pixels_of(processor, images, **options):
    return processor(images=images, return_tensors="pt", **options).pixel_values


def test_the_defaults_give_square_pictures_between_zero_and_one(processor_class, photo):
    pixel_values = pixels_of(processor_class(), photo)
    assert pixel_values.shape == (1, 3, 256, 256) and pixel_values.dtype is torch.float32
    assert pixel_values.min() >= 0 and pixel_values.max() <= 1 and pixel_values.std() > 0.1


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_the_pil_processor_is_pillow(photo, resample):
    resized = photo.resize((384, 256), resample).crop((64, 0, 320, 256))
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    pixel_values = pixels_of(ComNeckImageProcessorPil(resample=resample), photo)[0]
    assert torch.allclose(pixel_values, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (640, 480), (256, 256)])
def test_the_backends_differ_by_one_level_at_most(photo, size):
    image = photo.resize(size)
    difference = pixels_of(ComNeckImageProcessor(), image) - pixels_of(ComNeckImageProcessorPil(), image)
    assert difference.abs().max() <= 1 / 255 + 1e-6


def test_other_sizes_can_be_asked_for(processor_class, photo):
    processor = processor_class(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128})
    assert pixels_of(processor, photo).shape == (1, 3, 128, 128)
    assert pixels_of(processor_class(), photo, size={"shortest_edge": 64}, crop_size=32).shape == (1, 3, 32, 32)


def test_whole_pictures_pass_unchanged(processor_class, photo):
    pixel_values = pixels_of(processor_class(do_resize=False, do_center_crop=False), photo)
    assert torch.allclose(pixel_values[0] * 255, torch.from_numpy(np.array(photo)).permute(2, 0, 1).float())


def test_padding_repeats_the_last_row_and_column(processor_class, photo):
    options = {"do_resize": False, "do_center_crop": False}
    plain = pixels_of(processor_class(**options), photo)[0]
    padded = pixels_of(processor_class(do_pad=True, **options), photo)[0]
    assert padded.shape == (3, 256, 320)
    assert torch.equal(padded[:, :200, :300], plain)
    assert torch.equal(padded[:, 200:, :300], plain[:, -1:].expand(3, 56, 300))
    assert torch.equal(padded[:, :, 300:], padded[:, :, 299:300].expand(3, 256, 20))


def test_the_divisor_of_the_padding_can_be_chosen(processor_class, photo):
    processor = processor_class(do_resize=False, do_center_crop=False, do_pad=True, size_divisor=48)
    assert pixels_of(processor, photo).shape == (1, 3, 240, 336)
    assert pixels_of(processor, photo, size_divisor=100).shape == (1, 3, 200, 300)


def test_pictures_of_several_sizes_stay_a_list(processor_class, photo):
    processor = processor_class(do_resize=False, do_center_crop=False, do_pad=True)
    images = [photo, photo.resize((100, 90)), photo]
    shapes = [tuple(image.shape) for image in processor(images=images)["pixel_values"]]
    assert shapes == [(3, 256, 320), (3, 128, 128), (3, 256, 320)]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_every_mode_become_rgb(processor_class, photo, mode):
    assert pixels_of(processor_class(), photo.convert(mode)).shape == (1, 3, 256, 256)


def test_arrays_and_tensors_are_taken_as_pictures_are(processor_class, photo):
    expected = pixels_of(processor_class(), photo)
    array = np.array(photo)
    assert torch.equal(pixels_of(processor_class(), array), expected)
    assert torch.equal(pixels_of(processor_class(), torch.from_numpy(array).permute(2, 0, 1)), expected)


@pytest.mark.parametrize("config_class", [ComNeckConfig, ComNeckVisionConfig, ElicConfig])
def test_the_auto_class_finds_either_backend(processor_class, tmp_path, config_class):
    processor_class(crop_size={"height": 128, "width": 128}, size_divisor=32).save_pretrained(tmp_path)
    config_class().save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is ComNeckImageProcessor
    found = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(found) is ComNeckImageProcessorPil
    assert found.crop_size["height"] == 128 and found.size_divisor == 32
