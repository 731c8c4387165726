"""Pictures on a canvas: where transformers puts them, and tiles in its order."""

import pytest
import torch
from torch.nn import functional as F
from transformers import LlavaNextImageProcessor
from transformers.image_processing_utils import select_best_resolution

from comneck_hf.models.comneck.canvas_comneck import (
    cut_tiles,
    join_tiles,
    picture_window,
    pool_latents,
    resize_picture,
)


POINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [64, 96]]


@pytest.mark.parametrize("size", [(50, 50), (37, 111), (111, 37), (64, 90), (33, 500), (500, 7), (3, 2), (64, 96)])
def test_a_picture_lies_where_transformers_puts_it(size):
    processor = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, image_grid_pinpoints=POINTS, do_normalize=False
    )
    white = torch.full((3, *size), 255, dtype=torch.uint8)
    tiles = processor(white, return_tensors="pt").pixel_values[0][1:]
    canvas = tuple(select_best_resolution(size, POINTS))
    found = join_tiles(tiles, canvas[0] // 32, canvas[1] // 32)
    top, left, bottom, right = picture_window(size, canvas)
    expected = torch.zeros(3, *canvas)
    expected[:, top:bottom, left:right] = 1
    assert torch.equal(found, expected)


def test_tiles_follow_each_other_row_by_row():
    canvas = torch.randn(5, 2 * 4, 3 * 6)
    tiles = cut_tiles(canvas, 2, 3)
    assert tiles.shape == (6, 5, 4, 6)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, 3)
        assert torch.equal(tile, canvas[:, 4 * row : 4 * row + 4, 6 * column : 6 * column + 6])
    assert torch.equal(join_tiles(tiles, 2, 3), canvas)


def test_latents_of_a_canvas_without_borders_are_pooled_adaptively():
    latents = torch.randn(7, 8, 12)
    found = pool_latents(latents, (4, 4), size=(80, 120))
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(latents, (4, 4)))
    assert found.dtype == torch.float32


def test_borders_are_in_neither_view_of_the_whole():
    """A picture of 24x48 pixels on a canvas of 64x64: rows 16 to 48."""
    latents = torch.full((2, 4, 4), 9.0)
    latents[:, 1:3] = torch.arange(8.0).view(2, 4)
    expected = latents[:, 1:3]
    assert torch.equal(pool_latents(latents, (2, 4), size=(24, 48)), expected)
    canvas = torch.zeros(3, 64, 64)
    canvas[:, 16:48] = 0.5
    assert torch.allclose(resize_picture(canvas, (30, 30), size=(24, 48)), torch.tensor(0.5))
