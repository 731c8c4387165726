import sys

import pytest

from comneck_hf.evaluation.curves import average_gain, bd_rate, value_at


def test_values_are_linear_in_the_logarithm_of_the_rate():
    curve = [(400, 70.0), (100, 50.0)]
    assert value_at(curve, 100) == 50
    assert value_at(curve, 400) == 70
    assert value_at(curve, 200) == pytest.approx(60)


def test_curves_are_not_extended():
    with pytest.raises(ValueError, match="from 100 to 400, not to 99"):
        value_at([(400, 70.0), (100, 50.0)], 99)


def test_the_gain_is_the_area_between_the_curves_over_the_logarithm_of_the_rate():
    first, second = [(100, 1.0), (400, 3.0)], [(200, 5.0), (900, 5.0)]
    found = average_gain(first, second)
    assert (found.low, found.high) == (200, 400)
    assert found.difference == pytest.approx(5.0 - 2.5)  # the first rises from 2 to 3 there
    assert average_gain(second, first).difference == pytest.approx(-2.5)
    bend = [(100, 1.0), (200, 11.0), (400, 3.0), (800, 3.0)]
    assert average_gain([(100, 1.0), (800, 1.0)], bend).difference == pytest.approx((5 + 6 + 2) / 3)
    assert average_gain([(100, 1.0), (200, 2.0)], [(200, 4.0), (400, 5.0)]).difference == 2.0


def test_curves_without_a_common_rate_are_refused():
    with pytest.raises(ValueError, match="no rate in common: one starts at 3, one ends at 2"):
        average_gain([(1, 0.0), (2, 0.0)], [(3, 0.0), (4, 0.0)])


@pytest.mark.parametrize("method", ["pchip", "akima", "cubic"])
def test_bd_rate_of_a_curve_moved_by_a_fifth_is_a_fifth(method):
    anchor = [(100, 60.0), (200, 66.0), (400, 69.0), (800, 70.0)]
    found = bd_rate(anchor, [(0.8 * rate, value) for rate, value in reversed(anchor)], method=method)
    assert found.percent == pytest.approx(-20, abs=1e-6)
    assert (found.low, found.high, found.method) == (60, 70, method)


def test_bd_rate_is_taken_over_common_values_only():
    """In log-rate, two straight lines that are apart by a factor of 2 where both are."""
    line = [(100 * 4**share, 60.0 + 10 * share) for share in (0, 0.25, 0.5, 1)]
    found = bd_rate(line, [(4 * rate, value + 5) for rate, value in line])
    assert (found.low, found.high) == (65, 70)
    assert found.percent == pytest.approx(100, abs=1e-6)


def test_a_point_that_another_beats_with_fewer_bytes_counts_for_nothing():
    anchor, test = ([(first * 4**share, 60.0 + 10 * share) for share in (0, 0.25, 0.5, 1)] for first in (100, 50))
    found = bd_rate([*anchor, (500, 69.0)], [(120, 60.0), *test])
    assert (found.percent, found.left_out) == (pytest.approx(-50, abs=1e-6), 2)
    assert bd_rate(anchor, test).left_out == 0


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ([71.0, 75.0, 78.0, 80.0], "no value in common: one starts at 71, one ends at 70"),
        ([61.0, 61.0, 61.0, 61.0], r"those of the test curve do not: its best point is \(100, 61.0\)"),
        ([61.0, 65.0, 69.0], "4 points or more, these have 4 and 3"),
    ],
)
def test_curves_that_bd_rate_cannot_compare_are_refused(test, message):
    anchor, *others = (
        [(100 * 2**place, value) for place, value in enumerate(values)] for values in ([60.0, 64.0, 67.0, 70.0], test)
    )
    with pytest.raises(ValueError, match=message):
        bd_rate(anchor, *others)


def test_bd_rate_without_its_package_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bjontegaard", None)
    with pytest.raises(ImportError, match=r"comneck_hf\[eval\]"):
        bd_rate([(1, 1.0), (2, 2.0)], [(1, 1.0), (2, 2.0)])
