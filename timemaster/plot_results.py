"""Pictures of results: an evaluation's confusion matrix, a run's curves and answers, a comparison's intervals."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timemaster.data.media import open_image
from timemaster.metrics import Result

KINDS = {  # of a comparison's rows: what the legend says, colour, marker
    "baseline": ("classical baseline", "#4c72b0", "o"),
    "model": ("API model", "#dd8452", "s"),
    "predictions": ("predictions file", "#8172b3", "o"),
    "checkpoint": ("checkpoint", "#2a7f4f", "o"),
    "quoted": ("quoted, not reproduced here", "#777777", "D"),
}


def confusion_png(confusion: dict[str, dict[str, int]], title: str = "") -> bytes:
    """Rows: truth; columns: answer, the unparsed ones last. Counts, shaded by the share of their row."""
    from matplotlib.figure import Figure

    truths, said = list(confusion), list(next(iter(confusion.values())))
    counts = [[confusion[truth][answer] for answer in said] for truth in truths]
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    figure = Figure(figsize=(2.2 + 0.9 * len(said), 1.6 + 0.7 * len(truths)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i][j] > 0.6 else "black")
    axes.set_xticks(range(len(said)), said, rotation=30, ha="right")
    axes.set_yticks(range(len(truths)), truths)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    if title:
        axes.set_title(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def comparison_png(results: Sequence[Result], title: str, chance: float) -> bytes:
    """A row each: accuracy with its 95 % interval, quoted ones hollow; `chance` is that of the most frequent class."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(8.6, 1.5 + 0.34 * len(results)), layout=ConstrainedLayoutEngine(w_pad=0.12))
    axes = figure.subplots()
    most = "always the most frequent class"  # in the legend: beside the line it may cross the axis or a point
    axes.axvline(100 * chance, color="#999999", linestyle="--", linewidth=1, zorder=0, label=most)
    shown = set()
    for y, one in enumerate(results):
        label, colour, marker = KINDS[one.kind]
        low, high = one.ci95 or (one.accuracy, one.accuracy)
        axes.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(
            100 * one.accuracy, y, marker, color=colour, markersize=7, linestyle="none",
            markerfacecolor="white" if one.kind == "quoted" else colour, label=None if label in shown else label,
        )  # fmt: skip
        shown.add(label)
        text = f"{100 * one.accuracy:.1f}" + (f"  [{100 * low:.1f}, {100 * high:.1f}]" if one.ci95 else "")
        axes.text(1.015, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_yticks(range(len(results)), [one.name for one in results], fontsize=9)
    axes.set(ylim=(len(results) - 0.4, -0.6), xlim=(-1, 101), xlabel="accuracy in %, with its 95 % interval")
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def overview_png(run: str | Path, answers: Sequence[dict[str, Any]], images: Sequence[bytes], title: str = "") -> bytes:
    """Plots with their answers above, the curves of reward and log-prob difference of the run below.

    `answers` are rows of a predictions.jsonl, `images` the encoded pictures that they are about.
    """
    from matplotlib.figure import Figure

    rows = read_metrics(run)
    figure = Figure(figsize=(2.3 * len(images), 5.6), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    grid = figure.add_gridspec(2, len(images), height_ratios=[1.25, 1])
    for k, (png, answer) in enumerate(zip(images, answers, strict=True)):
        axes = figure.add_subplot(grid[0, k])
        axes.imshow(open_image(png))
        axes.set_xticks([])
        axes.set_yticks([])
        right = answer["prediction"] == answer["truth"]
        axes.set_title(f"truth: {answer['truth']}", fontsize=9)
        text = "\n".join(_wrap(answer["response"], 34))
        axes.set_xlabel(text, fontsize=7, color="darkgreen" if right else "firebrick", loc="left")
    half = len(images) // 2
    steps = [row["step"] for row in rows]
    reward = figure.add_subplot(grid[1, :half])
    for name in ("reward/mean", "reward/accuracy", "reward/format"):
        if any(name in row for row in rows):
            reward.plot(steps, [row.get(name, math.nan) for row in rows], label=name.split("/")[1])
    reward.set(xlabel="GRPO step", ylabel="reward", ylim=(0, 1.05))
    reward.legend(fontsize=8)
    difference = figure.add_subplot(grid[1, half:])
    for name in ("mean", "max"):
        values = [row.get(f"rollout/logprob_diff_{name}", math.nan) for row in rows]
        difference.semilogy(steps, [max(value, 1e-12) for value in values], label=name)
    difference.set(xlabel="GRPO step", ylabel="|trainer - engine| log-prob")
    difference.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]
