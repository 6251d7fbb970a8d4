"""Line plots of series, fast: one reused figure per process, only what changes is drawn again.

The look is matplotlib's default with `tight_layout()` and `bbox_inches="tight"`, as the published TimeMaster data has
it. Making a new figure with these two for every series costs about 150 ms. Between two series of one length only the
lines and the y axis differ; and the layout depends on the series only through the sizes of a few texts of the y axis
(`_Canvas._key`). So matplotlib lays out and draws the rest once per such key, and that picture is restored under every
further series.

matplotlib is imported when the first plot is drawn, never with this module.
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
CHUNK = 16  # plots a worker takes at a time
MAX_LAYOUTS = 64  # kept per figure; each holds its pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotStyle:
    """How a series is drawn. Example: PlotStyle(title="Complete Signal", x_label="Timestamp", y_label="Value")"""

    title: str = ""
    x_label: str = ""
    y_label: str = ""
    channels: tuple[str, ...] = ()  # names of the lines, for a legend in the upper right corner; () draws none
    axes: bool = True  # False draws the bare lines, without frame, ticks and text about them, and crops nothing
    y_range: tuple[float, float] | None = None  # of the y axis, the same for every series; None fits it to each
    rows: bool = False  # of bare lines: every channel in a row of its own, zero in its middle, one scale for all rows
    width: int = 600  # pixels, before the crop to what is drawn
    height: int = 250  # pixels, before the crop to what is drawn
    line_width: float = 2.0  # points (1/72 inch, at 100 pixels per inch)
    title_size: float = 9.0  # points
    label_size: float = 8.0  # points
    tick_size: float = 7.0  # points; also of the legend
    margin: int = 5  # pixels left around what is drawn after the crop

    def __post_init__(self) -> None:
        if self.rows and (self.axes or self.y_range):
            raise InputError("PlotStyle: rows=True is for bare lines: set axes=False, and leave y_range None.")


def draw_png(series: Series, style: PlotStyle) -> bytes:
    """The plot of `series` as an RGB PNG; one line per channel over the reading's number.

    With axes the size varies by some pixels with the y tick labels (571 to 589 x 230 for the default style), without
    it is `style.width` x `style.height`. Raises InputError for an empty series, values that are not finite, and another
    number of channels than `style.channels` names.
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

    `num_workers` processes draw (0: one per core); few plots, or one worker, are drawn in this process.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    from tqdm import tqdm

    num_workers = num_workers or os.cpu_count() or 1
    bar = partial(tqdm, total=len(series), desc="plots", unit="plot", disable=None)
    if num_workers == 1 or len(series) < MIN_PARALLEL:
        return [draw_png(item, style) for item in bar(series)]
    # Not plain fork: this process may hold threads (pyarrow's, tqdm's). The server imports matplotlib once for all.
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
    """All that series of one key share; lengths in pixels from the lower left corner."""

    sides: dict[str, float]  # of the axes, as fractions of the figure
    background: Any  # the figure's pixels without lines, legend and y axis
    left: float  # what is drawn begins here, the y axis aside
    right: float  # and ends here
    bottom: float
    top: float


def _in_rows(values: list[list[float]]) -> list[list[float]]:
    """The channels one under another, the first on top, 2 apart, each between -1 and 1 about its row's middle."""
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
        with matplotlib.style.context("default"):  # a user's own settings must not change the data
            self.figure = Figure(figsize=(style.width / DPI, style.height / DPI), dpi=DPI)
            self.canvas = FigureCanvasAgg(self.figure)
            self.axes = self.figure.add_subplot()
            self.lines = [
                self.axes.plot(range(length), [0.0] * length, linewidth=style.line_width, animated=True)[0]
                for _ in range(num_channels)
            ]
            self.over: list[Any] = [*self.lines]  # drawn for each series, in this order
            if style.channels:
                # Not matplotlib's "best" place: it is looked for among the values, and would jump between series.
                legend = self.axes.legend(self.lines, style.channels, loc="upper right", fontsize=style.tick_size)
                legend.set_animated(True)
                self.over.append(legend)
            if style.axes:
                self._add_text()
            else:
                self.axes.set_axis_off()
                self.figure.subplots_adjust(left=0.0, right=1.0, bottom=0.0, top=1.0)
        self.start = self._sides()

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
        # Not tick_params(labelsize=...): the number of ticks depends on that size, and the look is the default size's.
        for text in [*self.axes.get_xticklabels(), *self.axes.get_yticklabels()]:
            text.set_fontsize(style.tick_size)
        # matplotlib puts the y label beside the widest tick label, by measuring all of them several times. The gaps
        # are the same for every series: take them from its own first drawing.
        self.canvas.draw()
        ticks_end = self.axes.bbox.x0 - self._tick_label_width()
        self.gap_to_label = ticks_end - axis.label.get_position()[0]
        box = axis.get_tightbbox(self.canvas.get_renderer())
        assert box is not None
        self.gap_to_left = ticks_end - box.x0
        axis.set_animated(True)

    def _layout(self) -> _Layout:
        """The layout for the present y limits, with the axes put in place."""
        # matplotlib lays out from its default sides, and the ticks of that size decide: they may differ afterwards.
        self.figure.subplots_adjust(**self.start)
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
        """All that the layout takes from a series: three sizes of text, and how high the tick labels reach; pixels."""
        tick_width = self._place_y_label()
        # The "1e-6" or "+1e3" over the axis stands beside the title or, where the two would touch, pushes it up.
        offset = self._text_size(self.axes.yaxis.get_major_formatter().get_offset(), offset=True)
        reach = 0.0  # a title stands higher than any tick label reaches
        if not self.style.title:
            tick, text = self._ticks()[-1]
            top = self.axes.transData.transform((0.0, tick))[1] + self._text_size(text)[1]
            reach = max(0.0, top - self.axes.bbox.y1)
        return tick_width, *offset, reach

    def _sides(self) -> dict[str, float]:
        return {side: getattr(self.figure.subplotpars, side) for side in ("left", "right", "bottom", "top")}

    def _place_y_label(self) -> float:
        """Puts the y label beside the present tick labels; gives the width of the widest, in pixels."""
        axis, width = self.axes.yaxis, self._tick_label_width()
        axis.set_label_coords(self.axes.bbox.x0 - width - self.gap_to_label, 0.5, axis.label.get_transform())
        return width

    def _tick_label_width(self) -> float:
        return max(self._text_size(text)[0] for _, text in self._ticks())

    def _ticks(self) -> list[tuple[float, str]]:
        """The ticks in view and their labels, from below."""
        axis = self.axes.yaxis
        ticks = [float(tick) for tick in axis.get_majorticklocs()]
        low, high = sorted(axis.get_view_interval())
        slack = 1e-10 * (high - low)
        labels = zip(ticks, axis.get_major_formatter().format_ticks(ticks), strict=True)
        return [(tick, text) for tick, text in labels if low - slack <= tick <= high + slack]

    def _text_size(self, text: str, offset: bool = False) -> tuple[float, float]:
        """Pixels (width, height) of a tick label or, with `offset`, of the text over the axis."""
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
            # As matplotlib crops: whole pixels counted from the lower left. The sizes often are whole but for rounding.
            width = int(layout.right + margin - left + 1e-6)
            height = int(layout.top + margin - bottom + 1e-6)
            x, y = max(0, round(left)), max(0, round(pixels.shape[0] - bottom - height))
            pixels = pixels[y : y + height, x : x + width]
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=2)
        return file.getvalue()
