"""Bootstrap intervals over pictures: of means, and of the average saving between two curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from .curves import BdRate, Curve, Gain, average_gain, bd_rate


# Per picture the total of what was measured and how often it was, by the name of the quantity: `(2, pictures)` each
Columns = Mapping[str, np.ndarray]

_PERCENTILES = (2.5, 97.5)
_COMPARED = 90.0  # percent of the resamples that an interval of a comparison needs


def mean_of(column: np.ndarray) -> float:
    """The mean of a column `(2, pictures)`: the sum of its totals over the sum of its counts."""
    return float(column[0].sum() / column[1].sum())


def resample(pictures: int, *, count: int, seed: int = 0) -> np.ndarray:
    """How often each picture is drawn in each resample: `(count, pictures)`, the same for the same arguments."""
    return np.random.default_rng(seed).multinomial(pictures, np.full(pictures, 1 / pictures), size=count)


def bootstrap_interval(column: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of `mean_of` over resampled pictures (Efron, 1979).

    Args:
        column: As for `mean_of`.
        resamples: Sets of pictures that are drawn.
        seed: Of the draws.
    """
    column = column[:, column[1] > 0]
    totals, counts = (resample(column.shape[1], count=resamples, seed=seed) @ column.T).T
    return percentile_interval(totals / counts)


def percentile_interval(drawn: np.ndarray | list[float]) -> tuple[float, float]:
    """95 % interval of numbers that were computed from resampled pictures."""
    low, high = np.percentile(drawn, _PERCENTILES)
    return float(low), float(high)


def saving(
    anchor: Sequence[Columns],
    test: Sequence[Columns],
    value: str,
    *,
    rate: str = "bytes",
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """BD-rate of a curve against another, with its 95 % bootstrap interval over pictures.

    Args:
        anchor, test: The points of the curves, with the columns `rate` and `value`, over the same pictures.
        value: The quantity that grows with the rate.
        rate: What is saved, `"bytes"` or `"tokens"`.
        resamples, seed: As in `bootstrap_interval`. The same pictures are drawn for all points; those without a value
            are left out.

    Returns:
        The fields of [`BdRate`], the `interval` of its percentage (`None` where fewer than 90 % of the resamples have
        one) and `resamples_compared`, the percentage of resamples whose curves could be compared.

    Raises:
        ImportError: Without the extra `eval`.
        ValueError: If the curves cannot be compared, or are not of the same pictures.
    """
    return _compare(bd_rate, "percent", anchor, test, (rate, value), resamples, seed)


def gain(
    anchor: Sequence[Columns],
    test: Sequence[Columns],
    value: str,
    *,
    rate: str = "bytes",
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`average_gain` of a curve over another at equal rates, with the interval of its `difference`; as `saving`."""
    return _compare(average_gain, "difference", anchor, test, (rate, value), resamples, seed)


def _compare(
    compare: Callable[[Curve, Curve], BdRate | Gain],
    number: str,
    anchor: Sequence[Columns],
    test: Sequence[Columns],
    names: tuple[str, str],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """`names` are those of the columns with rates and values."""
    sizes = {point[names[0]].shape[1] for point in (*anchor, *test)}
    if len(sizes) != 1:
        raise ValueError(f"Curves are compared over the same pictures, these have {sorted(sizes)} pictures.")
    asked = np.all([point[names[1]][1] > 0 for point in (*anchor, *test)], axis=0)
    anchor, test = ([{name: point[name][:, asked] for name in names} for point in curve] for curve in (anchor, test))
    found = compare(_curve(anchor, names), _curve(test, names))
    drawn = []
    for weights in resample(int(asked.sum()), count=resamples, seed=seed):
        try:
            drawn.append(getattr(compare(_curve(anchor, names, weights), _curve(test, names, weights)), number))
        except ValueError:
            continue  # of few pictures, the curves of some draws have nothing in common
    share = 100 * len(drawn) / resamples
    interval = list(percentile_interval(drawn)) if share >= _COMPARED else None
    return {**asdict(found), "interval": interval, "resamples_compared": share}


def _curve(points: Sequence[Columns], names: tuple[str, str], weights: np.ndarray | float = 1.0) -> Curve:
    rate, value = names
    return [(mean_of(point[rate] * weights), mean_of(point[value] * weights)) for point in points]


__all__ = ["Columns", "bootstrap_interval", "gain", "mean_of", "percentile_interval", "resample", "saving"]
