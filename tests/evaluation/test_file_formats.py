import io
import sys

import numpy as np
import pytest
from PIL import Image

from comneck_hf.evaluation.file_formats import FILE_FORMATS, encode_picture, picture_at_bytes, picture_at_psnr
from comneck_hf.evaluation.metrics import picture_psnr


MIN_QUALITY, MAX_QUALITY = FILE_FORMATS["jpeg"].qualities


@pytest.fixture(scope="module")
def image():
    """Smooth shapes with some texture, 96x64."""
    x, y = np.meshgrid(np.arange(96), np.arange(64))
    noise = np.random.default_rng(0).normal(0, 8, (64, 96, 3))
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1)
    return Image.fromarray(np.uint8(np.clip(128 + 90 * waves + noise, 0, 255)))


@pytest.fixture(scope="module")
def all_qualities(image):
    return [encode_picture(image, quality=quality) for quality in range(MIN_QUALITY, MAX_QUALITY + 1)]


def test_the_file_decodes_to_the_picture_that_was_measured(image):
    coded = encode_picture(image, quality=50)
    decoded = Image.open(io.BytesIO(coded.data))
    assert decoded.format == "JPEG"
    assert np.array_equal(np.array(decoded), np.array(coded.image))
    assert coded.psnr == picture_psnr(coded.image, image)


def test_chroma_is_subsampled_and_huffman_tables_are_optimized(image):
    plain = io.BytesIO()
    image.save(plain, format="JPEG", quality=50, subsampling="4:2:0")
    coded = encode_picture(image, quality=50)
    assert len(coded.data) < len(plain.getvalue())
    assert Image.open(io.BytesIO(coded.data)).layer[0][1:3] == (2, 2)


@pytest.mark.parametrize("min_psnr", [10, 22, 26.5, 30])
def test_equal_psnr_finds_the_lowest_quality_that_reaches_it(image, all_qualities, min_psnr):
    found = picture_at_psnr(image, min_psnr)
    assert found.psnr >= min_psnr
    assert found.quality == MIN_QUALITY or all_qualities[found.quality - 2].psnr < min_psnr


def test_a_psnr_out_of_reach_gives_the_highest_quality(image, all_qualities):
    found = picture_at_psnr(image, 80)
    assert found.quality == MAX_QUALITY
    assert found.psnr == all_qualities[-1].psnr < 80


@pytest.mark.parametrize("quality", [5, 40, 80])
@pytest.mark.parametrize("slack", [0, 3])
def test_equal_bytes_finds_the_highest_quality_that_fits(image, all_qualities, quality, slack):
    budget = len(all_qualities[quality - 1].data) + slack
    found = picture_at_bytes(image, budget)
    assert len(found.data) <= budget
    assert len(all_qualities[found.quality].data) > budget


def test_a_budget_for_everything_gives_the_highest_quality(image):
    assert picture_at_bytes(image, 10**6).quality == MAX_QUALITY


def test_a_budget_for_nothing_gives_the_lowest_quality_and_shows_its_size(image):
    found = picture_at_bytes(image, 10)
    assert found.quality == MIN_QUALITY
    assert len(found.data) > 10


@pytest.mark.parametrize("quality", [0, 96])
def test_qualities_out_of_range_are_refused(image, quality):
    with pytest.raises(ValueError, match="`quality`"):
        encode_picture(image, quality=quality)


def test_pictures_that_are_not_rgb_are_refused(image):
    with pytest.raises(ValueError, match="must be RGB"):
        encode_picture(image.convert("L"), quality=50)


@pytest.mark.parametrize("file_format", sorted(FILE_FORMATS))
def test_every_format_writes_files_that_decode_to_what_was_measured(image, file_format):
    if file_format == "jxl":
        pytest.importorskip("pillow_jxl")
    coded = encode_picture(image, quality=60, file_format=file_format)
    decoded = Image.open(io.BytesIO(coded.data))
    assert decoded.format == FILE_FORMATS[file_format].name
    assert np.array_equal(np.array(decoded.convert("RGB")), np.array(coded.image))
    smaller = encode_picture(image, quality=10, file_format=file_format)
    assert len(smaller.data) < len(coded.data)
    assert smaller.psnr < coded.psnr


@pytest.mark.parametrize("file_format", ["webp", "avif"])
def test_budgets_hold_for_every_format(image, file_format):
    sizes = [len(encode_picture(image, quality=q, file_format=file_format).data) for q in range(0, 101, 20)]
    for budget in (sizes[1], sizes[2] + 5, sizes[4]):
        found = picture_at_bytes(image, budget, file_format=file_format)
        assert len(found.data) <= budget
        assert found.quality >= max(20 * number for number, size in enumerate(sizes) if size <= budget)


def test_unknown_formats_are_refused(image):
    with pytest.raises(ValueError, match="`file_format` must be one of .*'webp'.*got 'gif'"):
        encode_picture(image, quality=50, file_format="gif")


def test_a_missing_encoder_is_named(image, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(ImportError, match=r"comneck_hf\[eval\]"):
        encode_picture(image, quality=50, file_format="jxl")
