"""Plots: the look of the published ones, from one reused figure."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from timemaster.metrics.classification import ACCURACY
from timemaster.metrics.evaluation import Trivial
from timemaster.results.plot_results import comparison_png
from timemaster.results.table import Result
from timemaster.series import plot
from timemaster.series.plot import PlotStyle, draw_many, draw_png
from timemaster.series.splits import Series
from timemaster.types import InputError

matplotlib.use("Agg")
STYLE = PlotStyle(title="Complete Signal", x_label="Timestamp", y_label="Value")
BARE = PlotStyle(width=112, height=112, line_width=3.0, axes=False)

spec = importlib.util.spec_from_file_location("plot_speed", Path(__file__).parents[2] / "benchmarks/plot_speed.py")
assert spec is not None
assert spec.loader is not None
plot_speed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot_speed)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)


def scaled(index: int, factor: float) -> Series:
    return Series([[factor * value for value in plot_speed.step_series(index).values[0]]], "", index)


# The factors give y tick labels of different widths ("5", "-0.5", "-0.02", "1000"), so the layout changes as well.
@pytest.mark.parametrize("factor", [1.0, 0.3, 0.01, 300.0, -1.0])
def test_reused_figure_draws_what_a_new_laid_out_figure_draws(factor: float):
    for index in range(4):
        series = scaled(index, factor)
        ours, theirs = pixels(draw_png(series, STYLE)), pixels(plot_speed.draw_old_way(series))
        assert ours.shape == theirs.shape
        assert ours.shape[0] == 230
        assert np.abs(ours - theirs).mean() < 0.01  # of 255: the same picture


def laid_out(series: Series, style: PlotStyle) -> np.ndarray:
    """The plot from a figure of its own, laid out and cropped by matplotlib."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(style.width / plot.DPI, style.height / plot.DPI))
    lines = [axes.plot(channel, linewidth=style.line_width)[0] for channel in series.values]
    axes.set_title(style.title, fontsize=style.title_size)
    axes.set_xlabel(style.x_label, fontsize=style.label_size)
    axes.set_ylabel(style.y_label, fontsize=style.label_size)
    plt.xticks(fontsize=style.tick_size)
    plt.yticks(fontsize=style.tick_size)
    if style.channels:
        axes.legend(lines, style.channels, loc="upper right", fontsize=style.tick_size)
    plt.tight_layout()
    file = io.BytesIO()
    plt.savefig(file, format="png", bbox_inches="tight", pad_inches=style.margin / plot.DPI)
    plt.close(figure)
    return pixels(file.getvalue())


OFFSETS = {  # factor and level: what stands over the y axis
    "none": (1.0, 0.0),
    "1e-6": (1e-6, 0.0),
    "1e7": (1e7, 0.0),
    "+1e3": (1e-3, 1000.0),
    "+1.23456e5": (1e-3, 123456.0),
}
STYLES = {
    "title": STYLE,
    "no title": PlotStyle(x_label="Timestamp", y_label="Value"),
    "small": PlotStyle(title="T", title_size=6.0),
    "wide": PlotStyle(title="A title so wide that it touches only a wide text over the axis", title_size=9.0),
}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_the_text_over_the_axis_is_neither_kept_nor_cut(style: PlotStyle):
    shape = plot_speed.step_series(0).values[0]
    series = {  # most with equally wide tick labels
        name: Series([[factor * value + level for value in shape]], "", 0) for name, (factor, level) in OFFSETS.items()
    }
    fresh = {name: laid_out(item, style) for name, item in series.items()}
    for pair in itertools.permutations(OFFSETS, 2):
        plot._canvas.cache_clear()
        for name in pair:
            ours = pixels(draw_png(series[name], style))
            assert ours.shape == fresh[name].shape, f"{name} of {pair}"
            assert np.abs(ours - fresh[name]).mean() < 0.01, f"{name} of {pair}"


def test_order_of_drawing_does_not_matter_without_a_title_either():
    # Without a title the highest tick label decides where the picture ends: at 1.0 it stands at the frame's edge.
    low, high = Series([[0.0, 0.91]], "", 0), Series([[0.0, 1.0], [0.0, 0.96]], "", 0)
    series = [Series([channel], "", 0) for channel in (*low.values, *high.values)]
    plot._canvas.cache_clear()
    first = [draw_png(item, PlotStyle()) for item in series]
    plot._canvas.cache_clear()
    assert [draw_png(item, PlotStyle()) for item in series[::-1]] == first[::-1]
    for item, png in zip(series, first, strict=True):
        assert np.abs(pixels(png) - laid_out(item, PlotStyle())).mean() < 0.01


def test_no_more_than_some_layouts_are_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plot, "MAX_LAYOUTS", 2)
    plot._canvas.cache_clear()
    series = [scaled(index, factor) for index, factor in enumerate((1.0, 0.3, 0.01, 300.0) * 2)]
    first = [draw_png(item, STYLE) for item in series]
    assert len(plot._canvas(STYLE, 1, plot_speed.LENGTH).layouts) == 2
    plot._canvas.cache_clear()
    assert [draw_png(item, STYLE) for item in series[::-1]] == first[::-1]


@pytest.mark.parametrize("title", ["", "Acceleration"])
def test_a_legend_names_the_channels(title: str):
    style = PlotStyle(title=title, x_label="Sample", y_label="g", channels=("x", "y", "z"))
    for factor in (1.0, 0.01, 1e-6):
        channels = [scaled(index, factor).values[0] for index in range(3)]
        item = Series(channels, "", 0)
        ours = pixels(draw_png(item, style))
        assert np.abs(ours - laid_out(item, style)).mean() < 0.01
        plain = pixels(draw_png(item, replace(style, channels=())))
        assert ours.shape == plain.shape  # the legend takes no room
        where = np.argwhere((ours != plain).any(-1))
        assert (where[:, 1] > 0.8 * ours.shape[1]).all()
        assert len(where) > 100


def test_a_legend_lies_over_the_lines():
    style = PlotStyle(channels=("a", "b"))
    rising, falling = ([float(i) for i in range(100)] for _ in range(2))
    item = Series([rising, falling], "", 0)  # both end in the upper right corner
    assert np.abs(pixels(draw_png(item, style)) - laid_out(item, style)).mean() < 0.01


def test_bare_lines_may_have_a_legend():
    item = Series([[0.0, 1.0], [1.0, 0.0]], "", 0)
    with_legend = pixels(draw_png(item, replace(BARE, channels=("x", "y"))))
    assert with_legend.shape == (112, 112, 3)
    assert (with_legend != pixels(draw_png(item, BARE))).any()


@pytest.mark.parametrize("num_channels", [1, 3])
def test_channels_and_their_names_are_as_many(num_channels: int):
    with pytest.raises(InputError, match=f"Series 17 has {num_channels} channels; the plot style names 2: x, y"):
        draw_png(Series([[0.0, 1.0]] * num_channels, "", 17), replace(BARE, channels=("x", "y")))


def test_order_of_drawing_does_not_matter():
    narrow, wide = scaled(0, 1.0), scaled(1, 0.01)
    first = [draw_png(narrow, STYLE), draw_png(wide, STYLE)]
    plot._canvas.cache_clear()
    second = [draw_png(wide, STYLE), draw_png(narrow, STYLE)]
    assert first == second[::-1]


def test_bare_style_is_the_line_alone():
    image = pixels(draw_png(Series([[0.0, 1.0, 0.0, 2.0]], "", 0), BARE))
    assert image.shape == (112, 112, 3)
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (edge == 255).all()  # no frame, no ticks
    assert 0.02 < (image.sum(-1) < 700).mean() < 0.3  # but a line


def test_each_channel_is_a_line():
    one = pixels(draw_png(Series([[0.0, 1.0]], "", 0), BARE))
    two = pixels(draw_png(Series([[0.0, 1.0], [1.0, 0.0]], "", 0), BARE))
    assert len(np.unique(one.reshape(-1, 3), axis=0)) < len(np.unique(two.reshape(-1, 3), axis=0))


def test_rows_keep_channels_apart_on_one_scale():
    style = PlotStyle(width=112, height=112, line_width=2.0, axes=False, rows=True)
    wave = [math.sin(i / 5) for i in range(100)]
    shown = pixels(draw_png(Series([wave, [v / 4 for v in wave], [0.0] * 100], "", 0), style)) < 250
    inked = np.flatnonzero(shown.any(axis=(1, 2)))
    heights = [int(((inked >= top) & (inked < top + 112 / 3)).sum()) for top in (0, 112 / 3, 224 / 3)]
    assert heights[0] > 34  # a whole row
    assert 34 / 4 <= heights[1] <= 34 / 4 + 7  # a quarter of it, and the lines' own widths
    assert heights[2] <= 4
    assert abs(np.median(inked[inked >= 75]) - 112 * 5 / 6) <= 2  # zero is in the middle
    assert pixels(draw_png(Series([[0.0] * 9] * 2, "", 0), style)).shape == (112, 112, 3)
    for wrong in ({"axes": True}, {"y_range": (-1.0, 1.0)}):
        with pytest.raises(InputError, match="rows=True is for bare lines"):
            replace(style, **wrong)


def test_constant_series_can_be_drawn():
    assert pixels(draw_png(Series([[1.0] * 50], "", 0), STYLE)).shape[0] == 230


@pytest.mark.parametrize("values", [[[]], [[1.0, float("nan")]], [[1.0, 2.0], [1.0]]])
def test_undrawable_series_are_named(values: list[list[float]]):
    with pytest.raises(InputError, match="Series 17"):
        draw_png(Series(values, "", 17), STYLE)


def test_processes_draw_the_same_in_the_same_order(monkeypatch: pytest.MonkeyPatch):
    series = [scaled(i, 1.0) for i in range(24)]
    here = draw_many(series, STYLE, num_workers=1)
    monkeypatch.setattr(plot, "MIN_PARALLEL", 0)
    assert draw_many(series, STYLE, num_workers=2) == here


def test_importing_the_module_imports_no_matplotlib():
    code = "import sys, timemaster.series.plot; sys.exit('matplotlib' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_fixed_range_shows_size_and_leaves_no_trace_in_the_next():
    fixed = PlotStyle(width=112, height=112, axes=False, y_range=(-1.0, 1.0))
    wave = [math.sin(i / 3) for i in range(60)]

    def height(scale: float, style: PlotStyle) -> int:
        png = draw_png(Series([[scale * value for value in wave]], "A", 0), style)
        rows = np.asarray(Image.open(io.BytesIO(png)).convert("L")).min(axis=1) < 200
        return int(rows.sum())

    assert height(0.9, fixed) > 95  # 112 pixels show 2 units: 0.9 * 2 / 2 * 112 = 101, and the line's width
    assert 20 < height(0.2, fixed) < 32  # 22 and the line's width
    assert abs(height(0.2, replace(fixed, y_range=None)) - height(0.9, replace(fixed, y_range=None))) <= 1


@pytest.mark.parametrize("chance", [0.18, 0.5, 0.9])
def test_no_text_of_a_comparison_crosses_the_axis(chance: float, monkeypatch: pytest.MonkeyPatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    rows = [
        Result(name=f"row {i} with a long name", kind="baseline", value=0.1 * i, ci95=(0, 0.2 * i)) for i in range(6)
    ]
    comparison_png(rows, "har", ACCURACY, Trivial(value=chance, text="", legend="always the most frequent class"))
    (figure,) = figures
    (axes,) = figure.axes
    frame = axes.get_window_extent()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert all(box.x1 < frame.x0 or box.x0 > frame.x0 for box in boxes)
    assert all(box.x1 < frame.x1 or box.x0 > frame.x1 for box in boxes)
    (legend,) = figure.legends
    assert "always the most frequent class" in [text.get_text() for text in legend.get_texts()]
