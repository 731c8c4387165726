import math

import pytest

from comneck_hf.evaluation.curves import common_rates, value_at, values_at_equal_bytes


def test_values_are_linear_in_the_logarithm_of_the_rate():
    curve = [(400, 70.0), (100, 50.0)]
    assert value_at(curve, 100) == 50
    assert value_at(curve, 400) == 70
    assert value_at(curve, 200) == pytest.approx(60)


def test_curves_are_not_extended():
    with pytest.raises(ValueError, match="from 100 to 400, not to 99"):
        value_at([(400, 70.0), (100, 50.0)], 99)


def test_curves_are_compared_where_all_of_them_are():
    curves = {"a": [(100, 1.0), (400, 3.0)], "b": [(200, 5.0), (900, 5.0)]}
    rates = common_rates(curves, count=3)
    assert rates == pytest.approx([200, math.sqrt(200 * 400), 400])
    rows = values_at_equal_bytes(curves, count=3)
    assert [row["b"] for row in rows] == [5.0] * 3
    assert [row["a"] for row in rows] == pytest.approx([2.0, 2.5, 3.0])


def test_curves_without_a_common_rate_are_refused():
    with pytest.raises(ValueError, match=r"\['a', 'b'\] have no rate in common"):
        common_rates({"a": [(1, 0.0), (2, 0.0)], "b": [(3, 0.0), (4, 0.0)]})
