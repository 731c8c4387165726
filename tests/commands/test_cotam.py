"""The commands with a CoTAM in place of a ComNeck."""

import json

import datasets
import pytest
import torch
from command_inputs import CLASSES, SIDE, only_error_line, photograph, prepare
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, CLIPModel

from comneck_hf import ComNeckImageProcessor, CotamModel
from comneck_hf.commands.loading import load_image_processor
from comneck_hf.commands.maps import prepare_picture
from comneck_hf.evaluation.pictures import picture_tensor
from comneck_hf.models.cotam.importance_cotam import quantize_importance
from comneck_hf.models.elic.gain_vectors_elic import add_gain_vectors


@pytest.fixture(scope="module")
def cotam_folder(models, tmp_path_factory):
    """A CoTAM of the tiny codec and CLIP, with its gate open."""
    torch.manual_seed(1)
    codec = AutoModel.from_pretrained(models / "comneck").codec
    clip = CLIPModel.from_pretrained(models / "clip")
    cotam = CotamModel.from_codec_and_clip(codec, clip, guide_grid=[4, 4], quality=3).eval()
    cotam.vision_model.adapter.gate.data.fill_(0.5)
    folder = tmp_path_factory.mktemp("cotam")
    cotam.save_pretrained(folder)
    ComNeckImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_features_and_labels_come_from_both_paths(comneck, cotam_folder, tmp_path):
    model = CotamModel.from_pretrained(cotam_folder).eval()
    picture = Image.open(photograph(tmp_path / "photo.png"))
    (tmp_path / "photo.cnk").write_bytes(model.compress(prepare(picture))[0])
    comneck("features", "photo.cnk", model=cotam_folder)
    outputs = model(latents=model.decompress([(tmp_path / "photo.cnk").read_bytes()]))
    tensors = load_file(tmp_path / "features.safetensors")
    assert all(torch.equal(tensors[name], outputs[name]) for name in tensors)
    report = json.loads(comneck("classify", "photo.cnk", "--json", model=cotam_folder).stdout)
    assert report[0]["labels"][0]["label"] in CLASSES
    comneck("decode", "photo.cnk", "--force", model=cotam_folder)


@torch.no_grad()
def test_pictures_are_coded_as_the_model_does_unless_told_otherwise(comneck, cotam_folder, tmp_path):
    model = CotamModel.from_pretrained(cotam_folder).eval()
    picture = prepare(Image.open(photograph(tmp_path / "photo.png")))
    expected = {
        (): model.compress(picture)[0],
        ("--target-bytes", 300): model.compress(picture, target_bytes=300)[0],
        ("--no-guide",): model.codec.compress(picture)[0],
        ("--no-guide", "--gain", 1): model.codec.compress(picture, gain=1)[0],
    }
    assert len(set(expected.values())) == 4
    for words, bitstream in expected.items():
        comneck("encode", "photo.png", "--force", *words, model=cotam_folder)
        assert (tmp_path / "photo.cnk").read_bytes() == bitstream
    comneck("encode", "photo.png", "--force", "--roi", "40,30,60,50", model=cotam_folder)
    assert (tmp_path / "photo.cnk").read_bytes() not in expected.values()
    model.config.update({"gain_step": 5, "guide_grid": [2, 2]})
    words = ("--guide", "--map-step", 5, "--map-grid", 2)  # its own CLIP looks, not the packaged one
    comneck("encode", "photo.png", "--force", *words, model=cotam_folder)
    assert (tmp_path / "photo.cnk").read_bytes() == model.compress(picture)[0]


@torch.no_grad()
def test_a_guide_can_be_asked_of_a_cotam_that_is_told_not_to_use_it(comneck, cotam_folder, tmp_path):
    model = CotamModel.from_pretrained(cotam_folder).eval()
    picture = prepare(Image.open(photograph(tmp_path / "photo.png")))
    expected = {"--guide": model.compress(picture)[0], "--no-guide": model.codec.compress(picture)[0]}
    model.config.use_guide = False
    folder = tmp_path / "unguided"
    model.save_pretrained(folder)
    ComNeckImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    for words in ((), ("--guide",)):
        comneck("encode", "photo.png", "--force", *words, model=folder)
        assert (tmp_path / "photo.cnk").read_bytes() == expected[words[0] if words else "--no-guide"]


@torch.no_grad()
def test_whole_pictures_of_any_size_are_mapped_where_they_are(comneck, cotam_folder, tmp_path):
    """The codec pads them, and the map spans the padded picture: the guide of the command line knows it."""
    model = CotamModel.from_pretrained(cotam_folder).eval()
    picture = Image.open(photograph(tmp_path / "photo.png", (80, 90)))
    comneck("encode", "photo.png", "--force", "--no-crop", model=cotam_folder)
    data = (tmp_path / "photo.cnk").read_bytes()
    (found,) = model.coded_gains([data])["gain_maps"]
    prepared = prepare_picture(
        picture.convert("RGB"), load_image_processor(str(cotam_folder), crop=False), size_divisor=64
    )
    assert prepared.padding[2:] != (1, 1)
    importance = model.importance(prepared.pixel_values[None])
    options = {"grid": (4, 4), "step": model.config.gain_step}
    assert found == quantize_importance(importance, window=prepared.padding, **options)[0]
    assert found != quantize_importance(importance, **options)[0]


def test_a_cotam_is_measured_with_its_guide(comneck, cotam_folder, models, tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    images = [Image.open(photograph(tmp_path / f"{seed}.png", (SIDE, SIDE), seed)) for seed in range(3)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2]}, features=features)
    (tmp_path / "pack" / "data").mkdir(parents=True)
    rows.to_parquet(tmp_path / "pack" / "data" / "validation-0.parquet")
    words = ["--data", tmp_path / "pack", "--task", "zero-shot", "--baseline", "reconstruction", "--quiet", "--json"]
    words += ["--output", tmp_path / "out.json", "--clip", models / "clip"]
    results = json.loads(comneck("eval", *words, model=cotam_folder).stdout)
    systems = {system["name"]: system["results"] for system in results["tasks"]["zero-shot"]["systems"]}
    assert set(systems) == {"cotam", "reconstruction"}
    assert systems["cotam"]["quality"] == ["q3"]
    model = CotamModel.from_pretrained(cotam_folder).eval()
    sizes = [len(model.compress(prepare(image))[0]) for image in images]
    assert systems["cotam"]["bytes"] == [pytest.approx(sum(sizes) / 3)]
    assert systems["reconstruction"]["bytes"] != systems["cotam"]["bytes"]


def test_complexity_is_counted_for_comneck_alone(comneck, cotam_folder):
    message = only_error_line(comneck("complexity", code=1, model=cotam_folder))
    assert "counted for ComNeck models, got a 'cotam' model" in message


@torch.no_grad()
def test_a_codec_with_vectors_is_decoded_at_the_gain_of_the_file(comneck, models, tmp_path):
    torch.manual_seed(1)
    codec = add_gain_vectors(AutoModel.from_pretrained(models / "comneck").codec, levels=2, level_range=(-1.0, 1.0))
    codec.g_s.log_vectors.normal_(std=0.5)
    model = CotamModel.from_codec_and_clip(codec, CLIPModel.from_pretrained(models / "clip"), guide_grid=[4, 4]).eval()
    folder = tmp_path / "variable"
    model.save_pretrained(folder)
    ComNeckImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    photograph(tmp_path / "photo.png", seed=1)
    photograph(tmp_path / "other.png", seed=2)
    comneck("encode", "photo.png", "--gain", -0.9, model=folder)
    comneck("encode", "other.png", "--gain", 0.7, model=folder)
    bitstreams = [(tmp_path / f"{name}.cnk").read_bytes() for name in ("photo", "other")]
    latents, gains = model.decompress(bitstreams), model.coded_gains(bitstreams)
    assert [round(gain, 1) for gain in gains["gain"]] == [-0.9, 0.7]
    comneck("features", "photo.cnk", "other.cnk", model=folder)
    embeds = load_file(tmp_path / "features.safetensors")["image_embeds"]
    assert torch.allclose(embeds, model(latents=latents, **gains).image_embeds, atol=1e-5)
    comneck("decode", "photo.cnk", "-o", "decoded.png", model=folder)
    decoded = picture_tensor(Image.open(tmp_path / "decoded.png"))
    own = model.coded_gains(bitstreams[:1])
    right, wrong = (model.reconstruct(latents[:1], **{**own, "gain": gain})[0] for gain in (own["gain"], [0.0]))
    assert torch.equal(decoded, (right * 255).round().to(torch.uint8))
    assert (right - wrong).abs().max() > 0.02
