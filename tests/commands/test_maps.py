"""Gain maps of the command line: pixels of the file to cells of the map."""

import numpy as np
import pytest
import torch
from PIL import Image

from comneck_hf import ComNeckImageProcessorPil
from comneck_hf.commands.maps import MapOptions, coded_window, map_maker, parse_box, prepare_picture
from comneck_hf.models.cotam.guide_cotam import ShallowAttentionGuide
from comneck_hf.models.cotam.importance_cotam import quantize_importance
from comneck_hf.models.cotam.latent_guide_cotam import LatentGuide


PROCESSORS = {
    "crop": ComNeckImageProcessorPil(size={"shortest_edge": 64}, crop_size=64),
    "wide": ComNeckImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 48, "width": 96}),
    "smaller crop": ComNeckImageProcessorPil(size={"shortest_edge": 100}, crop_size={"height": 64, "width": 80}),
    "crop only": ComNeckImageProcessorPil(do_resize=False, crop_size={"height": 61, "width": 62}),
    "padding crop": ComNeckImageProcessorPil(do_resize=False, crop_size={"height": 201, "width": 300}),
    "fixed size": ComNeckImageProcessorPil(size={"height": 50, "width": 90}, do_center_crop=False),
    "whole": ComNeckImageProcessorPil(do_resize=False, do_center_crop=False),
}


def drawn(size, box):
    """A white box on black; `size` is width and height."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(160, 120), (97, 151), (130, 130)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_window_is_where_the_processor_puts_the_pixels(name, size):
    box = (50, 60, 68, 82)
    processor = PROCESSORS[name]
    prepared = prepare_picture(drawn(size, box), processor, size_divisor=1)
    bright = prepared.pixel_values.mean(0) > 0.5
    rows, columns = torch.nonzero(bright.any(1)).flatten(), torch.nonzero(bright.any(0)).flatten()
    height, width = bright.shape
    top, left, bottom, right = coded_window(processor, (size[1], size[0]))
    assert prepared.window == pytest.approx((top, left, bottom, right))
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    expected = [
        width * (box[0] / size[0] - left) / (right - left),
        height * (box[1] / size[1] - top) / (bottom - top),
        width * (box[2] / size[0] - left) / (right - left),
        height * (box[3] / size[1] - top) / (bottom - top),
    ]
    limits = [0, 0, width, height]
    for side, (seen, wanted) in enumerate(zip(found, expected, strict=True)):
        wanted = min(wanted, limits[side]) if side > 1 else max(wanted, 0)
        assert abs(float(seen) - wanted) < 1.01


def test_padding_of_the_codec_belongs_to_the_window():
    prepared = prepare_picture(drawn((90, 70), (0, 0, 9, 9)), PROCESSORS["whole"], size_divisor=64)
    assert prepared.window == prepared.padding == pytest.approx((0, 0, 128 / 70, 128 / 90))
    cropped = prepare_picture(drawn((90, 70), (0, 0, 9, 9)), PROCESSORS["crop"], size_divisor=64)
    assert cropped.padding == (0, 0, 1, 1)


@pytest.mark.parametrize("name", ["crop", "smaller crop", "whole"])
def test_boxes_masks_and_files_mark_the_same_cells(name, tmp_path):
    size, box = (160, 120), (48, 32, 112, 80)
    picture = drawn(size, box)
    picture.convert("L").save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", np.array(picture.convert("L").resize((80, 60), Image.Resampling.NEAREST)))
    prepared = prepare_picture(picture, PROCESSORS[name], size_divisor=64)
    maps = [
        map_maker(options)(prepared)
        for options in (
            MapOptions(boxes=(box,), step=3, grid=16),
            MapOptions(importance=tmp_path / "mask.png", step=3, grid=16),
            MapOptions(importance=tmp_path / "mask.npy", step=3, grid=16),
        )
    ]
    levels = torch.tensor(maps[0].gain_index)
    # The decoded picture's own brightness says which cells those are.
    height, width = prepared.pixel_values.shape[-2:]
    padded = torch.nn.functional.pad(prepared.pixel_values.mean(0), (0, -width % 64, 0, -height % 64))
    rows, columns = prepared.grid(16)
    assert levels.shape == (rows, columns)
    bright = torch.nn.functional.interpolate(padded[None, None], (10 * rows, 10 * columns), mode="nearest")
    share = torch.nn.functional.avg_pool2d(bright, 10)[0, 0]
    assert (levels[share > 0.9] == 1).all() and (levels[share < 0.1] == 0).all()
    assert 4 <= levels.sum() < 200 and maps[0].step == 3
    for gain_map in maps[1:]:
        assert (torch.tensor(gain_map.gain_index) != levels).float().mean() < 0.06  # corners, half covered


def test_the_guide_sees_the_coded_picture(tmp_path, clip_folder):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8))
    prepared = prepare_picture(picture, PROCESSORS["crop"], size_divisor=64)
    found = map_maker(MapOptions(guide=True, clip=str(clip_folder), grid=4, step=5))(prepared)
    importance = ShallowAttentionGuide.from_pretrained(str(clip_folder))(prepared.pixel_values[None])
    assert found == quantize_importance(importance, grid=(4, 4), step=5)[0]


def test_words_go_through_the_text_tower(clip_folder):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8))
    prepared = prepare_picture(picture, PROCESSORS["crop"], size_divisor=64)
    maps = {
        words: map_maker(MapOptions(prompt=words, clip=str(clip_folder)))(prepared)
        for words in ("cup", "a wild cat", "motorbike")
    }
    assert len(set(maps.values())) > 1
    assert all((gain_map.rows, gain_map.columns) == (4, 4) for gain_map in maps.values())


def test_words_are_sought_in_smaller_windows_for_finer_maps(clip_folder):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8))
    prepared = prepare_picture(picture, PROCESSORS["whole"], size_divisor=64)
    for grid, found in ((1, 1), (3, 3), (8, 8), (9, 9)):
        gain_map = map_maker(MapOptions(prompt="cup", clip=str(clip_folder), grid=grid))(prepared)
        assert (gain_map.rows, gain_map.columns) == (found, found)


def test_a_latent_guide_sees_the_latents_of_the_padded_picture(tiny_codec, tmp_path):
    torch.manual_seed(0)
    guide = LatentGuide(tiny_codec.config.latent_channels, hidden_channels=4, fingerprint=tiny_codec.fingerprint)
    guide.save(tmp_path / "guide.safetensors")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8))
    prepared = prepare_picture(picture, PROCESSORS["whole"], size_divisor=64)
    found = map_maker(MapOptions(latent_guide=tmp_path / "guide.safetensors", step=3), codec=tiny_codec)(prepared)
    padded = torch.nn.functional.pad(prepared.pixel_values[None], (0, 62, 0, 38), mode="replicate")
    with torch.no_grad():
        expected = quantize_importance(guide(tiny_codec.g_a(padded)), grid=(8, 8), step=3)[0]
    assert found == expected
    assert {-1, 1} <= {level for row in found.gain_index for level in row}


def test_a_latent_guide_of_another_codec_is_refused(tiny_codec, tmp_path):
    LatentGuide(tiny_codec.config.latent_channels).save(tmp_path / "guide.safetensors")
    with pytest.raises(ValueError, match="latents of another codec"):
        map_maker(MapOptions(latent_guide=tmp_path / "guide.safetensors"), codec=tiny_codec)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="is no guide that"):
        map_maker(MapOptions(latent_guide=tmp_path / "text.safetensors"), codec=tiny_codec)
    with pytest.raises(FileNotFoundError):
        map_maker(MapOptions(latent_guide=tmp_path / "missing.safetensors"), codec=tiny_codec)


def test_without_a_source_there_is_no_map():
    assert map_maker(MapOptions()) is None
    for shape in ({"step": 3}, {"grid": 4}):
        with pytest.raises(ValueError, match="shape a map"):
            map_maker(MapOptions(**shape))
    with pytest.raises(ValueError, match="--clip other is the CLIP of"):
        MapOptions(boxes=((0, 0, 9, 9),), clip="other")


def test_sources_exclude_one_another():
    with pytest.raises(ValueError, match="exclude one another"):
        MapOptions(guide=True, prompt="cup")


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,x", "", "1 2 3 4"])
def test_boxes_are_four_numbers(text):
    assert parse_box("1,2.5,-3,4") == (1, 2.5, -3, 4)
    with pytest.raises(ValueError, match="is no box"):
        parse_box(text)


def test_files_that_are_no_maps_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.npy").write_text("no array")
    for name in ("text.png", "text.npy"):
        with pytest.raises(ValueError, match=name):
            map_maker(MapOptions(importance=tmp_path / name))
