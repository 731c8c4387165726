"""Conversions against an independent implementation, and every variant of the files."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from comneck_hf.evaluation.compressai_reference import to_compressai
from comneck_hf.hub import convert, reference
from comneck_hf.hub.checkpoints import read_checkpoint
from comneck_hf.hub.convert import REPORT_FILE, convert_checkpoint
from comneck_hf.hub.export import export_checkpoint, export_codec
from comneck_hf.hub.parity import check_features, largest_difference, stored_tables
from comneck_hf.hub.transformer_weights import load_clip_tower
from comneck_hf.models.comneck.modeling_comneck import ComNeckModel
from comneck_hf.models.elic.layouts_elic import elic_weights_from
from comneck_hf.models.elic.modeling_elic import ElicModel
from comneck_hf.models.elic.quantization_elic import synthetic_pictures
from comneck_hf.models.elic.restoration_elic import restore_entropy_networks

from .authors_layout import FULL, GROUPS, TINY, checkpoint, codec_state, elic, neck_state


@pytest.fixture(scope="module")
def converted(authors_files, tmp_path_factory):
    """The converted folder and its report; embeddings as in the authors' code."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    report = convert_checkpoint(
        str(authors_files.checkpoint), folder, clip=str(authors_files.clip), post_layernorm_repeats=2
    )
    return folder, report


@pytest.fixture(scope="module")
def model(converted):
    return AutoModel.from_pretrained(converted[0]).eval()


@pytest.fixture(scope="module")
def latents(model):
    return model.codec.encode(synthetic_pictures(128, 2)).latents


def test_the_folder_is_a_whole_model(converted, model):
    folder, report = converted
    assert isinstance(model, ComNeckModel)
    assert (model.config.scenario, model.config.quality) == ("d2", 3)
    assert AutoImageProcessor.from_pretrained(folder).crop_size.height == 128
    assert json.loads((folder / REPORT_FILE).read_text())["passed"] is True
    assert report.parts["codec"] == {"tensors": 367, "parameters": sum(p.numel() for p in model.codec.parameters())}
    assert len(report.unused) == 3 + 17
    assert {"epoch", "optimizer", "lr_scheduler", "context_prediction.4.mask"} <= report.unused.keys()
    assert all(check.passed for check in report.checks)
    assert len(report.checks) == 9


@torch.no_grad()
def test_codec_does_what_the_equations_say(authors_files, model):
    pictures = synthetic_pictures(128, 2)
    y_hat, picture = elic(authors_files.codec, pictures, GROUPS)
    ours = model.codec(pictures, quantization="ste")
    assert y_hat.std() > 0.5
    assert largest_difference(ours.latents, y_hat) <= 1e-5
    assert largest_difference(ours.reconstruction, picture) <= 1e-5


@torch.no_grad()
def test_features_do_what_the_equations_say(authors_files, model, latents):
    tokens = reference.neck_tokens(authors_files.neck, latents, heads=1)
    states = reference.tower_states(authors_files.tower, tokens, heads=1, first_layer=2)
    embeds = reference.image_embeds(authors_files.tower, states[-1], norms=2)
    outputs = model(latents=latents, output_hidden_states=True)
    assert len(outputs.hidden_states) == 6
    assert len(states) == 4
    assert largest_difference(outputs.hidden_states[2], tokens) <= 1e-5
    for ours, theirs in zip(outputs.hidden_states[2:], states, strict=True):
        assert largest_difference(ours, theirs) <= 1e-4
    assert largest_difference(outputs.image_embeds, embeds) <= 5e-5


@torch.no_grad()
@pytest.mark.parametrize("mistake", ["gelu in the neck", "gelu in CLIP", "one layer norm", "swapped queries and keys"])
def test_mistakes_are_noticed(authors_files, model, latents, mistake, monkeypatch):
    neck, tower = dict(authors_files.neck), dict(authors_files.tower)
    norms = 1 if mistake == "one layer norm" else 2
    if mistake == "swapped queries and keys":
        name = "transformer.resblocks.0.attn.in_proj_weight"
        queries, keys, values = neck[name].chunk(3)
        neck[name] = torch.cat([keys, queries, values])
    if mistake == "gelu in the neck":
        monkeypatch.setattr(reference, "quick_gelu", torch.nn.functional.gelu)
    tokens = reference.neck_tokens(neck, latents, heads=1)
    monkeypatch.undo()
    if mistake == "gelu in CLIP":
        monkeypatch.setattr(reference, "quick_gelu", torch.nn.functional.gelu)
    states = reference.tower_states(tower, tokens, heads=1, first_layer=2)
    embeds = reference.image_embeds(tower, states[-1], norms=norms)
    assert largest_difference(model(latents=latents).image_embeds, embeds) >= 1e-2


def test_the_reports_checks_notice_a_wrong_neck(authors_files, model, latents):
    wrong = {key: value.flip(0) for key, value in authors_files.neck.items()}
    checks = check_features(model, wrong, load_clip_tower(str(authors_files.clip)), latents)
    assert not any(check.passed for check in checks)


def variants(codec):
    """Other files of the same codec."""
    masked, bare = dict(codec), {key: value for key, value in codec.items() if not key.endswith("mask")}
    for key, value in codec.items():
        if key.endswith(".mask"):
            masked[key.replace("mask", "weight")] = codec[key.replace("mask", "weight")] * value
    config, parameters, _ = elic_weights_from(codec, "authors")
    model = ElicModel(config)
    model.load_state_dict(parameters, strict=False)
    stored = export_codec(model, "authors")
    name = "entropy_bottleneck._quantized_cdf"
    older = {
        key.replace(".matrices.", "._matrix").replace(".biases.", "._bias").replace(".factors.", "._factor"): value
        for key, value in export_codec(model, "compressai").items()
    }
    return {
        "masked weights": (masked, "empty"),
        "no buffers": ({key: value for key, value in bare.items() if "conditional" not in key}, "empty"),
        "no tables": ({key: value for key, value in codec.items() if "_cdf" not in key}, "absent"),
        "stored tables": (stored, "valid"),
        "stale tables": ({**stored, name: stored[name].flip(0)}, "stale"),
        "CompressAI": (export_codec(model, "compressai"), "valid"),
        "CompressAI's older names": (older, "valid"),
    }


def test_every_variant_gives_the_same_bits(authors_files, tmp_path):
    config, parameters, _ = elic_weights_from(authors_files.codec, "authors")
    for name, (codec, tables) in variants(authors_files.codec).items():
        read = read_checkpoint(authors_files.variant(tmp_path, codec))
        other_config, others, _ = elic_weights_from(read.codec, read.layout)
        assert other_config.to_dict() == config.to_dict(), name
        assert all(torch.equal(others[key], value) for key, value in parameters.items()), name
        model = ElicModel(config)
        model.load_state_dict(others, strict=False)
        assert stored_tables(to_compressai(model), read) == tables, name


def test_conversion_of_another_variant_writes_the_same_model(authors_files, converted, tmp_path):
    tower = tmp_path / "tower"
    load_clip_tower(str(authors_files.clip)).save_pretrained(tower)
    codec = {f"module.{key}": value for key, value in authors_files.codec.items() if not key.endswith("mask")}
    source = authors_files.variant(tmp_path, checkpoint(codec, authors_files.neck))
    options = {"scenario": "d2", "quality": 3, "post_layernorm_repeats": 2}
    report = convert_checkpoint(source, tmp_path / "model", clip=str(tower), **options)
    assert any("module." in note for note in report.notes)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", converted[0]))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_codec_alone_becomes_a_codec(authors_files, tmp_path):
    report = convert_checkpoint(str(authors_files.checkpoint), tmp_path / "codec", codec_only=True)
    codec = AutoModel.from_pretrained(tmp_path / "codec")
    assert isinstance(codec, ElicModel)
    assert report.unused["adapter"] == "left out as asked"
    assert "neck" not in report.parts


def test_photographs_set_the_ranges(authors_files, tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, picture in enumerate(synthetic_pictures(96, 2)):
        Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    report = convert_checkpoint(
        str(authors_files.checkpoint), tmp_path / "codec", codec_only=True, pictures=folder, quality=1, scenario="d1"
    )
    config = AutoModel.from_pretrained(tmp_path / "codec").config
    assert (config.quality, config.lmbda) == (1, 0.004)
    assert report.rate["pictures"] == 2
    assert not any("drawn" in note for note in report.notes)
    convert_checkpoint(authors_files.checkpoint, tmp_path / "drawn", codec_only=True)
    ours, drawn = (AutoModel.from_pretrained(tmp_path / name).exact.fingerprint for name in ("codec", "drawn"))
    assert ours != drawn


def without(part):
    """Drops the tensors whose names hold `part`."""
    return lambda codec: {key: value for key, value in codec.items() if part not in key}


def wrong_shape(codec):
    return {**codec, "h_s.0.weight": torch.ones(3, 3, 5, 5)}


def wrong_mask(codec):
    return {**codec, "context_prediction.1.mask": 1 - codec["context_prediction.1.mask"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda codec: {key: value for key, value in codec.items() if key != "g_a.0.bias"},
            r"lacks 1 of .*g_a\.0\.bias",
        ),
        (lambda codec: {key: value for key, value in codec.items() if "g_a" not in key}, r"lacks .*g_a\.0\.weight"),
        (lambda codec: {**codec, "g_a.0.extra": torch.ones(1)}, r"has 1 tensors too many: g_a\.0\.extra"),
        (lambda codec: {**codec, "g_a.0.bias": codec["g_a.0.bias"] / 0}, r"not finite.* g_a\.0\.bias"),
        (lambda codec: {**codec, "g_a.0.weight": torch.ones(())}, r"g_a\.0\.weight is no convolution"),
        (lambda codec: {**codec, "g_a.13.weight": torch.ones(9, 16, 5, 5)}, r"9 latent channels, but its groups"),
        (wrong_shape, r"h_s\.0\.weight is \(3, 3, 5, 5\), not \(16, 16, 5, 5\)"),
        (wrong_mask, r"context_prediction\.1\.mask is not the checkerboard"),
    ],
)
def test_a_codec_that_is_not_whole_is_refused(authors_files, tmp_path, change, message):
    source = authors_files.variant(tmp_path, checkpoint(change(authors_files.codec), authors_files.neck))
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "model", clip=str(authors_files.clip))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("neck", "message"),
    [
        (neck_state(20, 64, 128, 65), "latents of 20 channels, but the codec makes 24"),
        (neck_state(24, 32, 64, 65), "tokens of width 32, but this CLIP has 64"),
        (neck_state(24, 64, 128, 17), "grid of 4x4 tokens, but this CLIP has 8x8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(authors_files, tmp_path, neck, message):
    source = authors_files.variant(tmp_path, checkpoint(authors_files.codec, neck))
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "model", clip=str(authors_files.clip))


def test_a_folder_that_exists_is_kept(authors_files, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        convert_checkpoint(authors_files.checkpoint, tmp_path)
    (tmp_path / "precious.txt").write_text("keep")
    for folder in (tmp_path, tmp_path.parent):
        with pytest.raises(ValueError, match="not the folder of an earlier conversion and stays"):
            convert_checkpoint(authors_files.checkpoint, folder, overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "keep"


def test_an_earlier_conversion_is_replaced(authors_files, tmp_path):
    for quality in (1, 2):
        convert_checkpoint(authors_files.checkpoint, tmp_path / "a", codec_only=True, quality=quality, overwrite=True)
    assert AutoModel.from_pretrained(tmp_path / "a").config.quality == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("source", "point"),
    [
        ("d2_3.pth.tar", ("d2", 3)),
        ("https://host/v1.0/d3_1.pth.tar?download=1", ("d3", 1)),
        ("d1_4.safetensors", ("d1", 4)),
        ("finetuned1_2.pth", ("d1", None)),
        ("d2_3/checkpoint.pth", ("d1", None)),
    ],
)
def test_the_operating_point_is_read_off_the_files_name(source, point):
    assert convert._operating_point(source, None, None) == point


@pytest.mark.parametrize(("option", "value"), [("scenario", "d4"), ("quality", 5)])
def test_unknown_operating_points_are_refused(authors_files, tmp_path, option, value):
    with pytest.raises(ValueError, match=f"`{option}` must be one of"):
        convert_checkpoint(str(authors_files.checkpoint), tmp_path / "model", **{option: value})


def test_a_failed_check_leaves_nothing(authors_files, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "check_weights", lambda *_: convert.Check("weights", 1.0, 0.0))
    with pytest.raises(ValueError, match=r"does not do what the original does\. weights: 1\.0e\+00"):
        convert_checkpoint(str(authors_files.checkpoint), tmp_path / "model", codec_only=True)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_codec_of_published_widths_converts_and_agrees(tmp_path):
    codec = codec_state(**FULL)
    assert len(codec) == 384
    torch.save(codec, tmp_path / "ckpt_0008.pth.tar")
    report = convert_checkpoint(str(tmp_path / "ckpt_0008.pth.tar"), tmp_path / "codec")
    assert report.parts["codec"] == {"tensors": 367, "parameters": 33_792_771}
    pictures = synthetic_pictures(128, 1)
    y_hat, picture = elic(codec, pictures, FULL["groups"])
    ours = AutoModel.from_pretrained(tmp_path / "codec").eval()(pictures, quantization="ste")
    assert largest_difference(ours.latents, y_hat) <= 1e-5
    assert largest_difference(ours.reconstruction, picture) <= 1e-5


def test_exports_load_strictly_where_they_belong(model, authors_files):
    exported = export_checkpoint(model)
    assert exported["state_dict"].keys() == authors_files.codec.keys()
    for key, value in authors_files.codec.items():
        if key.startswith("context_prediction") and key.endswith("weight"):
            value = value * authors_files.codec[key.replace("weight", "mask")]
        if value.numel() and not key.endswith(("scale_table", "target")):
            assert torch.equal(exported["state_dict"][key], value), key
    assert all(torch.equal(exported["adapter"][key], value) for key, value in authors_files.neck.items())


@torch.no_grad()
def test_an_export_loads_strictly_into_compressai():
    from compressai.models import Elic2022Chandelier

    config, parameters, _ = elic_weights_from(
        codec_state(**{**TINY, "context": (224, 128), "aggregation": (48, 512)}), "authors"
    )
    codec = ElicModel(config)
    codec.load_state_dict(parameters, strict=False)
    exported = export_codec(codec, "compressai")
    assert len(exported) == 412
    theirs = Elic2022Chandelier(N=16, M=24, groups=list(GROUPS))
    theirs.load_state_dict(exported, strict=True)
    strings = theirs.eval().compress(synthetic_pictures(128, 1))["strings"]  # its tables came along
    assert len(strings) == 11


def test_a_codec_that_lacks_parts_cannot_be_exported(converted):
    codec = ElicModel.from_pretrained(converted[0], build_synthesis=False)
    with pytest.raises(ValueError, match="build_synthesis=False"):
        export_codec(codec, "authors")


def test_float_entropy_networks_are_restored_for_an_export(converted, model):
    codec = ElicModel.from_pretrained(converted[0], build_entropy_networks=False)
    exported, whole = (export_codec(one, "authors") for one in (codec, model.codec))
    assert exported.keys() == whole.keys()
    assert torch.equal(exported["g_a.0.weight"], whole["g_a.0.weight"])
    restored = export_codec(restore_entropy_networks(codec), "authors")
    assert all(torch.equal(value, restored[key]) for key, value in exported.items())


def test_an_unknown_layout_is_refused(model):
    with pytest.raises(ValueError, match="`layout` must be one of"):
        export_codec(model.codec, "tensorflow")
