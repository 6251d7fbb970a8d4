"""Rows of parquet files with their answers in the spelling of their tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from timemaster.data.store import BadRow, bad_row
from timemaster.tasks.task import Task
from timemaster.types import Example, InputError


def with_task_answers(examples: Sequence[Example], tasks: Mapping[str, Task]) -> tuple[list[Example], list[BadRow]]:
    """The examples with their answers spelled as their tasks spell them ("laptop " becomes "Laptop"), and the bad rows.

    Predictions have that spelling and are compared with the answer exactly. A row is bad, and left out, when its answer
    cannot be an answer of its task. A row whose data_source has no task stays as it is. `tasks`: by data_source.
    """
    spelled: list[Example] = []
    bad: list[BadRow] = []
    for example in examples:
        task = tasks.get(example.data_source)
        if task is None:
            spelled.append(example)
            continue
        try:
            answer = task.evaluation.read_truth(example.answer)
        except InputError as error:
            bad.append(bad_row(example, f"the answer does not fit task {task.name}: {error}"))
        else:
            spelled.append(example if answer == example.answer else replace(example, answer=answer))
    return spelled, bad
