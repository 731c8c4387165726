"""What frozen models say of pictures, computed once."""

import pytest
import torch
from transformers import CLIPModel

import comneck_hf
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.data import ImagePack, clip_inputs
from comneck_hf.training.latents import Augmentation, coded_latents, teacher_embeddings


WIDTHS = {
    "hidden_channels": 8,
    "latent_channels": 12,
    "group_channels": [1, 1, 2, 3, 5],
    "context_channels": [6, 4],
    "aggregation_channels": [12, 10],
}


@pytest.fixture(scope="module")
def pack() -> ImagePack:
    images = (synthetic_pictures(80, 5) * 255).round().to(torch.uint8)
    return ImagePack(images, torch.arange(5), ("a", "b", "c", "d", "e"))


def new_codec(seed: int) -> ElicModel:
    torch.manual_seed(seed)
    codec = ElicModel(ElicConfig(**WIDTHS)).eval()
    codec.calibrate(synthetic_pictures(64, 2))
    return codec


def test_latents_are_those_of_the_crops_and_are_read_back(pack, tmp_path):
    codec, augmentation = new_codec(0), Augmentation(64, 2, smallest_crop=0.5)
    latents = coded_latents(codec, pack, augmentation, tmp_path)
    assert latents.shape == (10, 12, 4, 4)
    crops = torch.cat([*augmentation.batches(pack, 0), *augmentation.batches(pack, 1)])
    assert not torch.equal(crops[:5], crops[5:])
    assert torch.equal(latents, codec.encode(crops).latents)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert torch.equal(coded_latents(codec, pack, augmentation, tmp_path), latents)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files


@pytest.mark.parametrize("change", ["codec", "crops", "pictures", "seed"])
def test_latents_of_something_else_are_computed_anew(pack, tmp_path, change):
    first = coded_latents(new_codec(0), pack, Augmentation(64, 1), tmp_path)
    codec = new_codec(1 if change == "codec" else 0)
    augmentation = Augmentation(64, 1, jitter=0.2 if change == "crops" else 0.3, seed=int(change == "seed"))
    pictures = ImagePack(255 - pack.images, pack.labels, pack.class_names) if change == "pictures" else pack
    second = coded_latents(codec, pictures, augmentation, tmp_path)
    assert not torch.equal(first, second)
    assert torch.equal(second, codec.encode(next(augmentation.batches(pictures, 0))).latents)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_teacher_sees_the_same_crops_at_its_own_size(pack, tmp_path):
    clip = CLIPModel.from_pretrained(comneck_hf.pretrained("comneck-tiny-clip")).eval()
    augmentation = Augmentation(64, 2)
    embeddings = teacher_embeddings(clip, pack, augmentation, tmp_path)
    crops = torch.cat([*augmentation.batches(pack, 0), *augmentation.batches(pack, 1)])
    with torch.no_grad():
        expected = clip.get_image_features(clip_inputs(crops, 112)).pooler_output
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(teacher_embeddings(clip, pack, augmentation, tmp_path), embeddings)
