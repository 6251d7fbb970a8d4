"""Classification of time series: a question about the plot of a series, answered with one of a few labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from timemaster.metrics.classification import Classification
from timemaster.rewards import predict_label
from timemaster.series.labels import label_key
from timemaster.series.numeric import DECIMALS
from timemaster.series.plot import PlotStyle
from timemaster.series.splits import Series
from timemaster.tasks.task import Task
from timemaster.types import InputError

IMAGE = "<image>"
# 16 vision tokens, one colour per channel: a model of a million parameters can learn to read it.
SMALL_PLOT = PlotStyle(width=112, height=112, line_width=2.0, axes=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesClassification(Task):
    """Labelled series as a task: SeriesClassification(name="ctu", labels=("Desktop", "Laptop"), question=…, plot=…, …)

    Raises InputError when the labels repeat, the question has not exactly one `<image>`, a number is out of range, or
    two reward parts could not be told apart in the log.
    """

    labels: tuple[str, ...]  # class 0, class 1, …
    question: str  # the user turn; the plot goes where `<image>` stands
    # folder or zip (None: fetch it) -> "train", "test" and, where the set has one, "validation"
    load: Callable[[Path | None], dict[str, list[Series]]]
    plot: PlotStyle
    small_plot: PlotStyle = SMALL_PLOT  # for the embedded tiny model: `prepare --plot small`
    decimals: int = DECIMALS  # of a reading with data.modality=numeric: enough to distinguish readings
    explain: Callable[[Series, SeriesClassification], str] | None = None  # true facts that its plot shows
    validation_fraction: float = 0.1  # of the train split, cut where `load` gives no "validation"
    evaluation: Classification = field(init=False)  # follows from the labels

    def __post_init__(self) -> None:
        if len({label_key(label) for label in self.labels}) != len(self.labels) or not self.labels:
            raise InputError(f"Task {self.name!r}: labels {self.labels} must be there and differ (case ignored).")
        if self.question.count(IMAGE) != 1:
            raise InputError(f"Task {self.name!r}: the question has {self.question.count(IMAGE)} {IMAGE}; needs one.")
        if not 0 < self.validation_fraction < 1:
            raise InputError(f"Task {self.name!r}: validation_fraction is {self.validation_fraction}; 0 < it < 1.")
        if self.decimals < 0:
            raise InputError(f"Task {self.name!r}: decimals is {self.decimals}; give 0 or more.")
        Task.__post_init__(self)  # super() does not work: `slots` makes a new class
        object.__setattr__(self, "evaluation", Classification(labels=self.labels, reader=predict_label))


def as_series_classification(task: Task, command: str) -> SeriesClassification:
    """The task itself. Raises InputError for another kind, which `command` cannot work with."""
    if not isinstance(task, SeriesClassification):
        raise InputError(
            f"Task {task.name!r} is a {type(task).__name__}; {command} works with SeriesClassification only."
        )
    return task


def demonstration(task: SeriesClassification, series: Series) -> str:
    """A perfect answer for `series`: "<think>facts</think><class>Label</class>". The task needs an explainer."""
    if task.explain is None:
        raise InputError(f"Task {task.name!r} has no `explain` function, so no demonstrations can be made.")
    return f"<think>{task.explain(series, task)}</think><class>{series.label}</class>"
