"""ComNeck with a codec of CompressAI's zoo, and the folder the Hub gets."""

import pytest
import torch
from PIL import Image
from skimage import data
from transformers import AutoModel, CLIPConfig, CLIPModel
from typer.testing import CliRunner

from comneck_hf import ComNeckImageProcessor, ComNeckModel, CompressaiModel
from comneck_hf.cli import app
from comneck_hf.hub.cards import ModelFacts, render_card
from comneck_hf.hub.folders import build_hub_folder
from comneck_hf.models.comneck.codec_owner import codec_from_pretrained
from comneck_hf.training.objective import half_precision


TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
CLIP = {
    "vision_config": {**TOWER, "image_size": 56, "patch_size": 14, "projection_dim": 24},
    "text_config": {**TOWER, "vocab_size": 40, "projection_dim": 24},
    "projection_dim": 24,
}


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(**CLIP)).eval()


@pytest.fixture(scope="module")
def comneck(codec, clip):
    torch.manual_seed(0)
    return ComNeckModel.from_codec_and_clip(codec, clip, num_skipped_layers=1).eval()


def test_bytes_go_in_and_features_come_out(comneck, codec, pictures):
    bitstreams = comneck.compress(pictures)
    assert bitstreams == codec.compress(pictures)
    latents = comneck.decompress(bitstreams)
    with torch.no_grad():
        from_bytes, from_pictures = comneck(latents=latents), comneck(pictures)
    assert torch.equal(from_bytes.image_embeds, from_pictures.image_embeds)
    assert from_bytes.image_embeds.shape == (3, 24) and from_bytes.last_hidden_state.shape == (3, 17, 32)
    assert torch.equal(comneck.reconstruct(latents), codec.decode(latents))
    assert comneck.config.patch_size == 16 and comneck.config.image_size == 64


def test_a_saved_comneck_and_its_codec_alone_code_the_same_bytes(comneck, pictures, tmp_path):
    comneck.save_pretrained(tmp_path)
    bitstreams = comneck.compress(pictures)
    for loaded in (AutoModel.from_pretrained(tmp_path), CompressaiModel.from_pretrained(tmp_path)):
        assert loaded.compress(pictures) == bitstreams
        assert torch.equal(loaded.decompress(bitstreams), comneck.decompress(bitstreams))


def test_a_comneck_of_a_codec_without_tables_is_saved_whole(random_codec, clip, pictures, tmp_path):
    model = ComNeckModel.from_codec_and_clip(random_codec("bmshj2018-factorized"), clip, num_skipped_layers=1).eval()
    model.save_pretrained(tmp_path)
    assert ComNeckModel.from_pretrained(tmp_path).compress(pictures) == model.compress(pictures)


@pytest.mark.parametrize(("quality", "expected"), [(2, 2), (6, None)])
def test_qualities_that_the_paper_does_not_have_stay_the_codecs(clip, quality, expected):
    with torch.device("meta"):
        codec = CompressaiModel.from_zoo("bmshj2018-factorized", quality, pretrained=False)
    model = ComNeckModel.from_codec_and_clip(codec.to_empty(device="cpu"), clip, num_skipped_layers=1)
    assert model.config.quality == expected
    assert model.config.codec_config.quality == quality


@pytest.mark.parametrize("whole", [True, False])
def test_the_hub_gets_a_folder_that_loads(comneck, codec, pictures, tmp_path, whole):
    model = comneck if whole else codec
    model.save_pretrained(tmp_path / "model")
    card = render_card(ModelFacts(repo_id="someone/model"), tmp_path / "model")
    build_hub_folder(tmp_path / "model", tmp_path / "hub", card)
    loaded = AutoModel.from_pretrained(tmp_path / "hub", trust_remote_code=True)
    assert type(loaded) is type(model)
    assert loaded.compress(pictures) == model.compress(pictures)


def test_the_commands_code_and_tell_what_they_know(comneck, tmp_path):
    comneck.save_pretrained(tmp_path / "model")
    ComNeckImageProcessor.for_size(comneck.config.image_size).save_pretrained(tmp_path / "model")
    Image.fromarray(data.astronaut()).save(tmp_path / "photo.png")
    model = ["--model", str(tmp_path / "model")]
    for words in (
        ["encode", str(tmp_path / "photo.png"), "-o", str(tmp_path / "photo.cnk")],
        ["decode", str(tmp_path / "photo.cnk"), "-o", str(tmp_path / "decoded.png")],
        ["features", str(tmp_path / "photo.cnk"), "-o", str(tmp_path / "features.safetensors")],
        ["info", str(tmp_path / "photo.cnk")],
    ):
        result = CliRunner().invoke(app, [*words, *model])
        assert result.exit_code == 0, result.output
    assert "wrote it" in result.output and "decoded symbols" in result.output
    assert Image.open(tmp_path / "decoded.png").size == (64, 64)  # what the neck takes


def test_float_types_of_the_rest_do_not_reach_the_codec(random_codec, clip, pictures, tmp_path):
    comneck = ComNeckModel.from_codec_and_clip(random_codec("mbt2018-mean"), clip, num_skipped_layers=1).eval()
    bitstreams, latents = comneck.compress(pictures), comneck.decompress(comneck.compress(pictures))
    comneck.save_pretrained(tmp_path, state_dict=half_precision(comneck))
    comneck.to(torch.bfloat16)
    halved = AutoModel.from_pretrained(tmp_path)
    for model in (comneck, halved):
        assert model.codec.dtype == torch.float32
        assert model.compress(pictures) == bitstreams
        assert torch.equal(model.decompress(bitstreams), latents)
    assert comneck.vision_model.dtype == torch.bfloat16
    assert torch.equal(codec_from_pretrained(tmp_path).decompress(bitstreams), latents)


def test_a_bare_codec_is_found(codec, pictures, tmp_path):
    codec.save_pretrained(tmp_path)
    assert codec_from_pretrained(tmp_path).compress(pictures) == codec.compress(pictures)
