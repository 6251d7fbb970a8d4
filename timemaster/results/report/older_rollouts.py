"""Rollouts without an outcome: those of older versions, and those of data sources without a recipe.

They are read here as classifications: newer rows hold the prediction, the numbers and the outcome.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from timemaster.metrics.answers import Answer
from timemaster.metrics.classification import is_correct
from timemaster.rewards import predict_label
from timemaster.series.labels import label_key

MAX_CLASSES = 100  # if there are more different truths, they are not classes


def add_outcomes(rollouts: Iterable[dict[str, Any]], evaluations: list[dict[str, Any]]) -> None:
    """Add what was `said` (None: unreadable) and the `outcome` to each row that lacks them: right, wrong, unparsed or
    unscored, by the same rule as in evaluations (`is_correct`).
    """
    older = [row for row in rollouts if "outcome" not in row]
    labels = labels_of(older, evaluations)
    for row in older:
        classes = labels.get(row["source"], [])
        has_classes = "said" in row or bool(classes)
        row["said"] = row["said"] if "said" in row else predict_label(row["text"], classes) if classes else None
        spelling = {label_key(label): label for label in classes or [row["truth"]]}
        answer = Answer(
            id="",
            data_source=row["source"],
            truth=spelling.get(label_key(row["truth"]), row["truth"]),
            prediction=row["said"] and spelling.get(label_key(str(row["said"])), row["said"]),
            choices=tuple(classes or [row["truth"]]) if has_classes else (),
            score=row["score"],
            parts=row["parts"],
        )
        right = is_correct(answer)
        if has_classes and row["said"] is None and not right:
            row["outcome"] = "unparsed"
        else:
            row["outcome"] = "unscored" if right is None else "right" if right else "wrong"


def labels_of(rollouts: Iterable[dict[str, Any]], evaluations: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The classes of each data source: those of its evaluations, else its truths if an answer chooses one of them.

    A source whose truths are not classes (free text, numbers) has none.
    """
    truths, texts = defaultdict(set), defaultdict(list)
    for row in rollouts:
        truths[row["source"]].add(row["truth"])
        texts[row["source"]].append(row["text"])
    out = {}
    for source, source_truths in truths.items():
        known = evaluated_labels(source, source_truths, evaluations)
        labels = sorted(known or source_truths)
        chosen = (predict_label(text, labels) for text in texts[source])
        if len(source_truths) <= MAX_CLASSES and (known or any(chosen)):
            out[source] = labels
    return out


def evaluated_labels(source: str, truths: set[str], evaluations: list[dict[str, Any]]) -> set[str]:
    """The classes in those evaluations of `source` that contain all of its `truths`."""
    found: set[str] = set()
    for evaluation in evaluations:
        by_source = evaluation["by_data_source"]  # None: the evaluation has a single source and does not name it
        figures = by_source.get(source, {}) if by_source else evaluation
        labels = set(figures.get("per_class") or {})
        found |= labels if truths <= labels else set()
    return found
