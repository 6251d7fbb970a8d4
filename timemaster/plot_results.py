"""Pictures of results: the confusion matrix of an evaluation, the curves and answers of a run."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def overview_png(run: str | Path, evaluation: str | Path, images: Sequence[bytes]) -> bytes:
    """Plots with their answers above, the reward and response-length curves of the run below.

    `evaluation` is a folder with predictions.jsonl, `images` the PNGs of its first rows, in order.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    rows = read_metrics(run)
    lines = Path(evaluation, "predictions.jsonl").read_text().splitlines()[: len(images)]
    answers = [json.loads(line) for line in lines]
    figure = Figure(figsize=(2.3 * len(images), 5.6), layout="constrained")
    grid = figure.add_gridspec(2, len(images), height_ratios=[1.25, 1])
    for k, (png, answer) in enumerate(zip(images, answers, strict=True)):
        axes = figure.add_subplot(grid[0, k])
        axes.imshow(Image.open(io.BytesIO(png)))
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
        if name in rows[0]:
            reward.plot(steps, [row[name] for row in rows], label=name.split("/")[1])
    reward.set(xlabel="GRPO step", ylabel="reward", ylim=(0, 1.05))
    reward.legend(fontsize=8)
    difference = figure.add_subplot(grid[1, half:])
    difference.semilogy(steps, [max(row["rollout/logprob_diff_mean"], 1e-12) for row in rows], label="mean")
    difference.semilogy(steps, [max(row["rollout/logprob_diff_max"], 1e-12) for row in rows], label="max")
    difference.set(xlabel="GRPO step", ylabel="|trainer - engine| log-prob")
    difference.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width) or [""]
