"""Boxes, masks and heat maps of the user."""

import numpy as np
import pytest
import torch
from PIL import Image

from comneck_hf.models.cotam.importance_cotam import quantize_importance
from comneck_hf.models.cotam.regions_cotam import gain_map_from_boxes, gain_map_from_picture


def index_of(gain_map):
    return torch.tensor(gain_map.gain_index)


def block(rows, columns, grid=(8, 8), outside=0):
    """Level 1 in rows [a, b) and columns [a, b)."""
    index = torch.full(grid, outside)
    index[slice(*rows), slice(*columns)] = 1
    return index


@pytest.mark.parametrize(
    "box, rows, columns",
    [
        ((20, 10, 60, 40), (1, 4), (1, 3)),  # on cell bounds: cells of 20 x 10 pixels
        ((20, 10, 69, 44), (1, 4), (1, 3)),  # less than half of the next cells
        ((20, 10, 70, 45), (1, 5), (1, 4)),  # half of them
        ((151, 71, 200, 100), (7, 8), (7, 8)),  # cut off at the picture
        ((105, 52, 107, 53), (5, 6), (5, 6)),  # far smaller than a cell
        ((118, 39, 122, 41), (3, 5), (5, 7)),  # small, in the middle of four cells
        ((119, 0, 122, 10), (0, 1), (6, 7)),  # mostly in one of two
        ((-5, -5, 500, 500), (0, 8), (0, 8)),
    ],
)
def test_a_cell_is_inside_if_the_box_covers_half_of_it(box, rows, columns):
    found = gain_map_from_boxes([box], size=(80, 160))
    assert torch.equal(index_of(found), block(rows, columns))


def test_boxes_add_up_and_the_outside_can_be_lowered():
    found = gain_map_from_boxes([(0, 0, 20, 10), (140, 70, 160, 80)], size=(80, 160), outside=-1, step=5)
    expected = block((0, 1), (0, 1), outside=-1)
    expected[7, 7] = 1
    assert torch.equal(index_of(found), expected)
    assert found.step == 5


def test_a_window_moves_and_stretches_boxes():
    # The right half is coded: its cells are 10 x 10 pixels.
    found = gain_map_from_boxes([(90, 20, 120, 30)], size=(80, 160), window=(0, 0.5, 1, 1))
    assert torch.equal(index_of(found), block((2, 3), (1, 4)))
    # Padded below: half of the rows are beyond the picture.
    found = gain_map_from_boxes([(0, 40, 160, 80)], size=(80, 160), window=(0, 0, 2, 1))
    assert torch.equal(index_of(found), block((2, 4), (0, 8)))


@pytest.mark.parametrize(
    "boxes, message",
    [
        ([], "at least one"),
        ([(5, 5, 5, 9)], "5,5,5,9 is empty"),
        ([(90, 0, 99, 9), (160, 0, 170, 9)], "outside the picture of 160x80"),
        ([(0, 0, 79, 80)], "--no-crop"),
        ([(float("nan"), 0, 4, 4)], "empty"),
    ],
)
def test_boxes_that_mark_nothing_are_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        gain_map_from_boxes(boxes, size=(80, 160), window=(0, 0.5, 1, 1))


def test_masks_of_any_size_and_type_mark_the_same_cells():
    mask = np.zeros((32, 48), dtype=bool)
    mask[8:16, 12:30] = True  # half of a column of cells
    expected = block((2, 4), (2, 5))
    scaled = Image.fromarray(np.uint8(255 * mask)).resize((480, 320), Image.Resampling.NEAREST)
    for picture in (
        mask,
        torch.from_numpy(mask),
        np.uint8(7 * mask),
        scaled,
        scaled.convert("1"),
        scaled.convert("RGB"),
    ):
        assert torch.equal(index_of(gain_map_from_picture(picture)), expected)
    assert torch.equal(index_of(gain_map_from_picture(mask, outside=-1)), block((2, 4), (2, 5), outside=-1))


def test_a_mask_smaller_than_a_cell_is_kept():
    mask = np.zeros((64, 64))
    mask[33, 17] = 1
    assert torch.equal(index_of(gain_map_from_picture(mask)), block((4, 5), (2, 3)))


def test_heat_maps_are_cut_by_their_statistics():
    heat = np.random.default_rng(0).random((40, 56)) ** 3
    expected = quantize_importance(torch.from_numpy(heat)[None, None], grid=(4, 7), step=3)[0]
    assert gain_map_from_picture(heat, grid=(4, 7), step=3) == expected
    assert {-1, 0, 1} == set(index_of(expected).unique().tolist())


def test_heat_maps_with_16_bits_keep_their_precision():
    heat = np.random.default_rng(0).integers(40000, 40200, (16, 16)).astype(np.uint16)
    assert gain_map_from_picture(Image.fromarray(heat)) == gain_map_from_picture(heat.astype(float))


def test_a_window_cuts_masks_and_heat_maps():
    mask = np.zeros((32, 32))
    mask[:, :20] = 1
    assert torch.equal(index_of(gain_map_from_picture(mask, window=(0, 0.5, 1, 1))), block((0, 8), (0, 2)))
    with pytest.raises(ValueError, match="cut off"):
        gain_map_from_picture(mask, window=(0, 0.75, 1, 1))


@pytest.mark.parametrize(
    "picture, message",
    [
        (np.full((4, 4), 3.0), "value 3 everywhere"),
        (np.zeros((4, 4, 3)), r"\(4, 4, 3\)"),
        (np.zeros((0, 4)), r"\(0, 4\)"),
        (np.array([[0.0, float("nan")]]), "NaN"),
    ],
)
def test_maps_that_mark_nothing_are_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        gain_map_from_picture(picture)


def test_the_outside_is_zero_or_minus_one():
    for make in (
        lambda: gain_map_from_boxes([(0, 0, 1, 1)], size=(2, 2), outside=1),
        lambda: gain_map_from_picture(np.eye(4), outside=2),
    ):
        with pytest.raises(ValueError, match="outside"):
            make()
