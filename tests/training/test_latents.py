"""What frozen models say of pictures, computed once."""

import pytest
import torch

from comneck_hf.models.clip_inputs import clip_inputs
from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.augmentation import Augmentation
from comneck_hf.training.data import ImagePack
from comneck_hf.training.gains import RandomGains
from comneck_hf.training.latents import CodedPictures, Variants, coded_latents, teacher_targets

from .conftest import WIDTHS


@pytest.fixture(scope="module")
def pack() -> ImagePack:
    images = (synthetic_pictures(80, 5) * 255).round().to(torch.uint8)
    return ImagePack(images, torch.arange(5), ("a", "b", "c", "d", "e"))


def new_codec(seed: int) -> ElicModel:
    torch.manual_seed(seed)
    codec = ElicModel(ElicConfig(**WIDTHS)).eval()
    codec.calibrate(synthetic_pictures(64, 2))
    return codec


def latents_of(passes: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([kept["latents"] for kept in passes])


def test_latents_are_those_of_the_crops_and_are_read_back(pack, tmp_path):
    codec, variants = new_codec(0), Variants(pack, Augmentation(64, smallest_crop=0.5), 2)
    latents = latents_of(coded_latents(codec, variants, tmp_path))
    assert latents.shape == (10, 12, 4, 4)
    crops = torch.cat([*variants.batches(0), *variants.batches(1)])
    assert not torch.equal(crops[:5], crops[5:])
    assert torch.equal(latents, codec.encode(crops).latents)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert torch.equal(latents_of(coded_latents(codec, variants, tmp_path)), latents)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == files


@pytest.mark.parametrize("change", ["codec", "crops", "pictures", "seed"])
def test_latents_of_something_else_are_computed_anew(pack, tmp_path, change):
    first = latents_of(coded_latents(new_codec(0), Variants(pack, Augmentation(64, jitter=0.3), 1), tmp_path))
    codec = new_codec(1 if change == "codec" else 0)
    pictures = ImagePack(255 - pack.images, pack.labels, pack.class_names) if change == "pictures" else pack
    augmentation = Augmentation(64, jitter=0.2 if change == "crops" else 0.3)
    variants = Variants(pictures, augmentation, 1, seed=int(change == "seed"))
    second = latents_of(coded_latents(codec, variants, tmp_path))
    assert not torch.equal(first, second)
    assert torch.equal(second, codec.encode(next(variants.batches(0))).latents)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_teacher_sees_the_same_crops_at_its_own_size(pack, clip, tmp_path):
    variants, targets = Variants(pack, Augmentation(64), 2), ("image_embeds", "hidden_states[-2]")
    passes = teacher_targets(clip, variants, tmp_path, targets)
    inputs = clip_inputs(torch.cat([*variants.batches(0), *variants.batches(1)]), 112)
    with torch.no_grad():
        outputs = clip.vision_model(inputs, output_hidden_states=True)
    expected = clip.visual_projection(outputs.pooler_output), outputs.hidden_states[-2]
    for target, value, dtype in zip(targets, expected, (torch.float32, torch.float16), strict=True):
        said = torch.cat([features[target] for features in passes])
        assert said.dtype == dtype
        torch.testing.assert_close(said.float(), value, rtol=1e-3, atol=1e-3)
    again = teacher_targets(clip, variants, tmp_path, targets[:1])
    assert all(torch.equal(one["image_embeds"], other["image_embeds"]) for one, other in zip(again, passes))


def test_coded_pictures_keep_crops_embeddings_and_classes_together():
    latents = [{"latents": values.view(3, 1, 1, 1)} for values in torch.arange(6.0).split(3)]
    embeds = [{"image_embeds": values.view(3, 1).half()} for values in torch.arange(6.0).split(3)]
    pictures = CodedPictures([latents, embeds], torch.tensor([7, 8, 9]))
    assert len(pictures) == 6
    batch = pictures.__getitems__([4, 0])
    assert batch["latents"].flatten().tolist() == batch["image_embeds"].flatten().tolist() == [4.0, 0.0]
    assert batch["labels"].tolist() == [8, 7]
    assert batch["image_embeds"].dtype == torch.float32
    assert set(CodedPictures([latents, embeds], None).__getitems__([1])) == {"latents", "image_embeds"}


def test_every_crop_has_a_gain_of_its_own_and_the_same_one_again(pack, tmp_path):
    codec, variants = new_codec(0), Variants(pack, Augmentation(64), 1)
    gains = RandomGains(-1.0, 2.0)
    latents = latents_of(coded_latents(codec, variants, tmp_path, gains=gains))
    crops = next(variants.batches(0))
    steps = {}
    for gain in (-1.0, 0.0, 2.0):
        exact = codec.encode(crops, gain=gain).latents
        steps[gain] = [torch.equal(one, other) for one, other in zip(latents, exact, strict=True)]
    assert not any(all(equal) for equal in steps.values())
    again = latents_of(coded_latents(new_codec(0), variants, tmp_path / "elsewhere", gains=gains))
    assert torch.equal(again, latents)
    assert not torch.equal(latents_of(coded_latents(codec, variants, tmp_path)), latents)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
