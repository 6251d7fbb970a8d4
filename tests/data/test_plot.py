"""Plots: the look of the published ones, from one reused figure."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from timemaster.data import plot
from timemaster.data.plot import PlotStyle, draw_many, draw_png
from timemaster.data.series import Series
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
    code = "import sys, timemaster.data.plot; sys.exit('matplotlib' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
