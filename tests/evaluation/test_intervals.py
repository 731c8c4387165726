import numpy as np
import pytest

from comneck_hf.evaluation.intervals import bootstrap_interval, gain, mean_of, resample, saving


def column(values, counts=None) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    return np.stack([values, np.ones(len(values)) if counts is None else np.asarray(counts, dtype=float)])


def test_a_mean_is_all_totals_over_all_counts():
    assert mean_of(column([1, 2, 6], [1, 1, 4])) == 1.5


def test_the_interval_of_a_proportion_is_that_of_the_binomial():
    """500 pictures of which 70 % are right: 1.96 standard errors are 4.0 points."""
    values = 100 * (np.arange(500) < 350)
    low, high = bootstrap_interval(column(values), resamples=4000)
    assert (low, high) == pytest.approx((66.0, 74.0), abs=0.5)
    assert bootstrap_interval(column(values), resamples=4000) == (low, high)
    wide = bootstrap_interval(column(values[::10]), resamples=4000)
    assert wide[1] - wide[0] > 2.5 * (high - low)


def test_every_resample_has_as_many_pictures():
    assert set(resample(7, count=50).sum(1)) == {7}


@pytest.fixture
def curves():
    """Accuracies over bytes of 400 pictures; the second curve has 60 % of the first one's bytes everywhere."""
    random = np.random.default_rng(0)
    ease, sizes = random.uniform(0, 1, 400), random.uniform(80, 120, 400)
    first, second = [], []
    for scale, accuracy in ((1, 0.4), (2, 0.55), (4, 0.65), (8, 0.7)):
        right = column(100 * (ease < accuracy))
        first.append({"bytes": column(scale * sizes), "top1": right})
        second.append({"bytes": column(0.6 * scale * sizes), "top1": right})
    return first, second


def test_a_curve_with_three_fifths_of_the_bytes_saves_two_fifths(curves):
    found = saving(*curves, "top1")
    assert found["percent"] == pytest.approx(-40, abs=1e-6)
    assert found["interval"] == pytest.approx([-40, -40], abs=1e-6)  # the same pictures are drawn for both
    assert found["resamples_compared"] == 100
    assert gain(*curves, "top1")["difference"] > 1
    assert gain(curves[1], curves[0], "top1")["interval"][1] < -1


def test_the_interval_of_a_saving_grows_with_the_noise(curves):
    first, second = curves
    random = np.random.default_rng(1)
    noisy = [
        {**point, "top1": column(100 * (random.uniform(0, 1, 400) < mean_of(point["top1"]) / 100))} for point in second
    ]
    found = saving(first, noisy, "top1")
    low, high = found["interval"]
    assert low < found["percent"] < high
    assert high - low > 5


def test_curves_of_different_pictures_are_refused(curves):
    first, second = curves
    fewer = [{name: values[:, :10] for name, values in point.items()} for point in second]
    with pytest.raises(ValueError, match=r"\[10, 400\] pictures"):
        saving(first, fewer, "top1")


def test_curves_that_cannot_be_compared_are_refused(curves):
    with pytest.raises(ValueError, match="grow with the rate"):
        saving(curves[0], curves[1][:1] * 4, "top1")


def test_pictures_that_nobody_asked_about_change_nothing(curves):
    """Their bytes would count, and a resample of them alone has no accuracy."""
    expected = {compare: compare(*curves, "top1", resamples=50) for compare in (saving, gain)}
    unasked = {"bytes": column([9000.0] * 30), "top1": column([0.0] * 30, [0.0] * 30)}
    padded = [
        [{name: np.concatenate([point[name], unasked[name]], axis=1) for name in unasked} for point in curve]
        for curve in curves
    ]
    for compare, found in expected.items():
        assert compare(*padded, "top1", resamples=50) == found
