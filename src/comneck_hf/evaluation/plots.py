"""Figures, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image


__all__ = ["plot_answers", "plot_rate_accuracy", "plot_rate_distortion", "plot_speedups", "save_label_figure"]

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


def plot_rate_distortion(results: Mapping[str, Mapping[str, object]], path: str | Path, *, name: str) -> None:
    """Draws the codec's point over JPEG's curve, one panel per data set.

    Args:
        results: Per data set, what `measure_rate_distortion` returned.
        path: Where to write; the suffix chooses the format.
        name: The codec, for the legend.
    """
    figure = Figure(figsize=(5.2 * len(results), 4.0), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False)[0]
    for axis, (data, values) in zip(axes, results.items(), strict=True):
        curve = values["jpeg_curve"]
        axis.plot([point["bpp"] for point in curve], [point["psnr"] for point in curve], "o-", label="JPEG", ms=3)
        axis.plot([values["bpp"]], [values["psnr"]], "*", ms=13, color=_HIGHLIGHT_COLOR, label=name)
        axis.set(
            title=f"{data} ({values['pictures']} pictures)",
            xlabel="bits per pixel, whole files",
            ylabel="PSNR in dB (mean)",
            xlim=(0, 4 * values["bpp"]),
        )
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path)


def plot_rate_accuracy(
    curves: Mapping[str, Sequence[tuple[float, float]]], path: str | Path, *, original: float
) -> None:
    """Draws accuracies over bytes, with the accuracy from uncoded pictures as a line.

    Args:
        curves: By name, pairs of bytes per picture and accuracy in percent.
        path: Where to write; the suffix chooses the format.
        original: Accuracy from uncoded pictures in percent.
    """
    figure = Figure(figsize=(6.2, 4.4), dpi=120, layout="constrained")
    axis = figure.subplots()
    axis.axhline(original, color="black", lw=1, ls="--", label="original pictures")
    for name, curve in curves.items():
        rates, values = zip(*sorted(curve), strict=True)
        axis.plot(rates, values, "o-", ms=4, label=name)
    axis.set(xscale="log", xlabel="bytes per picture, whole files", ylabel="zero-shot accuracy in %")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.xaxis.set_minor_formatter("{x:.0f}")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.savefig(path)


def plot_answers(rows: Sequence[Mapping[str, object]], path: str | Path, *, tasks: Mapping[str, str]) -> None:
    """Draws right answers over bytes, one panel per task, with 95 % intervals.

    Args:
        rows: Each with `source`, `scenario`, `bytes_per_picture`, and per task `accuracy` and `interval` in percent;
            the source `"original"` has no bytes and is drawn as a line.
        path: Where to write; the suffix chooses the format.
        tasks: Titles of the panels by the name of the task.
    """
    figure = Figure(figsize=(5.4 * len(tasks), 4.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    curves: dict[str, list[Mapping[str, object]]] = {}
    for row in rows:
        name = row["scenario"] if row["source"] == "latents" else row["source"]
        if name not in ("original", "reconstruction") or row.get("scenario") in (None, "d1"):
            curves.setdefault(str(name), []).append(row)
    for axis, (task, title) in zip(axes, tasks.items(), strict=True):
        for name, curve in curves.items():
            if name == "original":
                axis.axhline(curve[0][task]["accuracy"], color="black", lw=1, ls="--", label="original pictures")
                continue
            curve = sorted(curve, key=lambda row: row["bytes_per_picture"])
            values = np.array([row[task]["accuracy"] for row in curve])
            low, high = np.array([row[task]["interval"] for row in curve]).T
            rates = [row["bytes_per_picture"] for row in curve]
            axis.errorbar(rates, values, yerr=(values - low, high - values), fmt="o-", ms=4, capsize=2, label=name)
        axis.set(xscale="log", title=title, xlabel="bytes per picture, whole files", ylabel="right answers in %")
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.xaxis.set_minor_formatter("{x:.0f}")
        axis.grid(alpha=0.3, which="both")
    axes[-1].legend()
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
