"""The file predictions.jsonl: one line per answer, whoever gave it, so that any two can be paired.

    {"prediction": "Laptop", "id": "test.parquet:17", "data_source": "computer_dataset", "truth": "Desktop",
     "response": "<think>…</think><class>Laptop</class>", "error": "", …}

`prediction` is null where the answer could not be read. Lines of several samples of a row have `sample`, from 0.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from timemaster.metrics.answers import Prediction, majority
from timemaster.series.labels import label_key
from timemaster.types import Example, InputError

NAME = "predictions.jsonl"


def prediction_row(example: Example, prediction: str | None, response: str) -> dict[str, Any]:
    """The line of an answer that did not come from a run's engine: a classifier's, an API model's."""
    parts = [part for message in example.messages for part in message.parts]
    return {
        "prediction": prediction,
        "id": example.id,
        "data_source": example.data_source,
        "prompt": "\n".join(part.text or f"[{part.kind}]" for part in parts),
        "media": [part.media.uid for part in parts if part.media],
        "response": response,
        "truth": example.answer,
        "score": None,
        "parts": {"accuracy": float(prediction == example.answer)},
        "error": "",
        "unknown": [],
        "tokens": 0,
        "finish_reason": "",
    }


def write_predictions(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write `rows` to predictions.jsonl in `folder`, under another name first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    temporary.replace(path)
    return path


def read_predictions(path: Path, data_source: str, labels: Sequence[str]) -> dict[str, Prediction]:
    """The answers to the rows of one data source, by example id. Several samples of a row are one majority vote.

    Ids are without folders ("test.parquet:17"), which they have when a run answered several files of one name.
    Raises InputError when the file is not there, is not of this form, or has no such rows.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist (looked from {Path.cwd()}): evaluate first, or correct it.")
    samples: dict[str, list[Prediction]] = defaultdict(list)
    seen, sources = set(), set()
    with open(
        path, encoding="utf-8"
    ) as file:  # its lines end at "\n"; splitlines() cuts inside of a string that holds U+2028
        for number, line in enumerate(file, start=1):
            row, one = _read_line(line, f"{path}, line {number}", labels)
            sources.add(one.data_source)
            if one.data_source == data_source:
                key = (row["id"].rsplit("/", 1)[-1], row.get("sample", 0))
                if key in seen:
                    raise InputError(f"{path}, line {number}: a second answer to {row['id']}; samples need `sample`.")
                seen.add(key)
                samples[key[0]].append(one)
    if not samples:
        raise InputError(f"{path} has no rows of {data_source!r}; it has {sorted(sources) or 'none at all'}.")
    return {key: majority(some) for key, some in samples.items()}


def _read_line(line: str, where: str, labels: Sequence[str]) -> tuple[dict[str, Any], Prediction]:
    try:
        row = json.loads(line)
        spelling = {label_key(label): label for label in labels}
        truth, predicted = (
            spelling.get(label_key(said), said) if isinstance(said, str) else said
            for said in (row["truth"], row["prediction"])
        )
        one = Prediction(
            data_source=row["data_source"],
            truth=truth,
            predicted=predicted,
            labels=list(labels),
            reward=row.get("score"),
            parts=row.get("parts") or {},
            num_tokens=row.get("tokens") or 0,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{where}: not a line of predictions ({type(error).__name__}: {error}); it needs id, data_source, truth "
            "and prediction."
        ) from error
    if "id" not in row or not (one.predicted is None or one.predicted in labels):
        raise InputError(f"{where}: `id` is missing, or {one.predicted!r} is none of {', '.join(labels)} or null.")
    return row, one
