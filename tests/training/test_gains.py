"""Random gains: their ranges, shares and kinds."""

import pytest
import torch

from comneck_hf.coding.gain_map import GainMap
from comneck_hf.training.gains import RandomGains, distortion_weights, gradient_levels, patch_levels, token_weights


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_gains_fill_their_range_and_maps_have_their_shares():
    gains = RandomGains(-1.5, 1.0, guided_share=0.5, random_share=0.5, grid=(4, 6), levels=5, step=3)
    guided = [GainMap(((number % 3 - 1,),)) for number in range(3000)]
    octaves, maps = gains.draw(3000, guided, generator=generator())
    assert -1.5 <= min(octaves) < -1.49 and 0.99 < max(octaves) <= 1.0
    assert abs(sum(octaves) / 3000 + 0.25) < 0.05
    own = [gain_map for gain_map, guide in zip(maps, guided, strict=True) if gain_map is guide]
    drawn = [gain_map for gain_map in maps if gain_map is not None and gain_map.rows == 4]
    assert abs(len(own) / 3000 - 0.5) < 0.03
    assert abs(len(drawn) / 3000 - 1 / 3) < 0.03  # a third of the random half is uniform
    assert len(own) + len(drawn) + maps.count(None) == 3000
    assert all((gain_map.columns, gain_map.levels, gain_map.step) == (6, 5, 3) for gain_map in drawn)
    assert gains.draw(3000, guided, generator=generator()) == (octaves, maps)
    assert gains.draw(3000, guided, generator=generator(1)) != (octaves, maps)


def test_without_shares_there_are_no_maps():
    octaves, maps = RandomGains(0.5, 0.5).draw(4, generator=generator())
    assert octaves == [0.5] * 4 and maps == [None] * 4


def test_patches_are_square_and_independent():
    sides, source = set(), generator()
    for _ in range(40):
        levels = patch_levels((8, 6), 1, generator=source)
        assert levels.shape == (8, 6) and set(levels.unique().tolist()) <= {-1, 0, 1}
        is_of = {
            side: (levels == levels[::side, ::side].repeat_interleave(side, 0).repeat_interleave(side, 1)[:8, :6])
            for side in (4, 2)
        }
        sides.add(next((side for side in (4, 2) if is_of[side].all()), 1))
    assert sides == {1, 2, 4}


def test_gradients_rise_along_one_side_in_four_directions():
    found, source = set(), generator()
    for _ in range(60):
        levels = gradient_levels((6, 8), 1, generator=source)
        assert levels.shape == (6, 8)
        assert levels.unique().tolist() == [-1, 0, 1]
        assert (levels == levels[:, :1]).all() or (levels == levels[:1]).all()
        found.add((int(levels[0, 0]), int(levels[-1, 0]), int(levels[0, -1])))
    assert found == {(-1, 1, -1), (1, -1, 1), (-1, -1, 1), (1, 1, -1)}


def test_token_weights_are_one_where_the_quantizer_is_finest():
    gain_map = GainMap(((1, 0), (-1, 0)), step=4)
    weights = token_weights([0.7, -1.0, 0.0], [gain_map, None, GainMap(((-1,),))], (4, 4))
    assert weights.shape == (3, 17)
    assert weights[0, 0] == 1
    grid = weights[0, 1:].view(4, 4)
    assert grid[0, 0] == grid[1, 1] == 1 and grid[0, 2] == grid[3, 3] == 0.5 and grid[3, 0] == 0.25
    assert (weights[1:] == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 1.0, "high": 0.5}, "lowest gain must not be above the highest, got 1.0 and 0.5"),
        ({"guided_share": 0.6, "random_share": 0.6}, "got 0.6 and 0.6"),
        ({"guided_share": -0.1}, "got -0.1 and 0.0"),
    ],
)
def test_ranges_and_shares_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandomGains(**options)


def test_lambda_doubles_with_every_half_octave_of_a_pixels_gain():
    assert distortion_weights([0.0, 0.5, -1.0], [None] * 3, (64, 64)).flatten().tolist() == [1.0, 2.0, 0.25]
    halves = GainMap(((-1,), (1,)), step=2)
    weights = distortion_weights([0.5, 0.0], [halves, None], (96, 80))  # padded to 128 x 128: 64 rows each
    assert weights.shape == (2, 1, 96, 80)
    assert weights[0, 0, :64].unique().tolist() == [1.0] and weights[0, 0, 64:].unique().tolist() == [4.0]
    assert weights[1].unique().tolist() == [1.0]
