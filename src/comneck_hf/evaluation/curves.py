"""Curves over the rate, compared at equal bytes."""

from collections.abc import Mapping, Sequence

import numpy as np


__all__ = ["common_rates", "value_at", "values_at_equal_bytes"]

Curve = Sequence[tuple[float, float]]


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


def common_rates(curves: Mapping[str, Curve], *, count: int = 5) -> list[float]:
    """Rates that all curves cover, evenly spaced in the logarithm.

    Raises:
        ValueError: If there is none.
    """
    low = max(min(rate for rate, _ in curve) for curve in curves.values())
    high = min(max(rate for rate, _ in curve) for curve in curves.values())
    if low > high:
        raise ValueError(
            f"The curves {sorted(curves)} have no rate in common: one starts at {low:.4g}, one ends at {high:.4g}."
        )
    return [float(rate) for rate in np.geomspace(low, high, count).clip(low, high)]


def values_at_equal_bytes(curves: Mapping[str, Curve], *, count: int = 5) -> list[dict[str, float]]:
    """The values of all curves at rates that all of them cover: `{"rate": ..., NAME: ...}` each."""
    return [
        {"rate": rate, **{name: value_at(curve, rate) for name, curve in curves.items()}}
        for rate in common_rates(curves, count=count)
    ]
