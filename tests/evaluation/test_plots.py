import numpy as np
import pytest
from PIL import Image

from comneck_hf.evaluation.plots import plot_curves, save_label_figure


PICTURES = [("one", Image.new("RGB", (8, 8), (250, 10, 20))), ("two", Image.new("RGB", (8, 8), (10, 240, 20)))]
LABELS = [("one", [("cup", 0.7), ("cat", 0.2)]), ("two", [("cat", 0.4), ("cup", 0.35)])]


def colors(path) -> set[tuple[int, ...]]:
    return {tuple(color) for color in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).tolist()}


def test_the_label_figure_shows_every_picture(tmp_path):
    path = tmp_path / "figure.png"
    save_label_figure(path, pictures=PICTURES, labels=LABELS, title="Two")
    assert {(250, 10, 20), (10, 240, 20)} <= colors(path)
    width, height = Image.open(path).size
    assert (width, height) == (864, 720)


@pytest.mark.parametrize(("pictures", "labels"), [(PICTURES[:1], LABELS), ([], [])])
def test_the_label_figure_wants_a_chart_for_every_picture(tmp_path, pictures, labels):
    with pytest.raises(ValueError, match="as many pictures as label charts"):
        save_label_figure(tmp_path / "figure.png", pictures=pictures, labels=labels, title="")


def curve(name: str, **results: list[float]) -> dict[str, object]:
    return {"name": name, "results": results}


def test_every_system_is_a_curve_and_uncoded_pictures_a_line(tmp_path):
    path = tmp_path / "accuracy.png"
    interval = [[48.0, 52.0], [58.0, 63.0]]
    first = curve("d1", bytes=[150, 300], bpp=[0.1, 0.2], top1=[50.0, 60.0], top1_interval=interval)
    second = curve("d2", bytes=[140, 310], bpp=[0.1, 0.2], top1=[55.0, 64.0])
    plot_curves({"zero-shot": ([curve("original", top1=[70.0]), first, second], "top1")}, path)
    assert {(31, 119, 180), (255, 127, 14), (0, 0, 0)} <= colors(path)  # matplotlib's first two, and the original's
    size = Image.open(path).size
    plot_curves({"one": ([first], "top1"), "two": ([second], "top1")}, path, rate="bpp")
    assert Image.open(path).size == (2 * size[0], size[1])
    assert {(31, 119, 180), (255, 127, 14)} <= colors(path)  # a system has one color in all panels
    plot_curves({"one": ([first], "top1"), "two": ([first], "bpp")}, path)
    assert (255, 127, 14) not in colors(path)


def test_systems_at_one_rate_have_a_row_each(tmp_path):
    path = tmp_path / "rows.png"
    first = curve("progressive", bytes=[300.0], top1=[60.0], top1_interval=[[58.0, 63.0]])
    systems = [curve("original", top1=[70.0]), first, curve("fresh", bytes=[300.0], top1=[55.0])]
    plot_curves({"ablation": (systems, "top1")}, path)
    rows, columns = np.nonzero((np.asarray(Image.open(path).convert("RGB")) == (31, 119, 180)).all(-1))
    assert columns[rows < np.median(rows)].mean() > columns[rows > np.median(rows)].mean() + 50  # 60 is right of 55
    systems[2] = curve("fresh", bytes=[200.0], top1=[55.0])
    plot_curves({"curves": (systems, "top1")}, path)
    assert (255, 127, 14) in colors(path)


@pytest.mark.parametrize(
    ("value", "rate", "message"),
    [("top2", "bytes", r"No system of 'one' has 'top2'; they have \['bytes', 'top1'\]"), ("top1", "kB", "`rate`")],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, value, rate, message):
    with pytest.raises(ValueError, match=message):
        plot_curves({"one": ([curve("d1", bytes=[1.0], top1=[2.0])], value)}, tmp_path / "figure.png", rate=rate)
