"""The commands with tiny random models."""

import functools

import pytest
import torch
from command_inputs import CLASSES, SIDE, photograph, prepare
from huggingface_hub.utils import logging as hub_logging
from PIL import Image
from transformers import AutoModel, CLIPConfig, CLIPModel, logging
from typer.testing import CliRunner

from comneck_hf import ComNeckImageProcessor, ComNeckModel, ElicConfig, ElicModel
from comneck_hf.cli import app
from comneck_hf.commands import loading
from comneck_hf.training.clip import build_tokenizer, save_clip
from comneck_hf.training.zero_shot import ClassPrompts


@pytest.fixture(autouse=True)
def transformers_logging():
    """The command silences the libraries; other tests may want to hear them."""
    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    hub_logging.set_verbosity(hub_verbosity)
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with `comneck`, `other` (another codec) and `clip`, all random and tiny."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    prompts = ClassPrompts(("a photo of a {}.", "{}"), CLASSES)
    tokenizer = build_tokenizer([template.format(name) for template in prompts.templates for name in CLASSES])
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": len(tokenizer), "projection_dim": 24, **ids}
    vision = {**sizes, "image_size": 56, "patch_size": 14, "projection_dim": 24}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24, **ids)).eval()
    save_clip(clip, root / "clip", tokenizer=tokenizer, prompts=prompts)
    for name in ("comneck", "other"):
        model = ComNeckModel.from_codec_and_clip(random_codec(), clip, keep_clip_stem=True, quality=2)
        model.save_pretrained(root / name)
        ComNeckImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(root / name)
    return root


def random_codec():
    config = ElicConfig(
        hidden_channels=8,
        latent_channels=16,
        group_channels=[2, 2, 4, 4, 4],
        context_channels=[8, 8],
        aggregation_channels=[8, 8],
    )
    codec = ElicModel(config).eval()
    with torch.no_grad():  # random transforms end near zero: latents and pictures would hardly differ
        codec.g_a[-1].trunk[-1].conv3.bias.normal_(std=4)
        codec.g_a[0].weight.mul_(8)
        codec.g_s[-1].weight.mul_(8)
    return codec


@pytest.fixture(scope="session")
def model(models):
    return AutoModel.from_pretrained(models / "comneck").eval()


@pytest.fixture(scope="session")
def load_once():
    """The loading functions, but each model is read from disk a single time."""
    return {name: functools.cache(getattr(loading, name)) for name in ("load_codec", "load_model")}


@pytest.fixture
def comneck(models, load_once, tmp_path, monkeypatch):
    """Runs a command in an empty folder, with the tiny model; checks exit code and that there is no traceback."""
    monkeypatch.chdir(tmp_path)
    for name, load in load_once.items():
        monkeypatch.setattr(loading, name, load)

    def run(command, *arguments, code=0, **options):
        options = {"model": models / "comneck", **options} if command != "env" else options
        if command in ("classify", "demo"):
            options = {"clip": models / "clip", **options}
        named = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        result = CliRunner().invoke(app, [command, *map(str, arguments), *named])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def bitstream(model, tmp_path):
    """`photo.cnk` of a cropped picture."""
    picture = Image.open(photograph(tmp_path / "photo.png"))
    (tmp_path / "photo.cnk").write_bytes(model.compress(prepare(picture))[0])
    return tmp_path / "photo.cnk"


@pytest.fixture(scope="session")
def clip_folder(models):
    """The CLIP of the models, with its tokenizer."""
    return models / "clip"
