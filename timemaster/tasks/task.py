"""A task: everything that is special about one dataset, as plain data and functions. A recipe is a file with one.

Knows nothing about models, training or the file formats of examples; see `recipes/ctu.py` for a whole one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from timemaster.environments import EnvironmentSpec
from timemaster.rewards import RewardPart, check_parts, predict_label
from timemaster.series.labels import label_key
from timemaster.series.numeric import DECIMALS
from timemaster.series.plot import PlotStyle
from timemaster.series.splits import Series
from timemaster.types import InputError

IMAGE = "<image>"
# 16 vision tokens, one colour a channel: what a model of a million parameters can learn to look at.
SMALL_PLOT = PlotStyle(width=112, height=112, line_width=2.0, axes=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One dataset as a task. Example: Task(name="ctu", data_source="computer_dataset", labels=("Desktop", "Laptop"), …)

    Raises InputError when the labels repeat, the question has not exactly one `<image>`, a number is out of range, or
    two reward parts could not be told apart in the log.
    """

    name: str  # of scripts and folders: data/<name>_image
    data_source: str  # marks the task's rows in a parquet file
    labels: tuple[str, ...]  # class 0, class 1, …
    question: str  # the user turn; the plot goes where `<image>` stands
    # folder or zip (None: fetch it) -> "train", "test" and, where the set has one, "validation"
    load: Callable[[Path | None], dict[str, list[Series]]]
    plot: PlotStyle
    small_plot: PlotStyle = SMALL_PLOT  # for the embedded tiny model: `prepare --plot small`
    decimals: int = DECIMALS  # of a reading with data.modality=numeric: as many as keep the readings apart
    rewards: tuple[RewardPart, ...]
    explain: Callable[[Series, Task], str] | None = None  # true facts of a series that its plot shows
    environment: EnvironmentSpec | None = None  # answers the policy's turns; None: one turn per rollout
    validation_fraction: float = 0.1  # of the train split, cut where `load` gives no "validation"

    def __post_init__(self) -> None:
        if len({label_key(label) for label in self.labels}) != len(self.labels) or not self.labels:
            raise InputError(f"Task {self.name!r}: labels {self.labels} must be there and differ (case ignored).")
        if self.question.count(IMAGE) != 1:
            raise InputError(f"Task {self.name!r}: the question has {self.question.count(IMAGE)} {IMAGE}; needs one.")
        if not 0 < self.validation_fraction < 1:
            raise InputError(f"Task {self.name!r}: validation_fraction is {self.validation_fraction}; 0 < it < 1.")
        if self.decimals < 0:
            raise InputError(f"Task {self.name!r}: decimals is {self.decimals}; give 0 or more.")
        if not self.rewards:
            raise InputError(f"Task {self.name!r}: rewards is empty; give at least one RewardPart.")
        try:
            check_parts(self.rewards)
        except InputError as error:
            raise InputError(f"Task {self.name!r}: {error}") from error


def predict(task: Task, text: str) -> str | None:
    """The label that `text` chooses; None when it cannot be read (see `predict_label`)."""
    return predict_label(text, task.labels)


def demonstration(task: Task, series: Series) -> str:
    """A perfect answer for `series`: "<think>facts</think><class>Label</class>". The task needs an explainer."""
    if task.explain is None:
        raise InputError(f"Task {task.name!r} has no `explain` function, so there are no demonstrations to make.")
    return f"<think>{task.explain(series, task)}</think><class>{series.label}</class>"


def load_task(module: str) -> Task:
    """The task of a recipe, as in load_task("recipes.ctu"): the attribute TASK of that module.

    Raises InputError when the module cannot be imported or has no such attribute.
    """
    try:
        task = getattr(importlib.import_module(module), "TASK", None)
    except InputError:
        raise
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            raise InputError(f"No recipe {module!r}; there are {find_recipes()}. Write the name with dots.") from error
        raise InputError(f"Recipe {module!r}: importing it failed: {error!r}.") from error
    if not isinstance(task, Task):
        raise InputError(f"Recipe {module!r} has no TASK = Task(...); see recipes/ctu.py for one.")
    return task


def load_tasks(modules: Sequence[str]) -> dict[str, Task]:
    """The tasks of several recipes by their data_source. Raises InputError when two share one."""
    tasks: dict[str, Task] = {}
    for module in modules:
        task = load_task(module)
        if task.data_source in tasks:
            raise InputError(f"Recipe {module!r}: data_source {task.data_source!r} is already another recipe's.")
        tasks[task.data_source] = task
    return tasks


def find_recipes() -> list[str]:
    """The modules of all recipes, sorted. Example: ["recipes.ctu", "recipes.italy_power"]"""
    import recipes

    return sorted(f"recipes.{m.name}" for m in pkgutil.iter_modules(recipes.__path__) if not m.name.startswith("_"))
