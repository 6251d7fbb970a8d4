"""The file predictions.jsonl: one line per answer, whatever gave the answer. Any two files can be compared in pairs.

    {"prediction": "Laptop", "id": "test.parquet:17", "data_source": "computer_dataset", "truth": "Desktop",
     "response": "<think>…</think><class>Laptop</class>", "error": "", …}

The lines are answer rows (`metrics.answers`). `prediction` is null where the response could not be read. If a row
has several samples, their lines have `sample`, counted from 0.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from timemaster.metrics.answers import Answer, from_row, to_row
from timemaster.metrics.evaluation import Evaluation, Items
from timemaster.system.files import replacing
from timemaster.types import InputError

NAME = "predictions.jsonl"


def write_predictions(folder: Path, items: Items) -> Path:
    """Write the answers to each row to predictions.jsonl in `folder`. The file is complete or does not change."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for item in items:
            for k, answer in enumerate(item):
                sample = {"sample": k} if len(item) > 1 else {}
                file.write(json.dumps({"prediction": None} | sample | to_row(answer)) + "\n")
    return path


def read_predictions(path: Path, data_source: str, evaluation: Evaluation) -> dict[str, Answer]:
    """The measured answers to the rows of one data source, by example id. Several samples of a row become one vote.

    Ids are returned without folders ("test.parquet:17"). In the file they have folders when a run answered several
    files with the same name.
    Raises InputError when the file does not exist, is not of this form, or has no such rows.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist (looked from {Path.cwd()}): evaluate first, or correct it.")
    samples: dict[str, list[Answer]] = defaultdict(list)
    seen, sources = set(), set()
    with open(path, encoding="utf-8") as file:  # not splitlines(), which cuts at a U+2028 inside a string
        for number, line in enumerate(file, start=1):
            row, answer = _read_line(line, f"{path}, line {number}")
            sources.add(answer.data_source)
            if answer.data_source != data_source:
                continue
            key = (answer.id.rsplit("/", 1)[-1], row.get("sample", 0))
            if key in seen:
                raise InputError(f"{path}, line {number}: a second answer to {answer.id}; samples need `sample`.")
            seen.add(key)
            samples[key[0]].append(_measured(answer, evaluation, f"{path}, line {number}"))
    if not samples:
        raise InputError(f"{path} has no rows of {data_source!r}; it has {sorted(sources) or 'none at all'}.")
    return {key: evaluation.vote(answers) for key, answers in samples.items()}


def _read_line(line: str, where: str) -> tuple[dict[str, Any], Answer]:
    try:
        row = json.loads(line)
        if "prediction" not in row:
            raise InputError("prediction is missing")
        return row, from_row(row)
    except (ValueError, TypeError, AttributeError) as error:  # InputError is a ValueError
        raise InputError(
            f"{where}: not a line of predictions ({error}); it needs id, data_source, truth and prediction."
        ) from error


def _measured(answer: Answer, evaluation: Evaluation, where: str) -> Answer:
    """The answer as the evaluation measures it, truth and prediction in its spelling."""
    try:
        truth = evaluation.read_truth(answer.truth)
    except InputError:
        truth = answer.truth  # an answer to other data: the comparison of the truths reports it
    if answer.prediction is None:
        return evaluation.measured(replace(answer, truth=truth))
    try:
        prediction = evaluation.read_truth(answer.prediction)
    except InputError as error:
        raise InputError(f"{where}: the prediction is not null, and {error}") from error
    return evaluation.measured(replace(answer, truth=truth, prediction=prediction))
