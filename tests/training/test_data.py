import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from comneck_hf.training.data import (
    center_crop_resize,
    color_jitter,
    load_pack,
    load_shapes_pack,
    normalize,
    random_crops,
    random_erasing,
    random_resized_crops,
    shuffled_batches,
)


ANSWERS = ["circle", "green", "red", "gray", "yes", "teal", "rectangle", "triangle", "no"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramps(count: int, height: int, width: int) -> torch.Tensor:
    """Pictures whose red is the row, green the column and blue the index, so that a crop tells where it came from."""
    images = torch.empty((count, 3, height, width), dtype=torch.uint8)
    images[:, 0] = torch.arange(height, dtype=torch.uint8)[:, None]
    images[:, 1] = torch.arange(width, dtype=torch.uint8)
    images[:, 2] = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1)
    return images


def save_as_parquet(folder, rows: dict, features: datasets.Features, split: str) -> None:
    (folder / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}-0.parquet")


@pytest.fixture
def pack_folder(tmp_path):
    images = [Image.fromarray(np.full((20, 20, 3), value, dtype=np.uint8)) for value in (10, 20, 30)]
    images[1] = images[1].convert("L")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["Cat_easy", "Dog"]),
            "class_name": datasets.Value("string"),
        }
    )
    rows = {"image": images, "label": [1, 0, 1], "class_name": ["dog", "cat", "dog"]}
    save_as_parquet(tmp_path / "pack", rows, features, "train")
    return tmp_path / "pack"


def test_a_pack_holds_pictures_labels_and_readable_names_in_order(pack_folder):
    pack = load_pack(pack_folder, "train")
    assert pack.images.shape == (3, 3, 20, 20) and pack.images.dtype == torch.uint8
    assert pack.images[:, :, 0, 0].tolist() == [[10] * 3, [20] * 3, [30] * 3]
    assert pack.labels.tolist() == [1, 0, 1]
    assert pack.class_names == ("cat", "dog")
    assert len(pack) == 3


def test_size_resizes_the_pictures_of_a_pack(pack_folder):
    assert load_pack(pack_folder, "train", size=12).images.shape == (3, 3, 12, 12)


def test_pictures_of_different_sizes_are_refused_with_the_way_out(tmp_path):
    images = [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    save_as_parquet(tmp_path / "pack", {"image": images, "label": [0, 0]}, features, "train")
    with pytest.raises(ValueError, match="picture 1 is 8x9.*pass `size`"):
        load_pack(tmp_path / "pack", "train")


def test_shapes_are_labeled_from_their_questions_and_answers(tmp_path):
    questions = {
        ("what color is the shape?", "what shape is in the image?"): ("red", "circle"),
        ("is there a teal shape?", "is there not a triangle in the image?"): ("yes", "no"),
        ("is no green shape present?", "does the image contain a circle?", "is there a rectangle?"): (
            "no",
            "no",
            "no",
        ),
        ("is there a red shape?", "what shape does the image contain?"): ("no", "triangle"),
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "questions": datasets.List(datasets.Value("string")),
            "answers": datasets.List(datasets.ClassLabel(names=ANSWERS)),
        }
    )
    rows = {
        "image": [Image.new("RGB", (6, 6), (index, 0, 0)) for index in range(4)],
        "questions": [list(group) for group in questions],
        "answers": [list(group) for group in questions.values()],
    }
    save_as_parquet(tmp_path / "pack", rows, features, "train")
    pack = load_shapes_pack(tmp_path / "pack", "train")
    names = [pack.class_names[label] for label in pack.labels]
    assert names == ["red circle", "teal triangle", "green triangle"]  # the color of the last picture stays unknown
    assert pack.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert len(pack.class_names) == 4 * 3


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


def test_batches_of_an_epoch_are_disjoint_reproducible_and_differ_between_epochs():
    epochs = [torch.cat(list(shuffled_batches(50, 8, seed=3, epoch=epoch))) for epoch in (0, 1, 0)]
    assert all(len(epoch) == 48 and len(epoch.unique()) == 48 for epoch in epochs)
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("batch_size", [0, 9])
def test_impossible_batch_sizes_are_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}; expected 1 to 8"):
        next(shuffled_batches(8, batch_size, seed=0, epoch=0))


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


def test_normalize_maps_the_mean_color_of_clip_to_zero():
    gray = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert torch.allclose(normalize(gray), torch.zeros(1, 3, 2, 2))
    assert torch.allclose(
        normalize(torch.ones(1, 3, 1, 1)).flatten(), torch.tensor([1.9303, 2.0749, 2.1459]), atol=1e-3
    )
