"""The contract of a task, its kinds, and the commands that make and check their data."""

from timemaster.metrics.answers import Answer
from timemaster.metrics.evaluation import Evaluation, Number
from timemaster.tasks.classification import (
    IMAGE,
    SMALL_PLOT,
    SeriesClassification,
    as_series_classification,
    demonstration,
)
from timemaster.tasks.task import (
    Task,
    evaluations_of,
    find_recipes,
    load_task,
    load_tasks,
)

__all__ = [
    "IMAGE",
    "SMALL_PLOT",
    "Answer",
    "Evaluation",
    "Number",
    "SeriesClassification",
    "Task",
    "as_series_classification",
    "demonstration",
    "evaluations_of",
    "find_recipes",
    "load_task",
    "load_tasks",
]
