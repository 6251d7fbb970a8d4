"""The picture of an evaluation: a confusion matrix of classes, or the distribution of a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timemaster.metrics.answers import how_sampled
from timemaster.metrics.evaluation import Evaluation, Items
from timemaster.metrics.summary import headline_of
from timemaster.results.plot_results import LITERAL, confusion_png, png

NUM_BINS = 20


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to write. Example: Picture("confusion.png", b"…")"""

    file: str
    png: bytes


def draw_evaluation(
    evaluation: Evaluation | None, figures: Mapping[str, Any], items: Items, about: Mapping[str, Any]
) -> Picture | None:
    """The picture that the evaluation asks for; None where there is nothing to draw.

    `figures`: from `summarise`. `about`: what metrics.json says about rows, step and sampling.
    """
    headline = headline_of(figures)
    if evaluation is None or headline is None:
        return None
    title = picture_title(about, figures)
    if evaluation.picture == "confusion":
        confusion = figures["confusion"]
        return Picture("confusion.png", confusion_png(confusion, title)) if confusion else None
    name = headline.number.name
    values = [answer.numbers[name] for item in items for answer in item if name in answer.numbers]
    return Picture("numbers.png", histogram_png(values, title, name))


def picture_title(about: Mapping[str, Any], figures: Mapping[str, Any]) -> str:
    """What an evaluation's picture shows: rows, step, sampling, headline."""
    headline = headline_of(figures)
    assert headline is not None
    when = f"after step {about['step']}" if about["step"] else "before training"
    blank = ", blanked images" if about["blank_images"] else ""
    answers = f" x {figures['num_samples']} answers" if "num_samples" in figures else ""
    low, high = headline.ci95
    return (
        f"{about['rows']} rows {when}, {how_sampled(**about['sampling'])}{blank}\n"
        f"{headline.number.heading} {headline.value:.3f} of {headline.n} rows{answers}, 95 %: {low:.3f} to {high:.3f}"
    )


def histogram_png(values: Sequence[float], title: str, name: str) -> bytes:
    """A histogram of a number's values, with their mean."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.hist(values, bins=NUM_BINS, color="#4c72b0")
    mean = sum(values) / len(values)
    axes.axvline(mean, color="#d55e00", linestyle="--", linewidth=1.2, label=f"mean {mean:.3f}")
    axes.set_xlabel(f"{name} of an answer", fontsize=9, **LITERAL)
    axes.set_ylabel("answers", fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(title, fontsize=10, **LITERAL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return png(figure, 110)
