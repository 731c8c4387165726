"""Importance of pictures of several tiles."""

import pytest
import torch

from comneck_hf.coding.gain_map import MAX_MAP_CELLS
from comneck_hf.models.cotam.canvas_cotam import canvas_grid, canvas_importance
from comneck_hf.models.cotam.guide_cotam import ShallowAttentionGuide
from comneck_hf.models.cotam.importance_cotam import quantize_importance


def pictures(height, width, count=2):
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(3))


def test_tiles_get_their_own_map_and_the_part_of_the_global_one(clip):
    guide, canvas = ShallowAttentionGuide(clip), pictures(128, 192)
    found = canvas_importance(guide, canvas, tile=64)
    assert found.shape == (2, 1, 8, 12)
    overview = torch.nn.functional.interpolate(guide(canvas), (8, 12), mode="bilinear")
    overview /= guide(canvas).mean(dim=(1, 2, 3), keepdim=True)
    for row in range(2):
        for column in range(3):
            tile = guide(canvas[..., 64 * row : 64 * (row + 1), 64 * column : 64 * (column + 1)])
            tile = tile / tile.mean(dim=(1, 2, 3), keepdim=True)
            cells = (..., slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
            assert torch.allclose(found[cells], tile + overview[cells], atol=1e-4)


def test_one_tile_is_the_guide_itself(clip):
    guide = ShallowAttentionGuide(clip)
    found = canvas_importance(guide, pictures(64, 96), tile=(64, 96))
    assert quantize_importance(found) == quantize_importance(guide(pictures(64, 96)))


def test_levels_are_of_the_whole_canvas(clip):
    importance = canvas_importance(ShallowAttentionGuide(clip), pictures(128, 128), tile=64)
    (gain_map, _) = quantize_importance(importance, grid=(16, 16))
    levels = torch.tensor(gain_map.gain_index)
    cells = importance[0, 0].double()
    expected = (cells > cells.mean() + 0.75 * cells.std(correction=0)).int()
    assert torch.equal((levels == 1).int(), expected)


@pytest.mark.parametrize("tile", [60, (64, 50), 0, 256])
def test_a_canvas_of_broken_tiles_is_refused(clip, tile):
    with pytest.raises(ValueError, match="128x192"):
        canvas_importance(ShallowAttentionGuide(clip), pictures(128, 192), tile=tile)


def test_a_map_has_as_many_cells_per_tile_as_it_can_hold():
    assert canvas_grid((8, 8), rows=2, columns=3) == (16, 24)
    assert canvas_grid((8, 8), rows=8, columns=8) == (64, 64)
    assert canvas_grid((8, 8), rows=9, columns=8) == (63, 56)
    assert canvas_grid((4, 12), rows=20, columns=10) == (40, 70)
    for rows, columns in ((9, 8), (20, 10), (1, 100), (64, 64)):
        cells = canvas_grid((8, 8), rows=rows, columns=columns)
        assert cells[0] * cells[1] <= MAX_MAP_CELLS
