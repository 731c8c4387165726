"""`comneck info` and `comneck decode` of pictures in tiles and on a canvas."""

import json

import numpy as np
import pytest
import torch
from command_inputs import only_error_line, photograph
from PIL import Image
from skimage import data
from transformers import AutoModel, LlavaNextImageProcessor

from comneck_hf import ComNeckNextProcessor, pretrained
from comneck_hf.coding.tiles import TiledBitstream
from comneck_hf.training.clip import build_tokenizer


MODEL = "comneck-tiny-d1-q2"
POINTS = [[128, 256], [256, 128], [256, 256], [256, 384], [384, 256]]


@pytest.fixture(scope="session")
def tiny():
    return AutoModel.from_pretrained(pretrained(MODEL)).eval()


@pytest.fixture(scope="session")
def compress(tiny):
    """What the processor of a LLaVA-NeXT writes."""
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 128}, crop_size=128, image_grid_pinpoints=POINTS, do_normalize=False
    )
    processor = ComNeckNextProcessor(images, build_tokenizer(["a cat"]))
    processor.codec = tiny.codec

    def run(picture, *, code_canvas):
        processor.code_canvas = code_canvas
        return processor.compress(picture)[0]

    return run


def cat(width, height):
    return Image.fromarray(data.cat()).resize((width, height))


def psnr(found, expected):
    error = np.asarray(found, dtype=np.float64) - np.asarray(expected, dtype=np.float64)
    return 10 * np.log10(255**2 / (error**2).mean())


@pytest.mark.parametrize("code_canvas", [False, True])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (420, 130), (130, 420), (256, 256)])
def test_decode_puts_the_picture_together_at_its_size(comneck, compress, tmp_path, size, code_canvas):
    picture = cat(*size)
    (tmp_path / "cat.cnk").write_bytes(compress(picture, code_canvas=code_canvas))
    line = comneck("decode", "cat.cnk", "-o", "cat.png", model=MODEL).stdout
    found = Image.open(tmp_path / "cat.png")
    assert found.size == size and f"{size[0]}x{size[1]} pixels" in line
    assert psnr(found, picture) > 22
    assert psnr(found, picture) > psnr(found.transpose(Image.Transpose.ROTATE_180), picture) + 5


def test_tiles_that_lie_in_one_of_two_ways_are_arranged_as_the_overview(comneck, compress, tiny, tmp_path):
    """Two tiles: beside each other for a wide picture, though the sizes alone would allow both."""
    processor = LlavaNextImageProcessor(
        size={"shortest_edge": 128}, crop_size=128, image_grid_pinpoints=[[128, 256]], do_normalize=False
    )
    high = cat(100, 180)
    tiles = processor(high, return_tensors="pt").pixel_values[0]
    (tmp_path / "cat.cnk").write_bytes(TiledBitstream(180, 100, tuple(tiny.compress(tiles))).pack())
    comneck("decode", "cat.cnk", "-o", "cat.png", model=MODEL)
    assert psnr(Image.open(tmp_path / "cat.png"), high) > 20


def test_info_lists_the_tiles(comneck, compress, tmp_path):
    container = compress(cat(300, 200), code_canvas=False)
    (tmp_path / "cat.cnk").write_bytes(container)
    sizes = [len(tile) for tile in TiledBitstream.parse(container).tiles]
    assert len(sizes) == 7
    facts = json.loads(comneck("info", "cat.cnk", "--json", model=MODEL).stdout)
    assert (facts["container"], facts["width"], facts["height"], facts["bytes"]) == ("tiles", 300, 200, len(container))
    assert [tile["bytes"] for tile in facts["tiles"]] == sizes
    assert facts["container_bytes"] + sum(sizes) == len(container)
    assert facts["bpp"] == pytest.approx(8 * len(container) / 60000)
    for tile in facts["tiles"]:
        assert (tile["width"], tile["height"], tile["model_matches"]) == (128, 128, True)
        assert "same bytes when encoded again" in tile["integrity"]
        assert sum(segment["bits"] for segment in tile["segments"]) == pytest.approx(8 * tile["bytes"])
    text = comneck("info", "cat.cnk", model=MODEL).stdout
    assert "picture in 7 tiles" in text and "300x200 pixels" in text and "wrote them" in text
    rows = [line.split() for line in text.splitlines() if "128x128" in line]
    assert [int(row[2]) for row in rows] == sizes and rows[0][0] == "overview"


def test_info_shows_a_canvas_with_its_segments(comneck, compress, tmp_path):
    container = compress(cat(300, 200), code_canvas=True)
    (tmp_path / "cat.cnk").write_bytes(container)
    text = comneck("info", "cat.cnk", model=MODEL).stdout
    assert "picture on a canvas" in text and "300x200 pixels" in text and "384x256 pixels" in text
    assert "y group 5" in text and "wrote it" in text
    alone = json.loads(comneck("info", "cat.cnk", "--no-model", "--json").stdout)
    assert alone["container"] == "canvas" and "segments" not in alone["tiles"][0]


def test_damage_and_wrong_models_are_named(comneck, models, compress, tiny, tmp_path):
    good = compress(cat(300, 200), code_canvas=False)
    (tmp_path / "good.cnk").write_bytes(good)
    (tmp_path / "bad.cnk").write_bytes(good[:60] + bytes([good[60] ^ 1]) + good[61:])
    parsed = TiledBitstream.parse(good)
    inside = TiledBitstream(200, 300, (parsed.tiles[0], parsed.tiles[1][:-1])).pack()
    (tmp_path / "inside.cnk").write_bytes(inside)
    huge = TiledBitstream(2**31, 2**31, parsed.tiles).pack()
    (tmp_path / "huge.cnk").write_bytes(huge)
    mixed = TiledBitstream(200, 300, (parsed.tiles[0], *tiny.compress(torch.rand(1, 3, 64, 128)))).pack()
    (tmp_path / "mixed.cnk").write_bytes(mixed)
    assert "checksum of this" in only_error_line(comneck("info", "bad.cnk", model="nobody", code=1))
    assert "Tile 2 of 2: The checksum" in only_error_line(comneck("info", "inside.cnk", model="nobody", code=1))
    messages = {
        "bad.cnk": "checksum of this",
        "inside.cnk": "checksum of this",
        "huge.cnk": "announces a picture of 2147483648x2147483648 pixels",
        "mixed.cnk": "The tiles have different sizes, [(64, 128), (128, 128)]",
    }
    for name, message in messages.items():
        assert message in only_error_line(comneck("decode", name, "-o", "out", model=MODEL, code=1))
    assert "another model" in only_error_line(
        comneck("decode", "good.cnk", "-o", "out", model=models / "other", code=1)
    )
    text = comneck("info", "good.cnk", model=models / "other").stdout
    assert "wrote 0 of them and cannot decode the others" in text


def test_decode_takes_tiles_among_other_files(comneck, compress, tmp_path):
    comneck("encode", photograph(tmp_path / "photo.png"), "-o", "in", model=MODEL)
    (tmp_path / "in" / "cat.cnk").write_bytes(compress(cat(300, 200), code_canvas=True))
    comneck("decode", "in", "missing.cnk", "-o", "out", model=MODEL, code=1)
    sizes = {path.name: Image.open(path).size for path in (tmp_path / "out").iterdir()}
    assert sizes == {"cat.png": (300, 200), "photo.png": (128, 128)}


def test_other_commands_send_tiles_to_those_that_read_them(comneck, compress, tmp_path):
    (tmp_path / "cat.cnk").write_bytes(compress(cat(300, 200), code_canvas=False))
    line = only_error_line(comneck("features", "cat.cnk", model=MODEL, code=1))
    assert "a picture in tiles, not a single bitstream" in line and "`comneck info` and `comneck decode`" in line
