import pytest

from comneck_hf.coding.gain_map import GAINS_PER_OCTAVE, MAX_GAIN, MIN_GAIN, STEP_UNIT, GainMap, quantizer_step


def test_steps_are_powers_of_two_to_the_nearest_integer():
    for gain in range(MIN_GAIN, MAX_GAIN + 1):
        assert abs(quantizer_step(gain) - STEP_UNIT * 2 ** (-gain / GAINS_PER_OCTAVE)) < 0.51
    assert quantizer_step(0) == STEP_UNIT
    assert quantizer_step(GAINS_PER_OCTAVE) == STEP_UNIT // 2


@pytest.mark.parametrize("gain", [MIN_GAIN - 1, MAX_GAIN + 1])
def test_gains_beyond_the_limits_have_no_step(gain):
    with pytest.raises(ValueError, match="octaves"):
        quantizer_step(gain)


def test_cells_are_stretched_over_the_latent_grid_and_kept_within_the_limits():
    gain_map = GainMap(((-1, 1), (0, 1)), step=4)
    assert gain_map.gains(2, 4, gain=3) == [[3 - 64, 3 - 64, 3 + 64, 3 + 64], [3, 3, 3 + 64, 3 + 64]]
    assert gain_map.gains(1, 1) == [[-64]]
    assert gain_map.gains(4, 2, gain=MAX_GAIN)[0] == [MAX_GAIN - 64, MAX_GAIN]
    assert GainMap(((0, 1, 0),), step=1).gains(1, 5) == [[0, 0, 16, 16, 0]]


@pytest.mark.parametrize(
    "fields, complaint",
    [
        ({"gain_index": ()}, "rows of one length"),
        ({"gain_index": ((),)}, "rows of one length"),
        ({"gain_index": ((0,), (0, 1))}, "rows of one length"),
        ({"gain_index": ((2,),)}, r"\[-1, 1\] with 3 levels, got 2. Raise `levels`"),
        ({"gain_index": ((0,) * 4097,)}, "4096 cells at most, got 1x4097"),
        ({"gain_index": ((0,),), "step": 0}, "`step` must be 1 to 15"),
        ({"gain_index": ((0,),), "levels": 4}, "`levels` must be odd"),
        ({"gain_index": ((0,),), "levels": 33}, "`levels` must be odd and 3 to 31"),
    ],
)
def test_impossible_maps_are_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        GainMap(**fields)


@pytest.mark.parametrize("fields", [{"gain_index": ((0.9, -0.9),)}, {"step": 2.5}, {"levels": 3.5}])
def test_fractions_are_refused_and_whole_numbers_become_integers(fields):
    with pytest.raises(ValueError, match="must be whole"):
        GainMap(**{"gain_index": ((0, 1),), **fields})
    gain_map = GainMap(((0.0, 1.0),), step=2.0, levels=3.0)
    assert gain_map == GainMap(((0, 1),)) and all(type(value) is int for value in (gain_map.step, gain_map.levels))
