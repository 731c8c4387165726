import numpy as np
import pytest
import torch
from PIL import Image

from comneck_hf.training.augmentation import (
    Augmentation,
    center_crop,
    center_crop_resize,
    color_jitter,
    random_crops,
    random_erasing,
    random_resized_crops,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramps(count: int, height: int, width: int) -> torch.Tensor:
    """Pictures whose red is the row, green the column and blue the index, so that a crop tells where it came from."""
    images = torch.empty((count, 3, height, width), dtype=torch.uint8)
    images[:, 0] = torch.arange(height, dtype=torch.uint8)[:, None]
    images[:, 1] = torch.arange(width, dtype=torch.uint8)
    images[:, 2] = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1)
    return images


def test_random_crops_are_windows_of_their_own_picture_and_half_are_mirrored():
    crops = random_crops(ramps(200, 24, 30), 16, generator=generator())
    assert crops.shape == (200, 3, 16, 16) and crops.dtype == torch.float32
    pixels = (crops * 255).round()
    assert torch.equal(pixels[:, 2, 0, 0], torch.arange(200.0))
    steps = pixels[:, 1].diff(dim=2)
    mirrored = (steps == -1).all(2).all(1)
    assert torch.equal(~mirrored, (steps == 1).all(2).all(1))
    assert 70 <= mirrored.sum() <= 130
    assert pixels[:, 0].min() == 0 and pixels[:, 0].max() == 23 and pixels[:, 1].max() == 29


def test_random_crops_of_the_picture_size_change_nothing_but_the_direction():
    images = ramps(20, 16, 16)
    crops = (random_crops(images, 16, generator=generator()) * 255).round().to(torch.uint8)
    assert all(torch.equal(crop, image) or torch.equal(crop, image.flip(-1)) for crop, image in zip(crops, images))


@pytest.mark.parametrize("crop", [random_crops, random_resized_crops])
def test_the_same_generator_seed_gives_the_same_crops(crop):
    images = torch.randint(256, (8, 3, 40, 40), dtype=torch.uint8, generator=generator())
    assert torch.equal(crop(images, 24, generator=generator(1)), crop(images, 24, generator=generator(1)))
    assert not torch.equal(crop(images, 24, generator=generator(1)), crop(images, 24, generator=generator(2)))


def test_crops_larger_than_the_picture_are_refused():
    with pytest.raises(ValueError, match="24x30.*crop size 32"):
        random_crops(ramps(1, 24, 30), 32, generator=generator())


def test_random_resized_crops_cover_areas_within_the_scale():
    crops = random_resized_crops(ramps(300, 100, 100), 50, generator=generator(), scale=(0.25, 1.0))
    assert crops.shape == (300, 3, 50, 50)
    assert crops.min() >= 0 and crops.max() <= 1
    pixels = crops * 255
    heights = (pixels[:, 0, -1, 25] - pixels[:, 0, 0, 25]) * 50 / 49
    widths = (pixels[:, 1, 25, -1] - pixels[:, 1, 25, 0]).abs() * 50 / 49
    areas, ratios = heights * widths / 10_000, widths / heights
    assert 0.2 < areas.min() < 0.3 and 0.9 < areas.max() < 1.1
    assert 0.65 < ratios.min() < 0.85 and 1.2 < ratios.max() < 1.5


def test_center_crop_resize_takes_the_middle():
    cropped = center_crop_resize(ramps(2, 40, 60), 20, crop_size=20)
    assert torch.allclose(cropped * 255, ramps(2, 40, 60)[:, :, 10:30, 20:40].float(), atol=1e-3)
    with pytest.raises(ValueError, match="40x60.*crop_size 50"):
        center_crop_resize(ramps(1, 40, 60), 20, crop_size=50)


def test_center_crop_resize_agrees_with_pillow():
    rows = torch.linspace(0, 6.28, 96)
    smooth = ((rows.sin()[:, None] * rows.cos() + 1) * 127).to(torch.uint8).expand(1, 3, 96, 96)
    ours = center_crop_resize(smooth, 56)[0] * 255
    pillow = Image.fromarray(smooth[0].permute(1, 2, 0).numpy()).resize((56, 56), Image.Resampling.BICUBIC)
    assert (ours - torch.from_numpy(np.array(pillow)).permute(2, 0, 1)).abs().max() < 1.5


def test_color_jitter_of_strength_zero_is_the_identity_and_otherwise_varies_per_picture():
    images = torch.rand((6, 3, 8, 8), generator=generator())
    assert torch.allclose(color_jitter(images, strength=0.0, generator=generator()), images, atol=1e-6)
    same = images[:1].expand(6, -1, -1, -1)
    jittered = color_jitter(same, strength=0.4, generator=generator())
    assert jittered.min() >= 0 and jittered.max() <= 1
    assert len(jittered.flatten(1).mean(1).unique()) == 6


def test_random_erasing_fills_one_rectangle_of_the_chosen_share():
    images = torch.ones((400, 3, 20, 20))
    erased = random_erasing(images, probability=0.25, generator=generator())
    shares = (erased[:, 0] == 0).float().mean((1, 2))
    assert 70 <= (shares > 0).sum() <= 130
    assert shares.max() <= 0.25
    for mask in (erased[:, 0] == 0)[shares > 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns)


@pytest.mark.parametrize("crop", [random_crops, random_resized_crops])
def test_pictures_of_many_sizes_are_cropped_as_they_are_in_batches_of_one_size(crop):
    images = ramps(6, 40, 50)
    assert torch.equal(crop(images, 24, generator=generator()), crop(list(images), 24, generator=generator()))
    mixed = [image[:, : 30 + index] for index, image in enumerate(images)]
    crops = crop(mixed, 24, generator=generator())
    assert crops.shape == (6, 3, 24, 24)
    assert torch.equal((crops[:, 2, 0, 0] * 255).round(), torch.arange(6.0))


def test_an_augmentation_is_its_crop_and_its_jitter():
    images = ramps(5, 40, 50)
    resized = random_resized_crops(images, 16, generator=generator(), scale=(0.5, 1.0))
    assert torch.equal(Augmentation(16, smallest_crop=0.5)(images, generator=generator()), resized)
    assert torch.equal(
        Augmentation(16, "window")(images, generator=generator()), random_crops(images, 16, generator=generator())
    )
    source = generator()
    windows = random_crops(images, 16, generator=source)
    jittered = color_jitter(windows, strength=0.3, generator=source)
    assert torch.equal(Augmentation(16, "window", jitter=0.3)(images, generator=generator()), jittered)
    middle = Augmentation(20, "center")(images, generator=generator())
    assert torch.equal(middle, center_crop_resize(center_crop(images, 40), 20))


@pytest.mark.parametrize("wrong", [{"crop": "corner"}, {"size": 0}, {"smallest_crop": 0.0}, {"jitter": 1.5}])
def test_augmentations_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**{"size": 16, **wrong})
