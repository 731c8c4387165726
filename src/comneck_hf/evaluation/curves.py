"""Curves over the rate, compared at equal bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


__all__ = ["BdRate", "Gain", "average_gain", "bd_rate", "value_at"]

Curve = Sequence[tuple[float, float]]
MIN_POINTS = 4  # of curves whose rates are compared


def value_at(curve: Curve, rate: float) -> float:
    """The value of a curve at a rate, linear in the logarithm of the rate between its points.

    Args:
        curve: Pairs of a positive rate (bytes or bits per pixel) and a value, in any order.
        rate: Within the rates of the curve.

    Raises:
        ValueError: If the rate lies outside: curves are not extended.
    """
    rates, values = np.array(sorted(curve)).T
    if not rates[0] <= rate <= rates[-1]:
        raise ValueError(f"The curve reaches from {rates[0]:.4g} to {rates[-1]:.4g}, not to {rate:.4g}.")
    return float(np.interp(np.log(rate), np.log(rates), values))


@dataclass(frozen=True)
class Gain:
    """Average difference of values at equal rates.

    Attributes:
        difference: Positive where the tested curve is above.
        low, high: Rates between which both curves lie, over whose logarithm it is averaged.
    """

    difference: float
    low: float
    high: float


def average_gain(anchor: Curve, test: Curve) -> Gain:
    """How far `test` is above `anchor` at equal rates, on average; both as in `value_at`.

    Raises:
        ValueError: If the curves have no rate in common.
    """
    low = max(min(rate for rate, _ in curve) for curve in (anchor, test))
    high = min(max(rate for rate, _ in curve) for curve in (anchor, test))
    if low > high:
        raise ValueError(f"The curves have no rate in common: one starts at {low:.4g}, one ends at {high:.4g}.")
    rates = sorted({low, high, *(rate for rate, _ in (*anchor, *test) if low < rate < high)})
    differences = [value_at(test, rate) - value_at(anchor, rate) for rate in rates]
    if low == high:
        return Gain(differences[0], low, high)
    area = np.diff(np.log(rates)) @ (np.array(differences[:-1]) + differences[1:]) / 2
    return Gain(float(area / np.log(high / low)), low, high)


@dataclass(frozen=True)
class BdRate:
    """Bjontegaard's average difference of rates at equal values.

    Attributes:
        percent: Negative where the tested curve needs fewer bytes.
        low, high: Values between which both curves lie, over which it is averaged.
        method: How the curves were interpolated.
        left_out: Points of both curves that others of theirs reach or exceed with fewer bytes.
    """

    percent: float
    low: float
    high: float
    method: str
    left_out: int


def bd_rate(anchor: Curve, test: Curve, *, method: str = "pchip") -> BdRate:
    """How many more bytes `test` needs than `anchor` for the same value, on average (Bjontegaard, VCEG-M33).

    Measured accuracies do not always grow with the rate. Of each curve its monotone envelope is taken: a point whose
    value another reaches with fewer bytes is left out, since nobody would use it.

    Args:
        anchor, test: Four pairs or more of a rate and a value (accuracy, PSNR), fewer say too little of a curve;
            envelopes of two points or more, four for `"cubic"`.
        method: `"pchip"`, `"akima"` or `"cubic"`, over the logarithm of the rate.

    Raises:
        ImportError: Without the extra `eval`.
        ValueError: If a curve has fewer than four points, its envelope a single one, or the curves have no value in
            common.
    """
    try:
        import bjontegaard
    except ImportError as error:
        raise ImportError('BD-rate needs an extra: pip install "comneck_hf[eval]"') from error
    if min(len(anchor), len(test)) < MIN_POINTS:
        raise ValueError(
            f"BD-rate needs curves of {MIN_POINTS} points or more, these have {len(anchor)} and {len(test)}. Measure "
            "more rates."
        )
    envelopes = [_envelope(curve) for curve in (anchor, test)]
    for name, envelope in zip(("anchor", "test"), envelopes, strict=True):
        if len(envelope) < 2:
            raise ValueError(
                f"BD-rate needs values that grow with the rate, those of the {name} curve do not: its best point is "
                f"{envelope[0]}. Measure more pictures or other rates."
            )
    (anchor_rates, anchor_values), (test_rates, test_values) = (np.array(envelope).T for envelope in envelopes)
    low, high = max(anchor_values[0], test_values[0]), min(anchor_values[-1], test_values[-1])
    if low >= high:
        raise ValueError(
            f"The curves have no value in common: one starts at {low:.4g}, one ends at {high:.4g}. Add rates."
        )
    percent = bjontegaard.bd_rate(
        anchor_rates,
        anchor_values,
        test_rates,
        test_values,
        method=method,
        require_matching_points=False,
        min_overlap=0,
    )
    left_out = len(anchor) + len(test) - sum(map(len, envelopes))
    return BdRate(percent=float(percent), low=float(low), high=float(high), method=method, left_out=left_out)


def _envelope(curve: Curve) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    for rate, value in sorted(curve):
        if not points or value > points[-1][1]:
            points.append((rate, value))
    return points
