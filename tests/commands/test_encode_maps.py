"""`comneck encode` with rates and maps, and `comneck demo --roi`, with the packaged model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from comneck_hf import Bitstream, ComNeckImageProcessorPil, CompressaiModel
from comneck_hf.cli import app
from comneck_hf.commands import loading
from comneck_hf.commands.demo import demo_photograph
from comneck_hf.commands.region_demo import run_region_demo
from comneck_hf.evaluation.pictures import picture_tensor
from comneck_hf.models.cotam.regions_cotam import gain_map_from_boxes


MODEL = "comneck-tiny-d1-q2"
FACE = "15,30,100,135"


@pytest.fixture(scope="module")
def codec():
    return loading.load_codec(MODEL)


@pytest.fixture
def comneck(codec, tmp_path, monkeypatch):
    """Runs a command in an empty folder; checks exit code and that there is no traceback."""
    monkeypatch.chdir(tmp_path)
    load = loading.load_codec
    monkeypatch.setattr(loading, "load_codec", lambda name, **where: codec if name == MODEL else load(name, **where))

    def run(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


def encoded(comneck, *options):
    comneck("encode", demo_photograph(), "-o", "out.cnk", "-f", *options)
    return Path("out.cnk").read_bytes()


def pixels():
    processor = loading.load_image_processor(MODEL)
    return processor(images=Image.open(demo_photograph()), return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize(
    "options, arguments",
    [
        (["--gain", "-0.5"], {"gain": -0.5}),
        (["--quality", "3"], {"quality": 3.0}),
        (["--target-bytes", "500"], {"target_bytes": 500}),
        (["--target-bpp", "0.3"], {"target_bpp": 0.3}),
    ],
)
def test_rates_are_those_of_the_python_api(comneck, codec, options, arguments):
    data = encoded(comneck, *options)
    assert data == codec.compress(pixels(), **arguments)[0]
    assert data != codec.compress(pixels())[0]


def test_a_region_is_in_pixels_of_the_file_and_travels_in_the_bitstream(comneck, codec):
    data = encoded(comneck, "--roi", FACE, "--roi", "140,0,160,20", "--map-step", 3, "--target-bytes", 400)
    expected = gain_map_from_boxes([(15, 30, 100, 135), (140, 0, 160, 20)], size=(160, 160), step=3)
    assert Bitstream.parse(data).gain_map == expected
    assert data == codec.compress(pixels(), gain_maps=expected, target_bytes=400)[0]
    assert len(data) == pytest.approx(400, rel=0.03)
    comneck("decode", "out.cnk", "-o", "decoded.png")
    assert Image.open("decoded.png").size == (128, 128)
    facts = json.loads(comneck("info", "out.cnk", "--json").stdout)
    assert facts["gain_map"]["levels"] == [list(row) for row in expected.gain_index]


@pytest.mark.parametrize("options", [["--guide"], ["--prompt", "face"], ["--importance", "heat.npy"]])
def test_every_source_makes_a_map_with_both_levels(comneck, options, tmp_path):
    np.save(tmp_path / "heat.npy", np.random.default_rng(0).random((30, 20)))
    gain_map = Bitstream.parse(encoded(comneck, *options)).gain_map
    assert {-1, 1} <= {level for row in gain_map.gain_index for level in row}


def test_a_grid_can_be_chosen(comneck):
    gain_map = Bitstream.parse(encoded(comneck, "--roi", FACE, "--map-grid", 4)).gain_map
    assert (gain_map.rows, gain_map.columns) == (4, 4)


def test_a_picture_without_the_region_fails_alone(comneck, tmp_path):
    Image.open(demo_photograph()).crop((0, 0, 20, 20)).save(tmp_path / "small.png")
    result = comneck("encode", "small.png", demo_photograph(), "--roi", FACE, "-o", "out", "-q", code=1)
    assert "small.png: The box 15,30,100,135 lies outside the picture of 20x20" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["astronaut.cnk"]


def test_a_picture_that_cannot_be_so_small_fails_alone(comneck, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    plain = np.full((64, 64, 3), 128, dtype=np.uint8)
    Image.fromarray(plain).save(tmp_path / "plain.png")
    options = ["--target-bytes", 60, "--no-crop", "-o", "out", "-q"]
    result = comneck("encode", "large.png", "plain.png", *options, code=1)
    assert "large.png: A picture takes at least" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plain.cnk"]
    assert (tmp_path / "out" / "plain.cnk").stat().st_size <= 62


def test_small_boxes_and_fine_grids_reach_the_latents(comneck, codec, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "small.png"
    )
    for options in (["--roi", "8,8,16,16"], ["--roi", "40,40,50,50", "--map-grid", 16], ["--guide"]):
        comneck("encode", "small.png", "--no-crop", *options, "-o", "out", "-f", "-q")
        gain_map = Bitstream.parse((tmp_path / "out" / "small.cnk").read_bytes()).gain_map
        assert (gain_map.rows, gain_map.columns) == (4, 4)  # no more than latents
        assert any(level > 0 for row in gain_map.levels_at(4, 4) for level in row)


@pytest.mark.parametrize(
    "options, code, message",
    [
        (["--guide", "--roi", FACE], 1, "exclude one another"),
        (["--gain", 1, "--quality", 2], 2, "exclude one another"),
        (["--roi", "1,2,3"], 1, "is no box"),
        (["--importance", "nothing.png"], 1, "No such file"),
        (["--map-step", 0], 2, "--map-step"),
        (["--map-step", 3], 1, "shape a map"),
        (["--no-guide", "--map-grid", 3], 1, "shape a map"),
        (["--roi", FACE, "--clip", "comneck-tiny-clip"], 1, "the CLIP of --guide and --prompt"),
        (["--gain", 99], 1, "octaves"),
        (["--quality", 99], 1, "`quality` must lie in"),
        (["--prompt", " "], 1, "--prompt is empty"),
    ],
)
def test_wrong_options_are_named(comneck, tmp_path, options, code, message):
    result = comneck("encode", demo_photograph(), *options, code=code)
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("*.cnk"))


def test_codecs_without_gains_say_so(comneck, tmp_path):
    CompressaiModel.from_zoo("bmshj2018-factorized", 1, pretrained=False).save_pretrained(tmp_path / "other")
    ComNeckImageProcessorPil().save_pretrained(tmp_path / "other")
    result = comneck("encode", demo_photograph(), "-m", "other", "--gain", 1, code=1)
    assert "has no gains" in result.stderr


def test_the_demo_moves_bits_into_the_region(comneck, tmp_path):
    facts = json.loads(comneck("demo", "--roi", FACE, "--json").stdout)
    without, with_region = facts["without_region"], facts["with_region"]
    assert with_region["bytes"] == pytest.approx(without["bytes"], rel=0.03)
    assert with_region["psnr_inside"] > without["psnr_inside"] + 0.5
    assert with_region["psnr_outside"] < without["psnr_outside"]
    assert 0.2 < facts["region_share"] < 0.5
    assert Image.open(tmp_path / "comneck_demo.png").size[0] > 800
    text = comneck("demo", "--roi", FACE).stdout
    assert "without region" in text and f"{with_region['psnr_inside']:.2f} dB" in text


def test_the_demo_decodes_a_codec_with_vectors_at_the_gains_of_its_regions(vector_codec):
    picture = Image.open(demo_photograph()).convert("RGB")
    processor = ComNeckImageProcessorPil(size={"shortest_edge": 128}, crop_size=128)
    demo = run_region_demo(picture, [(60, 20, 110, 80)], name="face", codec=vector_codec, image_processor=processor)
    coded = picture_tensor(demo.original)[None] / 255
    size = demo.without.num_bytes
    (data,) = vector_codec.compress(coded, gain_maps=demo.gain_map, target_bytes=size)
    latents = vector_codec.decompress([data])
    right, wrong = (
        (vector_codec.decode(latents, **gains)[0] * 255).round().to(torch.uint8)
        for gains in (vector_codec.coded_gains([data]), {})
    )
    assert torch.equal(picture_tensor(demo.with_region.picture), right)
    assert not torch.equal(right, wrong)
