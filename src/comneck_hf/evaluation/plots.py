"""Figures, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image


__all__ = [
    "plot_curves",
    "plot_error_maps",
    "plot_speedups",
    "plot_strides",
    "plot_tasks",
    "save_label_figure",
    "save_region_figure",
    "task_title",
]

_RATE_NAMES = {
    "bytes": "bytes per picture, whole files",
    "bpp": "bits per pixel, whole files",
    "tokens": "visual tokens per picture",
}
_VALUE_NAMES = {
    "top1": "zero-shot accuracy in %",
    "top5": "zero-shot top-5 accuracy in %",
    "accuracy": "right answers in %",
    "psnr-rgb": "PSNR in dB",
    "ms-ssim-rgb": "MS-SSIM",
}
_BAR_COLOR, _HIGHLIGHT_COLOR = "#9db7d5", "#1f5a96"


def save_label_figure(
    path: str | Path,
    *,
    pictures: Sequence[tuple[str, Image.Image]],
    labels: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    title: str,
) -> None:
    """Draws pictures in a row and bar charts of labels below them.

    Args:
        path: Where to write; the suffix chooses the format (`.png`).
        pictures: Captions and pictures, as many as there are charts.
        labels: Captions and label probabilities (0 to 1), the most probable label first.
        title: One line above everything.

    Raises:
        ValueError: If there are not as many pictures as charts, or none.
    """
    if not pictures or len(pictures) != len(labels):
        raise ValueError(f"Give as many pictures as label charts, got {len(pictures)} and {len(labels)}.")
    figure = Figure(figsize=(3.6 * len(pictures), 6.0), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(2, len(pictures), height_ratios=(3, 1.5), squeeze=False)
    for axis, (caption, picture) in zip(axes[0], pictures, strict=True):
        axis.imshow(np.asarray(picture), interpolation="nearest")
        axis.set_title(caption, fontsize=9)
        axis.set_axis_off()
    for axis, (caption, bars) in zip(axes[1], labels, strict=True):
        names = [name for name, _ in bars]
        colors = [_HIGHLIGHT_COLOR] + [_BAR_COLOR] * (len(bars) - 1)
        axis.barh(range(len(bars)), [probability for _, probability in bars], color=colors)
        for row, (name, probability) in enumerate(bars):
            inside = {"x": probability - 0.02, "ha": "right", "color": "white" if row == 0 else "black"}
            beside = {"x": probability + 0.02, "ha": "left"}
            place = inside if probability > 0.5 else beside
            axis.text(y=row, s=f"{name}  {100 * probability:.1f} %", va="center", fontsize=9, **place)
        axis.set(xlim=(0, 1.0), yticks=[], xticks=(0, 0.5, 1), ylim=(len(names) - 0.4, -0.6))
        axis.set_title(caption, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def plot_curves(
    panels: Mapping[str, tuple[Sequence[Mapping[str, Any]], str]], path: str | Path, *, rate: str = "bytes"
) -> None:
    """Draws values of systems over the rate, with intervals where there are any; uncoded pictures are a line.

    Systems that were all measured at one rate, such as necks for one codec, get a row each instead.

    Args:
        panels: By title, `systems` as `summarize` gives them, and the value that is drawn.
        path: Where to write; the suffix chooses the format.
        rate: `"bytes"`, `"bpp"` or `"tokens"`.

    Raises:
        ValueError: If the rate is unknown or no system has the value.
    """
    if rate not in _RATE_NAMES:
        raise ValueError(f"`rate` must be one of {sorted(_RATE_NAMES)}, got {rate!r}.")
    figure = Figure(figsize=(6.2 * len(panels), 4.6), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    coded = [system["name"] for systems, _ in panels.values() for system in systems if rate in system["results"]]
    colors = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(coded))}  # the same in all panels
    for axis, (title, (systems, value)) in zip(axes, panels.items(), strict=True):
        drawn = [system for system in systems if value in system["results"]]
        if not drawn:
            known = sorted(set().union(*(system["results"] for system in systems)))
            raise ValueError(f"No system of {title!r} has {value!r}; they have {known}.")
        axis.set_title(title, fontsize=10)
        if _have_one_rate(drawn, rate):
            _draw_rows(axis, drawn, value, rate)
            continue
        for system in drawn:
            _draw_system(axis, system, value, rate, colors)
        axis.set(xscale="log", xlabel=_RATE_NAMES[rate], ylabel=_VALUE_NAMES.get(value, value))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:,g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.savefig(path)


def task_title(task: str, found: Mapping[str, Any]) -> str:
    """What a task asked about: `found` is what `summarize` found, with the name of its `data`."""
    unit = "episodes" if task.startswith("few-shot") else "pictures"
    return f"{task}, {found['pictures']:,} {unit} of {found['data']}"


def plot_tasks(tasks: Mapping[str, Mapping[str, Any]], path: str | Path, *, rate: str = "bytes") -> None:
    """`plot_curves` with a panel for the value that counts in each task.

    Args:
        tasks: As `summarize` gives them, with the names of their `data`.
        path, rate: As for `plot_curves`.
    """
    panels = {task_title(name, found): (found["systems"], found["value"]) for name, found in tasks.items()}
    plot_curves(panels, path, rate=rate)


def _have_one_rate(systems: Sequence[Mapping[str, Any]], rate: str) -> bool:
    rates = [system["results"][rate] for system in systems if rate in system["results"]]
    return len(rates) > 1 and len({round(number, 3) for numbers in rates for number in numbers}) == 1


def _draw_rows(axis: Axes, systems: Sequence[Mapping[str, Any]], value: str, rate: str) -> None:
    """One row per system, its value with its interval; uncoded pictures are a line."""
    rows = [system for system in systems if rate in system["results"]]
    for system in systems:
        if rate not in system["results"]:
            axis.axvline(system["results"][value][0], color="black", lw=1, ls="--", label=f"{system['name']} pictures")
            axis.legend(fontsize=8)
    values = np.array([system["results"][value][0] for system in rows])
    bounds = [system["results"].get(f"{value}_interval", [system["results"][value] * 2])[0] for system in rows]
    low, high = np.array(bounds).T
    places = np.arange(len(rows))
    axis.errorbar(values, places, xerr=np.stack([values - low, high - values]), fmt="o", ms=5, capsize=3)
    axis.set(yticks=places, yticklabels=[system["name"] for system in rows], ylim=(len(rows) - 0.5, -0.5))
    number = rows[0]["results"][rate][0]
    axis.set_xlabel(f"{_VALUE_NAMES.get(value, value)}, all at {number:,.4g} {rate}")
    axis.grid(alpha=0.3, axis="x")


def _draw_system(axis: Axes, system: Mapping[str, Any], value: str, rate: str, colors: Mapping[str, str]) -> None:
    name, results = system["name"], system["results"]
    if rate not in results:
        axis.axhline(results[value][0], color="black", lw=1, ls="--", label=f"{name} pictures")
        return
    measured = [place for place, number in enumerate(results[value]) if number is not None]
    values = np.array([results[value][place] for place in measured])
    errors = None
    if f"{value}_interval" in results:
        low, high = np.array([results[f"{value}_interval"][place] for place in measured]).T
        errors = np.stack([values - low, high - values])
    rates = np.array([results[rate][place] for place in measured])
    axis.errorbar(rates, values, yerr=errors, fmt="o-", ms=4, capsize=2, label=name, color=colors[name])


def plot_strides(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draws right answers over the stride of pooled visual tokens, one panel per task, with intervals.

    Args:
        rows: Each with `task`, `trained` (a curve), `pool_stride`, and `accuracy` and `interval` in percent.
        path: Where to write; the suffix chooses the format.
    """
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(5.4 * len(tasks), 4.2), dpi=120, layout="constrained")
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for name in dict.fromkeys(row["trained"] for row in rows):
            curve = [row for row in rows if (row["task"], row["trained"]) == (task, name)]
            values = np.array([row["accuracy"] for row in curve])
            low, high = np.array([row["interval"] for row in curve]).T
            strides = np.array([row["pool_stride"] for row in curve])
            errors = np.stack([values - low, high - values])
            axis.errorbar(strides, values, yerr=errors, fmt="o-", ms=4, capsize=2, label=name)
        axis.set(title=task, xlabel="visual tokens that become one", ylabel=_VALUE_NAMES["accuracy"])
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path)


def plot_speedups(rows: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Draws how much faster pooling makes prefill and training, over the paper's compression ratio.

    Args:
        rows: Of `measure_pooling`.
        path: Where to write; the suffix chooses the format.
    """
    figure = Figure(figsize=(6.2, 4.4), dpi=120, layout="constrained")
    axis = figure.subplots()
    for value, mark, name in (
        ("token_layers_ratio", "k--", "tokens times layers, with text"),
        ("prefill_speedup", "o-", "prefill"),
        ("training_speedup", "s-", "training step"),
    ):
        points = sorted((row["compression_ratio"], row[value]) for row in rows)
        axis.plot(*zip(*points, strict=True), mark, ms=4, label=name)
    for row in rows:
        place = (row["compression_ratio"], row["prefill_speedup"])
        text = f"K={row['pool_layer']:.0f}, S={row['pool_stride']:.0f}"
        axis.annotate(text, place, textcoords="offset points", xytext=(4, -10), fontsize=7)
    axis.set(xlabel="compression ratio of visual tokens", ylabel="times as fast as without pooling")
    axis.margins(x=0.1)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path)


def save_region_figure(
    path: str | Path, *, pictures: Sequence[tuple[str, Image.Image]], region: np.ndarray, title: str
) -> None:
    """Draws pictures with the outline of a region, and the region enlarged below each.

    Args:
        path: Where to write; the suffix chooses the format.
        pictures: Titles and pictures of one size.
        region: Which pixels belong to the region, bool `(height, width)`, at least one.
        title: Above all.
    """
    figure = Figure(figsize=(3.6 * len(pictures), 7.4), dpi=120, layout="constrained")
    figure.suptitle(title)
    rows, columns = np.nonzero(region)
    around = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    for (name, picture), (whole, detail) in zip(pictures, figure.subplots(2, len(pictures)).T, strict=True):
        whole.imshow(picture)
        whole.contour(
            np.pad(region, 1).astype(float),
            levels=[0.5],
            colors="yellow",
            linewidths=1,
            extent=(-1.5, region.shape[1] + 0.5, -1.5, region.shape[0] + 0.5),
        )
        whole.set_title(name, fontsize=9)
        detail.imshow(picture.crop(around), interpolation="nearest")
        for axis in (whole, detail):
            axis.set_axis_off()
    figure.savefig(path)


def plot_error_maps(
    path: str | Path,
    *,
    picture: Image.Image,
    maps: Mapping[str, np.ndarray],
    bars: Mapping[str, Mapping[str, Mapping[str, Any]]],
    title: str,
) -> None:
    """Draws where systems reduce the errors of CLIP's tokens: maps of one picture, and means over many.

    Args:
        path: Where to write; the suffix chooses the format.
        picture: That the maps are of.
        maps: By system, decibels of the tokens `(rows, columns)`, positive where errors are smaller.
        bars: By system, what `error_reduction` gives.
        title: Of the means.
    """
    figure = Figure(figsize=(3.0 * (len(maps) + 1), 6.6), dpi=120, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1))
    first, *others = above.subplots(1, len(maps) + 1)
    first.imshow(picture)
    first.set_title("picture", fontsize=9)
    limit = max(float(np.abs(values).max()) for values in maps.values())
    for axis, (name, values) in zip(others, maps.items(), strict=True):
        drawn = axis.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit)
        axis.set_title(name, fontsize=9)
    for axis in (first, *others):
        axis.set_axis_off()
    above.colorbar(drawn, ax=others, label="dB less error", shrink=0.8)
    axis = below.subplots()
    places = {"inside": "on objects", "outside": "around them"}
    for shift, (place, label) in zip((-0.2, 0.2), places.items(), strict=True):
        values = np.array([found[place]["decibel"] for found in bars.values()])
        low, high = np.array([found[place]["interval"] for found in bars.values()]).T
        errors = np.stack([values - low, high - values])
        axis.bar(np.arange(len(bars)) + shift, values, width=0.38, yerr=errors, capsize=3, label=label)
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xticks(range(len(bars)), bars)
    axis.set_ylabel("dB less error than decoded pictures")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=8)
    figure.savefig(path)
