"""Fast line plots of series: each process reuses one figure and redraws only what changes.

Plots look like matplotlib's default with `tight_layout()` and `bbox_inches="tight"`, as in the published data. A new
figure for every series would take about 150 ms. Between two series of one length only the lines and the y axis
differ, and the layout depends on the series only through the sizes of a few texts of the y axis (`_Canvas._key`). So
matplotlib computes the layout and draws the rest once for each such key. For further series, the stored pixels are
copied back.

matplotlib is imported when the first plot is drawn.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from timemaster.series.splits import Series
from timemaster.types import InputError

DPI = 100
MIN_PARALLEL = 400  # below this many plots, starting processes costs more than it saves
CHUNK = 16  # plots that a worker takes at a time
MAX_LAYOUTS = 64  # layouts kept for each figure; each holds the figure's pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotStyle:
    """How a series is drawn. Example: PlotStyle(title="Complete Signal", x_label="Timestamp", y_label="Value")"""

    title: str = ""
    x_label: str = ""
    y_label: str = ""
    channels: tuple[str, ...] = ()  # names of the lines, shown as a legend in the upper right corner; (): no legend
    axes: bool = True  # False: bare lines without frame, ticks and text, not cropped
    y_range: tuple[float, float] | None = None  # of the y axis, the same for every series; None: fitted to each series
    rows: bool = False  # bare lines only: each channel in its own row, zero in the middle, one scale for all rows
    width: int = 600  # pixels, before cropping
    height: int = 250  # pixels, before cropping
    line_width: float = 2.0  # points (1/72 inch, at 100 pixels per inch)
    title_size: float = 9.0  # points
    label_size: float = 8.0  # points
    tick_size: float = 7.0  # points; also of the legend
    margin: int = 5  # pixels around the drawing, after cropping

    def __post_init__(self) -> None:
        if self.rows and (self.axes or self.y_range):
            raise InputError("PlotStyle: rows=True is for bare lines: set axes=False, and leave y_range None.")


def draw_png(series: Series, style: PlotStyle) -> bytes:
    """The plot of `series` as an RGB PNG: one line for each channel, over the number of the reading.

    With axes, the size varies by some pixels with the y tick labels (571 to 589 x 230 for the default style). Without
    axes, it is `style.width` x `style.height`. Raises InputError for an empty series, values that are not finite, and a
    number of channels that differs from `style.channels`.
    """
    if style.channels and len(style.channels) != len(series.values):
        named = ", ".join(style.channels)
        raise InputError(
            f"Series {series.index} has {len(series.values)} channels; the plot style names {len(style.channels)}: "
            f"{named}. Name every channel, or none."
        )
    lengths = {len(channel) for channel in series.values}
    if len(lengths) != 1 or lengths == {0}:
        raise InputError(f"Series {series.index}: channels have {sorted(lengths)} readings; expected one equal length.")
    if not all(math.isfinite(value) for channel in series.values for value in channel):
        raise InputError(f"Series {series.index} has values that are not finite; fill or drop them before drawing.")
    return _canvas(style, len(series.values), lengths.pop()).draw(series.values)


def draw_many(series: Sequence[Series], style: PlotStyle, num_workers: int = 0) -> list[bytes]:
    """The plots of all `series`, in order, with a progress bar.

    `num_workers` processes draw them (0: one for each core). With one worker or few plots, this process draws.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from tqdm import tqdm

    num_workers = num_workers or os.cpu_count() or 1
    bar = partial(tqdm, total=len(series), desc="plots", unit="plot", disable=None)
    if num_workers == 1 or len(series) < MIN_PARALLEL:
        return [draw_png(item, style) for item in bar(series)]
    # Plain fork is unsafe: this process may have threads (pyarrow's, tqdm's). The fork server imports matplotlib once.
    available = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in available else "spawn")
    if "forkserver" in available:
        context.set_forkserver_preload(["matplotlib.backends.backend_agg", "matplotlib.figure", __name__])
    with ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        return list(bar(pool.map(partial(draw_png, style=style), series, chunksize=CHUNK)))


@lru_cache(maxsize=8)
def _canvas(style: PlotStyle, num_channels: int, length: int) -> _Canvas:
    return _Canvas(style, num_channels, length)


@dataclass(frozen=True, slots=True)
class _Layout:
    """The parts of a plot that all series with the same key share. Positions are pixels from the lower left corner."""

    sides: dict[str, float]  # of the axes, as fractions of the figure
    background: Any  # the figure's pixels without lines, legend and y axis
    left: float  # left end of the drawing, without the y axis
    right: float  # right end of the drawing
    bottom: float
    top: float


def _in_rows(values: list[list[float]]) -> list[list[float]]:
    """The channels, scaled and shifted so that each fills a row of height 2. The first channel is on top."""
    largest = max(abs(value) for channel in values for value in channel) or 1.0
    return [
        [v / largest + 2 * row for v in channel] for row, channel in zip(range(len(values))[::-1], values, strict=True)
    ]


class _Canvas:
    """One figure, drawn again and again for series of one shape."""

    def __init__(self, style: PlotStyle, num_channels: int, length: int):
        import matplotlib.style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.style = style
        self.layouts: dict[tuple[float, ...], _Layout] = {}
        self.text_sizes: dict[tuple[str, bool], tuple[float, float]] = {}
        with matplotlib.style.context("default"):  # the user's matplotlib settings must not change the plots
            self.figure = Figure(figsize=(style.width / DPI, style.height / DPI), dpi=DPI)
            self.canvas = FigureCanvasAgg(self.figure)
            self.axes = self.figure.add_subplot()
            self.lines = [
                self.axes.plot(range(length), [0.0] * length, linewidth=style.line_width, animated=True)[0]
                for _ in range(num_channels)
            ]
            self.over: list[Any] = [*self.lines]  # artists to draw for each series, in this order
            if style.channels:
                # Not matplotlib's "best" place, which depends on the values and would differ between series.
                legend = self.axes.legend(self.lines, style.channels, loc="upper right", fontsize=style.tick_size)
                legend.set_animated(True)
                self.over.append(legend)
            if style.axes:
                self._add_text()
            else:
                self.axes.set_axis_off()
                self.figure.subplots_adjust(left=0.0, right=1.0, bottom=0.0, top=1.0)
        self.default_sides = self._sides()

    def draw(self, values: list[list[float]]) -> bytes:
        for line, channel in zip(self.lines, _in_rows(values) if self.style.rows else values, strict=True):
            line.set_ydata(channel)
        self.axes.relim()
        self.axes.autoscale_view()
        if self.style.y_range:
            self.axes.set_ylim(*self.style.y_range)
        elif self.style.rows:
            self.axes.set_ylim(-1, 2 * len(values) - 1)
        layout = self._layout()
        tick_width = self._place_y_label() if self.style.axes else 0.0
        self.canvas.restore_region(layout.background)
        renderer = self.canvas.get_renderer()
        if self.style.axes:
            self.axes.yaxis.draw(renderer)
        for artist in self.over:
            artist.draw(renderer)
        return self._encode(layout, tick_width)

    def _add_text(self) -> None:
        style, axis = self.style, self.axes.yaxis
        self.axes.set_title(style.title, fontsize=style.title_size)
        self.axes.set_xlabel(style.x_label, fontsize=style.label_size)
        self.axes.set_ylabel(style.y_label, fontsize=style.label_size)
        # Not tick_params(labelsize=...), because it changes the number of ticks.
        for text in [*self.axes.get_xticklabels(), *self.axes.get_yticklabels()]:
            text.set_fontsize(style.tick_size)
        # matplotlib puts the y label beside the widest tick label and measures all of them several times to find it.
        # The gaps are the same for every series, so take them from matplotlib's first drawing.
        self.canvas.draw()
        ticks_end = self.axes.bbox.x0 - self._tick_label_width()
        self.gap_to_label = ticks_end - axis.label.get_position()[0]
        box = axis.get_tightbbox(self.canvas.get_renderer())
        assert box is not None
        self.gap_to_left = ticks_end - box.x0
        axis.set_animated(True)

    def _layout(self) -> _Layout:
        """The layout for the current y limits. Also moves the axes to their places in this layout."""
        # matplotlib computes the layout with the ticks of its default sides; afterwards, the ticks may differ.
        self.figure.subplots_adjust(**self.default_sides)
        key = self._key() if self.style.axes else ()
        if key not in self.layouts:
            if len(self.layouts) == MAX_LAYOUTS:
                del self.layouts[next(iter(self.layouts))]
            if self.style.axes:
                self.figure.tight_layout()
            self.canvas.draw()
            renderer = self.canvas.get_renderer()
            box = self.figure.get_tightbbox(renderer)
            fixed = [self.axes.title, self.axes.xaxis, *self.over[len(self.lines) :]]
            left = min(part.x0 for artist in fixed if (part := artist.get_tightbbox(renderer)) is not None)
            background = self.canvas.copy_from_bbox(self.figure.bbox)
            self.layouts[key] = _Layout(self._sides(), background, left, box.x1 * DPI, box.y0 * DPI, box.y1 * DPI)
        self.figure.subplots_adjust(**self.layouts[key].sides)
        return self.layouts[key]

    def _key(self) -> tuple[float, ...]:
        """What the layout depends on, in pixels: three text sizes, and how far tick labels reach above the axes."""
        tick_width = self._place_y_label()
        # The text "1e-6" or "+1e3" above the axis is beside the title. If they would touch, the title moves up.
        offset = self._text_size(self.axes.yaxis.get_major_formatter().get_offset(), offset=True)
        reach = 0.0  # with a title, tick labels do not reach the top
        if not self.style.title:
            tick, text = self._ticks()[-1]
            top = self.axes.transData.transform((0.0, tick))[1] + self._text_size(text)[1]
            reach = max(0.0, top - self.axes.bbox.y1)
        return tick_width, *offset, reach

    def _sides(self) -> dict[str, float]:
        return {side: getattr(self.figure.subplotpars, side) for side in ("left", "right", "bottom", "top")}

    def _place_y_label(self) -> float:
        """Put the y label beside the current tick labels. Returns the width of the widest one, in pixels."""
        axis, width = self.axes.yaxis, self._tick_label_width()
        axis.set_label_coords(self.axes.bbox.x0 - width - self.gap_to_label, 0.5, axis.label.get_transform())
        return width

    def _tick_label_width(self) -> float:
        return max(self._text_size(text)[0] for _, text in self._ticks())

    def _ticks(self) -> list[tuple[float, str]]:
        """The visible ticks and their labels, from bottom to top."""
        axis = self.axes.yaxis
        ticks = [float(tick) for tick in axis.get_majorticklocs()]
        low, high = sorted(axis.get_view_interval())
        slack = 1e-10 * (high - low)
        labels = zip(ticks, axis.get_major_formatter().format_ticks(ticks), strict=True)
        return [(tick, text) for tick, text in labels if low - slack <= tick <= high + slack]

    def _text_size(self, text: str, offset: bool = False) -> tuple[float, float]:
        """Width and height in pixels of a tick label or, with `offset`, of the text above the axis."""
        if (text, offset) not in self.text_sizes:
            axis = self.axes.yaxis
            label = axis.get_offset_text() if offset else axis.get_major_ticks(1)[0].label1
            font = label.get_fontproperties()
            width, height, _ = self.canvas.get_renderer().get_text_width_height_descent(text, font, ismath=False)
            self.text_sizes[text, offset] = width, height
        return self.text_sizes[text, offset]

    def _encode(self, layout: _Layout, tick_width: float) -> bytes:
        import numpy as np
        from PIL import Image

        pixels = np.asarray(self.canvas.buffer_rgba())[..., :3]
        if self.style.axes:
            margin = self.style.margin
            left = min(layout.left, self.axes.bbox.x0 - tick_width - self.gap_to_left) - margin
            bottom = layout.bottom - margin
            # Crop as matplotlib does: whole pixels from the lower left. 1e-6 corrects rounding errors.
            width = int(layout.right + margin - left + 1e-6)
            height = int(layout.top + margin - bottom + 1e-6)
            x, y = max(0, round(left)), max(0, round(pixels.shape[0] - bottom - height))
            pixels = pixels[y : y + height, x : x + width]
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=2)
        return file.getvalue()
