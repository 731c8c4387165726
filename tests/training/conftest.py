"""Small real data sets and models for the trainings."""

from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Sequence, Value
from PIL import Image as PilImage
from transformers import CLIPModel, PreTrainedTokenizerFast

from comneck_hf.models.elic.configuration_elic import ElicConfig
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.training.clip import build_clip, build_tokenizer, save_clip
from comneck_hf.training.initialization import init_transforms_from_images
from comneck_hf.training.zero_shot import ClassPrompts


WIDTHS = {
    "hidden_channels": 8,
    "latent_channels": 12,
    "group_channels": [1, 1, 2, 3, 5],
    "context_channels": [6, 4],
    "aggregation_channels": [12, 10],
}
NAMES = ("wave", "edge", "noise")
TEMPLATES = ("a photo of a {}.", "a drawing of the {}.", "{}")
CLASSES = ("accordion", "bonsai", "cup", "red circle", "windsor chair", "yin yang")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack of 16 labelled pictures of 144x144."""
    folder = tmp_path_factory.mktemp("pack")
    pictures = (synthetic_pictures(144, 16) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    rows = {
        "image": [PilImage.fromarray(picture) for picture in pictures],
        "label": [index % 3 for index in range(16)],
        "class_name": [NAMES[index % 3] for index in range(16)],
    }
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"]), "class_name": Value("string")})
    return _save(folder, rows, features, ("train", "validation"))


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of one color with the questions of easy-VQA."""
    answers = ["circle", "red", "rectangle", "teal"]
    rows = {
        "image": [PilImage.new("RGB", (64, 64), ("red", "teal")[index % 2]) for index in range(8)],
        "questions": [["what shape is it?", "what color is it?"]] * 8,
        "answers": [(["circle", "red"], ["rectangle", "teal"])[index % 2] for index in range(8)],
    }
    features = Features(
        {"image": Image(), "questions": Sequence(Value("string")), "answers": Sequence(ClassLabel(names=answers))}
    )
    return _save(tmp_path_factory.mktemp("shapes"), rows, features, ("train", "test"))


@pytest.fixture(scope="session")
def codec_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec that codes pictures and whose entropy networks are random."""
    torch.manual_seed(0)
    codec = ElicModel(ElicConfig(**WIDTHS))
    pictures = synthetic_pictures(128, 6)
    init_transforms_from_images(codec, pictures, lmbda=0.02)
    codec.calibrate(pictures)
    folder = tmp_path_factory.mktemp("codec")
    codec.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The architecture of the packaged CLIP with random weights."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([f"a photo of a {name}." for name in NAMES])
    folder = tmp_path_factory.mktemp("clip")
    save_clip(
        build_clip(tokenizer), folder, tokenizer=tokenizer, prompts=ClassPrompts(("a photo of a {}.", "{}"), NAMES)
    )
    return folder


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(clip_folder).eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer([template.format(name) for name in CLASSES for template in TEMPLATES])


@pytest.fixture
def tiny_clip(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """An untrained CLIP of its own for every test."""
    torch.manual_seed(0)
    return build_clip(tokenizer).eval()


def _save(folder: Path, rows: dict, features: Features, splits: tuple[str, ...]) -> Path:
    (folder / "data").mkdir()
    for split in splits:
        Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder
