import numpy as np
import pytest
from PIL import Image

from comneck_hf.evaluation.plots import plot_rate_accuracy, plot_rate_distortion, save_label_figure


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


def test_the_curve_has_a_panel_for_every_data_set(tmp_path):
    curve = [{"quality": q, "bpp": q / 50, "psnr": 20 + q / 5} for q in (5, 20, 60)]
    values = {"pictures": 3, "bpp": 0.4, "psnr": 30.0, "jpeg_curve": curve}
    path = tmp_path / "curve.png"
    plot_rate_distortion({"kodak": values, "other": values}, path, name="ours")
    both = Image.open(path).size
    plot_rate_distortion({"kodak": values}, path, name="ours")
    assert both[0] == 2 * Image.open(path).size[0]
    assert (31, 90, 150) in colors(path)  # the star of the codec


def test_the_accuracies_are_drawn_one_curve_each(tmp_path):
    path = tmp_path / "accuracy.png"
    curves = {"d1": [(300, 60.0), (150, 50.0)], "d2": [(140, 55.0), (310, 64.0)]}
    plot_rate_accuracy(curves, path, original=70.0)
    assert {(31, 119, 180), (255, 127, 14), (0, 0, 0)} <= colors(path)  # matplotlib's first two, and the original's
    plot_rate_accuracy({"d1": curves["d1"]}, path, original=70.0)
    assert (255, 127, 14) not in colors(path)
