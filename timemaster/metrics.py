"""What a set of predictions is worth: accuracy with its interval, macro F1, per class, unparsed answers apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

UNPARSED = "(unparsed)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answer. Example: Prediction(data_source="computer_dataset", truth="Laptop", predicted=None, …)"""

    data_source: str
    truth: str
    predicted: str | None  # None: the answer could not be read
    labels: list[str]  # the task's classes; empty for tasks without
    reward: float
    parts: dict[str, float]
    num_tokens: int


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion. Source: Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953"""
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def summarise(answers: Sequence[Prediction]) -> dict[str, Any]:
    """All figures of a set of predictions; with several data sources also each by itself under `by_data_source`."""
    out = _summary(answers)
    sources = sorted({one.data_source for one in answers})
    if len(sources) > 1:
        out["by_data_source"] = {s: _summary([one for one in answers if one.data_source == s]) for s in sources}
    return out


def _summary(answers: Sequence[Prediction]) -> dict[str, Any]:
    n = len(answers)
    correct = [_correct(one) for one in answers]
    labels = list(dict.fromkeys(label for one in answers for label in one.labels))
    per_class = {label: _class_figures(label, answers) for label in labels}
    formats = [one.parts["format"] for one in answers if "format" in one.parts]
    return {
        "n": n,
        "accuracy": fmean(correct) if n else 0.0,
        "accuracy_ci95": list(wilson(sum(correct), n)),
        "macro_f1": fmean(c["f1"] for c in per_class.values()) if per_class else None,
        "format_rate": fmean(formats) if formats else None,
        "unparsed": sum(one.predicted is None for one in answers) if labels else 0,
        "per_class": per_class,
        "reward_mean": fmean(one.reward for one in answers) if n else 0.0,
        "response_tokens_mean": fmean(one.num_tokens for one in answers) if n else 0.0,
        "confusion": _confusion(labels, answers),
    }


def _correct(one: Prediction) -> bool:
    if one.labels:
        return one.predicted == one.truth
    return one.parts.get("accuracy", one.reward) >= 1.0


def _class_figures(label: str, answers: Sequence[Prediction]) -> dict[str, float]:
    hits = sum(one.truth == label == one.predicted for one in answers)
    said, true = sum(one.predicted == label for one in answers), sum(one.truth == label for one in answers)
    unparsed = sum(one.truth == label and one.predicted is None for one in answers)
    return {
        "n": true,
        "precision": hits / said if said else 0.0,
        "recall": hits / true if true else 0.0,
        "f1": 2 * hits / (said + true) if said + true else 0.0,
        "unparsed": unparsed,
    }


def _confusion(labels: list[str], answers: Sequence[Prediction]) -> dict[str, dict[str, int]]:
    """truth -> predicted -> count, with unparsed answers in a column of their own; {} without labels."""
    counts = Counter((one.truth, one.predicted or UNPARSED) for one in answers)
    return {truth: {said: counts[truth, said] for said in [*labels, UNPARSED]} for truth in labels}
