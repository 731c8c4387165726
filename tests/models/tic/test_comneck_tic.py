"""TIC in the place of ELIC: in a ComNeck model, on the command line, on the Hub."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, CLIPConfig, CLIPModel, CLIPVisionConfig
from typer.testing import CliRunner

from comneck_hf import ComNeckConfig, ComNeckImageProcessor, ComNeckModel, TicConfig, TicModel
from comneck_hf.cli import app
from comneck_hf.commands.loading import load_codec
from comneck_hf.evaluation.complexity import count_complexity
from comneck_hf.hub.cards import ModelFacts, render_card
from comneck_hf.hub.export import export_checkpoint, export_codec
from comneck_hf.hub.folders import build_hub_folder
from comneck_hf.models.comneck.codec_owner import codec_from_pretrained


SIDE = 128


@pytest.fixture(scope="module")
def folder(tic_codec, tmp_path_factory):
    """A saved ComNeck model whose codec is a TIC."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**sizes, image_size=112, patch_size=14, projection_dim=24)
    text = {**sizes, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    model = ComNeckModel.from_codec_and_clip(tic_codec, CLIPModel(config), quality=2)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    ComNeckImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return AutoModel.from_pretrained(folder).eval()


@torch.no_grad()
def test_features_of_bytes_are_those_of_latents_and_of_pictures(model, tic_codec, pictures):
    assert type(model) is ComNeckModel and type(model.codec) is TicModel
    latents = model.decompress(model.compress(pictures))
    assert torch.equal(latents, tic_codec.encode(pictures).latents)
    features = model(latents=latents)
    assert torch.equal(features.last_hidden_state, model(pixel_values=pictures).last_hidden_state)
    assert features.image_embeds.shape == (6, 24)
    assert torch.equal(model.reconstruct(latents), tic_codec.decode(latents))


def test_the_configuration_names_the_codec_by_its_type(folder):
    stored = json.loads((folder / "config.json").read_text())["codec_config"]
    assert stored["model_type"] == "tic"
    config = ComNeckConfig(codec_config={"model_type": "tic"}, vision_config={"latent_channels": 192})
    assert config.codec_config == TicConfig()
    with torch.device("meta"):
        assert type(ComNeckModel(config).codec) is TicModel


@pytest.mark.parametrize("load", [TicModel.from_pretrained, codec_from_pretrained, lambda path: load_codec(str(path))])
def test_the_codec_alone_comes_from_the_same_folder(folder, tic_codec, pictures, load):
    codec = load(folder)
    assert type(codec) is TicModel
    assert codec.exact.fingerprint == tic_codec.exact.fingerprint
    assert torch.equal(codec.encode(pictures).latents, tic_codec.encode(pictures).latents)


@pytest.fixture
def comneck(folder, tmp_path, monkeypatch):
    """Runs a command with the model in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(command, *words, code=0):
        result = CliRunner().invoke(app, [command, *map(str, words), "--model", str(folder)])
        assert result.exit_code == code, result.output
        return result

    return run


def test_the_command_line_encodes_inspects_and_decodes(comneck, model, pictures, tmp_path):
    picture = (pictures[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(picture).save(tmp_path / "photo.png")
    comneck("encode", "photo.png")
    data = (tmp_path / "photo.cnk").read_bytes()
    pixel_values = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    assert [data] == model.compress(pixel_values)
    facts = json.loads(comneck("info", "photo.cnk", "--json").stdout)
    assert facts["model_matches"]
    assert sum(part["bits"] for part in facts["segments"]) == pytest.approx(8 * len(data))
    comneck("decode", "photo.cnk", "-o", "decoded.png")
    expected = (model.reconstruct(model.decompress([data]))[0] * 255).round().to(torch.uint8)
    assert np.array_equal(np.array(Image.open(tmp_path / "decoded.png")), expected.permute(1, 2, 0).numpy())


def test_other_code_bases_get_no_tic(comneck, model, tmp_path):
    for layout in ("authors", "compressai"):
        with pytest.raises(ValueError, match="this codec is 'tic'"):
            export_codec(model.codec, layout)
        assert "'tic'" in comneck("export", "-o", "out.pth", "--layout", layout, code=1).stderr
    with pytest.raises(ValueError, match="the codec of this one is 'tic'"):
        export_checkpoint(model)
    assert not (tmp_path / "out.pth").exists()


def test_its_cost_is_counted(model):
    counts = count_complexity(model.config)
    for part in ("g_a", "g_s", "h_a"):
        assert counts[part]["num_params"] == sum(p.numel() for p in model.codec.get_submodule(part).parameters())
    # Without attention's products: convolutions and linear layers of the blocks at 1/2 to 1/16
    layer = 8 * 16**2
    least = (3 * 16 * 25 + 2 * layer) / 4 + (16 * 16 * 9 + layer) / 16 + (16 * 16 * 9 + 2 * layer) / 64
    assert least / 1000 < counts["g_a"]["kmac_per_pixel"] < 2 * least / 1000


def test_its_hub_folder_has_its_own_entry_and_card(tic_codec, folder, tmp_path):
    tic_codec.save_pretrained(tmp_path / "codec")
    for source, name in ((tmp_path / "codec", "Tic"), (folder, "ComNeck")):
        target = tmp_path / f"hub-{name}"
        build_hub_folder(source, target, render_card(ModelFacts(repo_id="someone/model"), source))
        auto_map = json.loads((target / "config.json").read_text())["auto_map"]
        assert auto_map == {"AutoConfig": f"comneck_hub.{name}Config", "AutoModel": f"comneck_hub.{name}Model"}
        card = (target / "README.md").read_text()
        assert "TicModel.from_pretrained" in card and "ElicModel" not in card and "lu2022tic" in card
        assert type(load_codec(str(target))) is TicModel
