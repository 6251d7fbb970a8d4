"""The contract of a task: what training, scoring and evaluation need to know of a dataset, as plain data and functions.

A recipe is a file with a TASK. Most use a kind of task that already exists, such as `SeriesClassification`:
`recipes/ctu.py` is an example. A task of a new kind is a `Task` with an `Evaluation` of its own. Knows nothing about
models, training or the file formats of examples.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from timemaster.environments import EnvironmentSpec
from timemaster.metrics.evaluation import Evaluation
from timemaster.rewards import RewardPart, check_parts
from timemaster.types import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One dataset as a task. Example: Task(name="height", data_source="height", rewards=(…,), evaluation=MeanError())

    Raises InputError when there are no rewards, or two reward parts could not be told apart in the log.
    """

    name: str  # in scripts and folders, such as data/<name>_image
    data_source: str  # marks the task's rows in a parquet file
    rewards: tuple[RewardPart, ...]
    evaluation: Evaluation  # how answers are read, measured and compared
    environment: EnvironmentSpec | None = None  # answers the policy's turns; None: one turn per rollout

    def __post_init__(self) -> None:
        if not self.rewards:
            raise InputError(f"Task {self.name!r}: rewards is empty; give at least one RewardPart.")
        try:
            check_parts(self.rewards)
        except InputError as error:
            raise InputError(f"Task {self.name!r}: {error}") from error


def load_task(module: str) -> Task:
    """The task of a recipe, such as load_task("recipes.ctu"): the attribute TASK of that module.

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
        raise InputError(f"Recipe {module!r} has no TASK that is a Task; see recipes/ctu.py for one.")
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


def evaluations_of(tasks: Mapping[str, Task]) -> dict[str, Evaluation]:
    """The evaluations of tasks by data_source."""
    return {source: task.evaluation for source, task in tasks.items()}
