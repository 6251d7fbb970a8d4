"""Pictures of results: a confusion matrix, the curves and answers of a run, the intervals of a comparison."""

from __future__ import annotations

import io
import json
import math
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from timemaster.media.images import open_image
from timemaster.metrics.answers import how_sampled
from timemaster.metrics.evaluation import Number, Trivial
from timemaster.results.table import Result, short
from timemaster.rewards.reward_part import RESERVED
from timemaster.series.plot_fonts import fonts_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {  # kinds of rows in a comparison: legend, colour, marker
    "baseline": ("classical baseline", "#4c72b0", "o"),
    "model": ("API model", "#dd8452", "s"),
    "predictions": ("predictions file", "#8172b3", "o"),
    "checkpoint": ("checkpoint", "#2a7f4f", "o"),
    "quoted": ("quoted, not reproduced here", "#777777", "D"),
}


OUTCOMES = {  # mark and colour of the outcomes in metrics/answers.py
    "right": ("\u2713", "#0072b2"),
    "wrong": ("\u2717", "#d55e00"),
    "unparsed": ("?", "#666666"),
    "measured": ("\u2022", "#0072b2"),
    "unscored": ("\u2013", "#666666"),
}
CURVES = (("#0072b2", "-", "o"), ("#d55e00", "--", "s"), ("#009e73", ":", "^"))  # also distinct without colour
LITERAL: dict[str, Any] = {"parse_math": False}  # for texts of users: a dollar sign does not begin a formula
COLUMNS = 6  # plots in a row
PLOT_WIDTH = 2.3  # inches


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnAnswer:
    """An answer to draw. Example: DrawnAnswer(image=…, truth="Winter", prediction="Summer", outcome="wrong", text=…)"""

    image: bytes  # encoded
    truth: str
    prediction: str | None  # None: the response could not be read
    text: str
    outcome: str  # one of OUTCOMES
    value: str | None = None  # of a measured answer: its number, such as "error 0.07"


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG, with fonts that have all letters of its texts."""
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    fonts = [font.name for font in fonts_for(text.get_text() for text in texts)]
    for text in texts:
        text.set_fontfamily([*text.get_fontfamily(), *fonts])
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # fonts_for reports these in one line
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def confusion_png(confusion: dict[str, dict[str, int]], title: str) -> bytes:
    """Rows: truth; columns: answer, unparsed last. Shade: share of the row. Frame: right answers."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    truths, said = list(confusion), list(next(iter(confusion.values())))
    counts = [[confusion[truth][answer] for answer in said] for truth in truths]
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    small = len(said) > 24
    cell = 0.4 if small else 0.9  # inches
    names = [wrapped(name, 18, 3) for name in said]
    figure = Figure(figsize=(max(2.6 + cell * len(said), 5.2), 2.4 + 0.8 * cell * len(truths)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            colour = "white" if shares[i][j] > 0.6 else "black"
            if count or not small:
                text = axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=6 if small else 10)
                text.set_in_layout(False)  # inside the axes: the layout need not measure it
        axes.add_patch(Rectangle((i - 0.47, i - 0.45), 0.94, 0.9, fill=False, edgecolor="#e69f00", linewidth=2))
    axes.axvline(len(truths) - 0.5, color="black", linewidth=0.8, linestyle=":")  # the column to its right is no class
    turned: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(said)), names, fontsize=9, **turned, **LITERAL)
    axes.set_yticks(range(len(truths)), names[: len(truths)], fontsize=9, **LITERAL)
    axes.set_xlabel("answer (shade: share of the row; framed: right)", fontsize=9)
    axes.set_ylabel("truth", fontsize=9)
    axes.set_title(title, fontsize=10, **LITERAL)
    return png(figure, 110)


def comparison_png(results: Sequence[Result], title: str, number: Number, trivial: Trivial | None) -> bytes:
    """A row for each result: the headline with its 95 % interval, hollow if quoted; `trivial` is a dashed line."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(8.6, 1.5 + 0.34 * len(results)), layout=ConstrainedLayoutEngine(w_pad=0.12))
    axes = figure.subplots()
    scale = 100 if number.is_share else 1
    if trivial:  # its text is in the legend: beside the line it may cross the axis or a point
        axes.axvline(
            scale * trivial.value, color="#999999", linestyle="--", linewidth=1, zorder=0, label=trivial.legend
        )
    shown = set()
    for y, result in enumerate(results):
        label, colour, marker = KINDS[result.kind]
        low, high = result.ci95 or (result.value, result.value)
        axes.plot([scale * low, scale * high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(
            scale * result.value, y, marker, color=colour, markersize=7, linestyle="none",
            markerfacecolor="white" if result.kind == "quoted" else colour, label=None if label in shown else label,
        )  # fmt: skip
        shown.add(label)
        text = short(number, result.value)
        text += f"  [{short(number, low)}, {short(number, high)}]" if result.ci95 else ""
        axes.text(1.015, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_yticks(range(len(results)), [result.name for result in results], fontsize=9, **LITERAL)
    unit = " in %" if number.is_share else ""
    axes.set(ylim=(len(results) - 0.4, -0.6), xlabel=f"{number.heading}{unit}, with its 95 % interval")
    if number.is_share:
        axes.set_xlim(-1, 101)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left", **LITERAL)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    return png(figure, 130)


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def overview_png(run: str | Path, answers: Sequence[DrawnAnswer], title: str) -> bytes:
    """Plots with their answers above, the curves of reward and log-prob difference of the run below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    num_columns = min(len(answers), COLUMNS)
    num_rows = -(-len(answers) // COLUMNS)
    figure = Figure(figsize=(max(PLOT_WIDTH * num_columns, 9.2), 3.4 * num_rows + 3.0), layout="constrained")
    figure.suptitle(title, fontsize=10, **LITERAL)
    halves = figure.add_gridspec(2, 1, height_ratios=[3.4 * num_rows, 2.6])
    upper, lower = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    grid = upper.add_gridspec(num_rows, num_columns)
    for k, answer in enumerate(answers):
        _draw_answer(upper.add_subplot(grid[k // COLUMNS, k % COLUMNS]), answer)
    shown = {answer.outcome for answer in answers}
    marks = [Patch(color=colour, label=f"{mark} {name}") for name, (mark, colour) in OUTCOMES.items() if name in shown]
    upper.legend(handles=marks, loc="outside upper right", ncols=len(marks), fontsize=9, frameon=False)
    rows = read_metrics(run)
    reward, difference = lower.subplots(1, 2)
    names = [("reward/mean", "reward"), *((f"reward/{part}", part) for part in parts_logged(rows))]
    _draw_curves(reward, rows, names, f"Mean reward of the training answers, {training_sampling(run)}")
    if all(0 <= value <= 1 for line in reward.lines for value in line.get_ydata() if math.isfinite(value)):
        reward.set_ylim(0, 1.05)
    reward.set_ylabel("mean over a step")
    names = [(f"rollout/logprob_diff_{name}", f"{name} of a step's tokens") for name in ("max", "mean")]
    difference.set_yscale("log", nonpositive="mask")
    _draw_curves(difference, rows, names, "Log-prob of the same tokens: trainer against engine")
    difference.set_ylabel("|difference|, nats, log scale")
    return png(figure, 110)


def parts_logged(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The reward parts in a run's metrics, in the order of the recipe; not those of single data sources."""
    keys = dict.fromkeys(key for row in rows for key in row if re.fullmatch(r"reward/[^/@]+", key))
    return [name for key in keys if (name := key.removeprefix("reward/")) not in RESERVED]


def training_sampling(run: str | Path) -> str:
    """How a run samples its training answers, from its config.yaml. Example: "sampled at temperature 1" """
    path = Path(run, "config.yaml")
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    temperature = config.get("rollout", {}).get("temperature")
    return "sampled" if temperature is None else how_sampled(temperature)


def _draw_answer(axes: Axes, answer: DrawnAnswer) -> None:
    """The plot, truth and outcome above it, the answer's text below, in a frame of the outcome's colour."""
    mark, colour = OUTCOMES[answer.outcome]
    axes.imshow(open_image(answer.image))
    axes.set_anchor("NW")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=1.8)
    outcome = answer.outcome
    if outcome in ("wrong", "measured") and answer.prediction is not None:
        outcome = f"{answer.value or outcome}: {answer.prediction}"
    heading = [wrapped(f"truth: {answer.truth}", 28, 3), wrapped(f"{mark} {outcome}", 28, 3)]
    axes.set_title("\n".join(heading), fontsize=9, loc="left", **LITERAL)
    text = wrapped(answer.text, 35, 9) if answer.text.strip() else "(empty)"
    axes.set_xlabel(text, fontsize=6.5, family="monospace", loc="left", **LITERAL)


def _draw_curves(axes: Axes, rows: list[dict[str, Any]], names: Sequence[tuple[str, str]], title: str) -> None:
    """A line for each of the first three metrics that the run has; steps without a value are left out."""
    from matplotlib.ticker import MaxNLocator

    for (key, label), (colour, line, marker) in zip(names, CURVES, strict=False):
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
        if points:
            look: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "markersize": 4,
                "markevery": max(len(points) // 12, 1),
            }
            axes.plot(*zip(*points, strict=True), line, label=label, **look)
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel("GRPO step")
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=8, framealpha=0.8)
    else:
        axes.set(xticks=[], yticks=[])
        axes.minorticks_off()
        axes.text(0.5, 0.5, "not recorded in this run", ha="center", transform=axes.transAxes, color="#666666")


TAG = r"</?[A-Za-z]\w*>"


def wrapped(text: str, width: int, max_lines: int) -> str:
    """`text` in lines of at most `width` columns, broken between words and beside tags; long words after _ - /.

    Beyond `max_lines` (3 or more) the middle is left out, because the end of an answer holds its result.
    """
    lines = [""]
    for piece in re.findall(rf"{TAG}|\s+|(?:(?!{TAG})\S)+", text):
        if piece.isspace():
            lines[-1] += " " if lines[-1] else ""
            continue
        parts = re.findall(r"[^_/-]*[_/-]|[^_/-]+", piece) if _columns(piece) > width else [piece]
        for part in parts:
            if _columns(lines[-1] + part) > width:
                lines.append("")
            for letter in part:
                if _columns(lines[-1] + letter) > width:
                    lines.append("")
                lines[-1] += letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}"
    lines = [line.rstrip() for line in lines if line.strip()]
    if len(lines) > max_lines:
        tail = (max_lines - 1) // 2
        lines = [*lines[: max_lines - tail - 1], "\N{HORIZONTAL ELLIPSIS}", *lines[len(lines) - tail :]]
    return "\n".join(lines)


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
