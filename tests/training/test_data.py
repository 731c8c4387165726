import io
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.data import (
    load_pack,
    load_rows,
    load_sample,
    load_shapes_pack,
    picture_loader,
    training_pictures,
)


ANSWERS = ["circle", "green", "red", "gray", "yes", "teal", "rectangle", "triangle", "no"]


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


@pytest.fixture
def mixed_rows(tmp_path):
    """Five pictures of several sizes and modes, the middle one gray, in a folder of pictures with classes."""
    for index in range(5):
        folder = tmp_path / "folder" / "train" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (70 + index, 64 + 2 * index), (40 * index, 0, 0))
        (image.convert("L") if index == 2 else image).save(folder / f"{index}.png")
    return tmp_path / "folder"


def test_rows_are_read_from_a_folder_of_pictures_at_their_own_sizes(mixed_rows):
    rows = load_rows(mixed_rows, "train")
    assert rows.class_names == ("cat", "dog")
    assert sorted(rows.labels.tolist()) == [0, 0, 0, 1, 1]
    pictures = rows.pictures([4, 0])
    assert all(picture.dtype == torch.uint8 and picture.shape[0] == 3 for picture in pictures)
    assert pictures[0].shape != pictures[1].shape


def test_rows_without_a_label_have_none_and_rows_without_a_picture_are_refused(tmp_path):
    image = datasets.Features({"image": datasets.Image()})
    save_as_parquet(tmp_path / "plain", {"image": [Image.new("RGB", (8, 8))]}, image, "train")
    pictures = training_pictures(tmp_path / "plain", Augmentation(8))
    assert pictures.source.labels is None and pictures.source.class_names == ()
    assert set(pictures.__getitems__([0])) == {"pixel_values"}
    text = datasets.Features({"text": datasets.Value("string")})
    save_as_parquet(tmp_path / "text", {"text": ["no picture"]}, text, "train")
    with pytest.raises(ValueError, match=r"needs a column 'image', it has \['text'\]"):
        load_rows(tmp_path / "text", "train")


def test_integer_labels_are_named_by_their_numbers(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [Image.new("RGB", (8, 8))] * 2, "label": [2, 0]}
    save_as_parquet(tmp_path / "pack", rows, features, "train")
    assert load_rows(tmp_path / "pack", "train").class_names == ("0", "1", "2")


@pytest.mark.parametrize("reading", ["memory", "rows"])
def test_a_batch_depends_on_seed_epoch_and_pictures_alone(pack_folder, reading):
    def batch(*, seed: int = 0, epoch: int = 0, indices: tuple[int, ...] = (2, 0)) -> torch.Tensor:
        pictures = training_pictures(pack_folder, Augmentation(16, jitter=0.5), reading=reading, seed=seed)
        pictures.set_epoch(epoch)
        return pictures.__getitems__(list(indices))["pixel_values"]

    assert torch.equal(batch(), batch())
    for change in ({"seed": 1}, {"epoch": 1}, {"indices": (0, 2)}):
        assert not torch.equal(batch(), batch(**change))


def test_worker_processes_change_nothing(pack_folder):
    pictures = training_pictures(pack_folder, Augmentation(16, jitter=0.5))
    batches = []
    for workers in (0, 2):
        torch.manual_seed(0)
        batches.append(list(picture_loader(pictures, batch_size=1, num_workers=workers)))
    for here, there in zip(*batches, strict=True):
        assert here.keys() == there.keys() == {"pixel_values", "labels"}
        assert all(torch.equal(here[name], there[name]) for name in here)


@pytest.fixture
def shards(tmp_path):
    """Two webdataset shards of four pictures each, whose red is their class."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for index in range(4):
                number = 4 * shard + index
                picture, label = io.BytesIO(), io.BytesIO(str(number).encode())
                Image.new("RGB", (20, 20), (10 * number, 0, 0)).save(picture, "png")
                for suffix, data in (("png", picture), ("cls", label)):
                    member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    member.size = data.tell() if suffix == "png" else len(data.getvalue())
                    data.seek(0)
                    tar.addfile(member, data)
    return folder


def test_shards_are_streamed_in_an_order_of_their_epoch(shards):
    stream = training_pictures(shards, Augmentation(16), reading="stream", seed=3)
    orders = []
    for epoch in (0, 1, 0):
        stream.set_epoch(epoch)
        samples = list(stream)
        orders.append([int(sample["labels"]) for sample in samples])
        for sample in samples:
            assert sample["pixel_values"].shape == (3, 16, 16)
            assert (sample["pixel_values"][0] * 255).round().unique().tolist() == [10 * int(sample["labels"])]
    assert sorted(orders[0]) == list(range(8))
    assert orders[0] == orders[2] != orders[1]
    (batch, *_) = picture_loader(stream, batch_size=4)
    assert batch["pixel_values"].shape == (4, 3, 16, 16) and batch["labels"].shape == (4,)


def test_a_sample_is_spread_over_the_split_and_has_one_size(mixed_rows, shards):
    sample = load_sample(mixed_rows, "train", 3)
    assert sample.images.shape == (3, 3, 64, 64) and len(sample.labels) == 3
    assert len(load_sample(mixed_rows, "train", 100)) == 5
    with pytest.raises(ValueError, match="smallest picture has a side of 64 pixels, and squares of 128"):
        load_sample(mixed_rows, "train", 3, side=128)
    with pytest.raises(ValueError, match="smallest picture has a side of 20 pixels, and squares of 64"):
        load_sample(shards, "train", 3, reading="stream")


def test_workers_of_a_stream_draw_different_crops(shards):
    """All pictures are one gradient, so that crops differ by their random numbers alone."""
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    picture = Image.fromarray(np.broadcast_to((ramp[:, None] // 2 + ramp // 2)[..., None], (64, 64, 3)).copy())
    features = datasets.Features({"image": datasets.Image()})
    for shard in range(2):
        rows = datasets.Dataset.from_dict({"image": [picture] * 4}, features=features)
        rows.to_parquet(shards.parent / "same" / "data" / f"train-{shard}.parquet")
    stream = training_pictures(shards.parent / "same", Augmentation(16), reading="stream")
    for workers in (0, 2):
        crops = [batch["pixel_values"][0] for batch in picture_loader(stream, batch_size=1, num_workers=workers)]
        assert len(crops) == len({tuple(crop.flatten().tolist()) for crop in crops}) == 8


def test_a_sample_of_a_stream_has_all_classes_or_none(shards, tmp_path):
    images = [Image.new("RGB", (64, 64), (10 * number, 0, 0)) for number in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    save_as_parquet(tmp_path / "named", {"image": images, "label": [0, 1, 2, 2]}, features, "train")
    sample = load_sample(tmp_path / "named", "train", 2, reading="stream")
    assert sample.labels.tolist() == [0, 1] and sample.class_names == ("a", "b", "c")
    sample = load_sample(shards, "train", 2, reading="stream", side=64, enlarge=True)
    assert sample.images.shape == (2, 3, 64, 64)
    assert (sample.labels, sample.class_names) == (None, ())


def test_impossible_readings_and_batches_are_refused(pack_folder):
    with pytest.raises(ValueError, match=r"`reading` must be one of .*'rows'.* got 'disk'"):
        training_pictures(pack_folder, Augmentation(16), reading="disk")
    with pytest.raises(ValueError, match="3 pictures, fewer than batch_size 4"):
        picture_loader(training_pictures(pack_folder, Augmentation(16)), batch_size=4)


def test_samples_can_be_resized_before_their_middles_are_cut(tmp_path):
    pictures = (synthetic_pictures(192, 2) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(pictures[0][:, :150]), Image.fromarray(pictures[1][:90, :80])]
    save_as_parquet(tmp_path, {"image": images}, datasets.Features({"image": datasets.Image()}), "validation")
    with pytest.raises(ValueError, match="smallest picture has a side of 80"):
        load_sample(tmp_path, "validation", 2, side=128)
    sample = load_sample(tmp_path, "validation", 2, side=128, resize=True)
    assert sample.images.shape == (2, 3, 128, 128)
    enlarged = load_sample(tmp_path, "validation", 2, side=128, enlarge=True)
    assert torch.equal(enlarged.images[1], sample.images[1])
    whole = torch.from_numpy(np.array(images[0])).permute(2, 0, 1)
    assert torch.equal(enlarged.images[0], whole[:, 32:160, 11:139])
    expected = torch.tensor(np.array(images[0].resize((128, 164), Image.Resampling.BICUBIC))[18:146]).permute(2, 0, 1)
    difference = (sample.images[0].float() - expected.float()).abs()
    assert difference.mean() < 0.6 and difference.max() <= 3
