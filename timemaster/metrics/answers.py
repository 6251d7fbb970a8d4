"""What predictions are worth: accuracy with its interval, macro F1, per class, several samples, pairs compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

from timemaster.types import InputError

UNPARSED = "(unparsed)"
ACCURACY = ("acc", "accuracy", "correct")  # a reward's own word for it, verl's first
NUM_RESAMPLES = 2000
Answers = TypeVar("Answers")  # a prediction, or the predictions of one item


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answer. Example: Prediction(data_source="computer_dataset", truth="Laptop", predicted=None, …)"""

    data_source: str
    truth: str
    predicted: str | None  # None: the answer could not be read
    labels: list[str]  # the task's classes; empty for tasks without
    reward: float | None  # None: a judge could not settle a part of it
    parts: dict[str, float]
    num_tokens: int  # sampled
    num_prompt_tokens: int = 0  # before the first sampled one, image tokens included


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A line of a comparison. Example: Result(name="1nn_euclid", kind="baseline", accuracy=0.576, n=250, …)"""

    name: str
    kind: str  # "baseline", "model", "predictions", "checkpoint" or "quoted"
    accuracy: float
    n: int | None = None  # None, as everything below: not known
    ci95: tuple[float, float] | None = None
    macro_f1: float | None = None
    unparsed: float | None = None  # share of all answers
    p: float | None = None  # McNemar's, against the reference
    note: str = ""  # where it comes from


def how_sampled(temperature: float, top_p: float = 1.0, top_k: int = -1) -> str:
    """What to call answers. Examples: "greedy", "sampled at temperature 0.4, top-p 0.9" """
    if temperature == 0:
        return "greedy"
    more = (f", top-p {top_p:g}" if top_p < 1 else "") + (f", top-k {top_k}" if top_k > 0 else "")
    return f"sampled at temperature {temperature:g}{more}"


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion. Source: Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953"""
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def summarise(answers: Sequence[Prediction]) -> dict[str, Any]:
    """All figures of a set of predictions; with several data sources also each by itself under `by_data_source`.

    None stands for what does not exist: accuracy where nothing says what is right (`rightness`), macro F1 and unparsed
    without labels, the format's rate without such a part, means of nothing.
    """
    return _by_source(answers, _summary, lambda one: one.data_source)


def summarise_samples(items: Sequence[Sequence[Prediction]], seed: int = 1) -> dict[str, Any]:
    """The figures of several sampled answers per item, as `summarise` gives them, with

        n                        items; every other count is of answers
        accuracy                 the mean over the samples, as `pass_at_k` of 1
        majority                 accuracy, macro F1 and unparsed of the majority vote; None for tasks without labels
        pass_at_k                by k = 1, 2, 4, …, the number of samples

    Intervals are percentiles of a seeded bootstrap over items: an item's samples stay together, for they are not
    independent.
    """
    return _by_source(items, lambda some: _sampled_summary(some, seed), lambda item: item[0].data_source)


def _by_source(
    answers: Sequence[Answers], figures: Callable[[Sequence[Answers]], dict[str, Any]], source: Callable[[Answers], str]
) -> dict[str, Any]:
    out = figures(answers)
    sources = sorted({source(one) for one in answers})
    if len(sources) > 1:
        out["by_data_source"] = {s: figures([one for one in answers if source(one) == s]) for s in sources}
    return out


def _summary(answers: Sequence[Prediction]) -> dict[str, Any]:
    n = len(answers)
    correct = rightness(answers)
    labels = list(dict.fromkeys(label for one in answers for label in one.labels))
    per_class = {label: _class_figures(label, answers) for label in labels}
    formats = [one.parts["format"] for one in answers if "format" in one.parts]
    rewards = [one.reward for one in answers if one.reward is not None]
    parts = sorted({name for one in answers for name in one.parts})
    return {
        "n": n,
        "accuracy": fmean(correct) if correct else None,
        "accuracy_ci95": list(wilson(sum(correct), n)) if correct else None,
        "macro_f1": fmean(c["f1"] for c in per_class.values()) if per_class else None,
        "format_rate": fmean(formats) if formats else None,
        "unparsed": sum(one.predicted is None for one in answers) if labels else None,
        "per_class": per_class,
        "reward_mean": fmean(rewards) if rewards else None,
        "unknown": n - len(rewards),
        "parts": {name: fmean(one.parts[name] for one in answers if name in one.parts) for name in parts},
        "response_tokens_mean": fmean(one.num_tokens for one in answers) if n else None,
        "prompt_tokens_mean": fmean(one.num_prompt_tokens for one in answers) if n else None,
        "confusion": _confusion(labels, answers),
    }


def _sampled_summary(items: Sequence[Sequence[Prediction]], seed: int) -> dict[str, Any]:
    num_samples = len(items[0])
    figures = _summary([one for item in items for one in item])
    figures |= {"n": len(items), "num_samples": num_samples, "majority": None, "pass_at_k": {}}
    correct = rightness([one for item in items for one in item])
    if correct is None:
        return figures
    right = [sum(correct[i * num_samples : (i + 1) * num_samples]) for i in range(len(items))]
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    columns = {str(k): [pass_at_k(num_samples, c, k) for c in right] for k in [*powers, num_samples]}
    voted = [majority(item) for item in items]
    with_labels = all(one.labels for one in voted)
    if with_labels:
        columns["majority"] = [float(bool(is_correct(one))) for one in voted]
    intervals = bootstrap(columns, seed)
    figures["accuracy_ci95"] = intervals["1"]
    if with_labels:
        of_votes = _summary(voted)
        figures["majority"] = {name: of_votes[name] for name in ("accuracy", "macro_f1", "unparsed")}
        figures["majority"]["accuracy_ci95"] = intervals.pop("majority")
    pass_at = {k: {"value": fmean(columns[k]), "ci95": interval} for k, interval in intervals.items()}
    return figures | {"pass_at_k": pass_at}


def is_correct(one: Prediction) -> bool | None:
    """Whether an answer is right; None where nothing says so. The first of these that there is decides:

    the accuracy in the reward's dictionary (`own_accuracy`, 1 is right); with labels, whether the truth was chosen; a
    reward part called accuracy; the reward, where it is 0 or 1 (a scaled one does not say what is right).
    """
    own = own_accuracy(one.parts)
    if own is not None:
        return own >= 1.0
    if one.labels:
        return one.predicted == one.truth
    worth = next((one.parts[name] for name in ACCURACY if name in one.parts), None)
    if worth is not None:
        return worth >= 1.0
    return one.reward == 1.0 if one.reward in (0.0, 1.0) else None


def own_accuracy(parts: Mapping[str, float]) -> float | None:
    """What a reward called `acc`, `accuracy` or `correct` in its dictionary. Example: {"score/acc": 1.0} gives 1.0"""
    names = (name for word in ACCURACY for name in parts if name.endswith(f"/{word}"))
    return next((parts[name] for name in names), None)


def rightness(answers: Sequence[Prediction]) -> list[bool] | None:
    """Whether each answer is right; None where nothing says so.

    Two kinds of answers are wrong although nothing says so: those whose reward a judge left unknown, and those whose
    reward's dictionary holds no accuracy while others of their data source have one.
    """
    told = {one.data_source for one in answers if own_accuracy(one.parts) is not None}
    found = [is_correct(one) for one in answers]
    is_open = [
        right is None and one.reward is not None and one.data_source not in told
        for one, right in zip(answers, found, strict=True)
    ]
    return None if any(is_open) or set(found) <= {None} else [bool(right) for right in found]


def majority(samples: Sequence[Prediction]) -> Prediction:
    """The majority vote of several answers to one item, of which rewards say nothing."""
    if len(samples) == 1:
        return samples[0]
    return replace(samples[0], predicted=vote([one.predicted for one in samples]), parts={})


def vote(predicted: Sequence[str | None]) -> str | None:
    """The label most answers chose; of equally many, the one that got there first. Unparsed answers do not vote."""
    counts: Counter[str] = Counter()
    winner = None
    for label in predicted:
        if label is not None:
            counts[label] += 1
            winner = label if winner is None or counts[label] > counts[winner] else winner
    return winner


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Estimated probability that one of `k` answers is right: 1 - C(n - c, k) / C(n, k), without bias.

    Source: Chen et al. (2021), https://arxiv.org/abs/2107.03374, section 2.1
    """
    assert 0 <= num_right <= num_samples
    assert 1 <= k <= num_samples
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def bootstrap(columns: Mapping[str, Sequence[float]], seed: int) -> dict[str, list[float]]:
    """95 % intervals of the columns' means: percentiles over NUM_RESAMPLES draws of the same items for all columns.

    A column of nothing but 0 or nothing but 1, which no draw can vary, gets Wilson's interval.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    values = np.array(list(columns.values())).T  # [items, columns]
    draws = (values[rng.integers(0, len(values), len(values))].mean(axis=0) for _ in range(NUM_RESAMPLES))
    ends = np.percentile(np.array(list(draws)), [2.5, 97.5], axis=0)
    out = {name: [float(low), float(high)] for name, low, high in zip(columns, *ends, strict=True)}
    constant = [name for name, column in columns.items() if set(column) in ({0.0}, {1.0})]
    return out | {name: list(wilson(round(sum(columns[name])), len(values))) for name in constant}


@dataclass(frozen=True, slots=True)
class Paired:
    """Two sets of answers to the same items. Example: Paired(only_first=31, only_second=12, p=0.0054)"""

    only_first: int  # items that the first alone has right
    only_second: int
    p: float  # of so uneven a split, or a more uneven one, were both equally good


def mcnemar(
    first: Mapping[str, Prediction], second: Mapping[str, Prediction], names: tuple[str, str] = ("first", "second")
) -> Paired:
    """McNemar's test, exact and two-sided, of answers by example id.

    p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2), where b and c items are right in one set alone.
    Source: McNemar (1947), https://doi.org/10.1007/BF02295996. Raises InputError when ids or truths do not match.
    """
    check_pairs(first, second, names)
    b = sum(bool(is_correct(one)) and not is_correct(second[key]) for key, one in first.items())
    c = sum(bool(is_correct(one)) and not is_correct(first[key]) for key, one in second.items())
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return Paired(b, c, min(1.0, 2 * tail / 2 ** (b + c)))


def check_pairs(
    first: Mapping[str, Prediction], second: Mapping[str, Prediction], names: tuple[str, str] = ("first", "second")
) -> None:
    """InputError unless both hold the same ids with the same truths."""
    alone = [sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())]
    if alone[0] or alone[1]:
        each = (f"{len(ids)} are only in {name} {ids[:1]}" for ids, name in zip(alone, names, strict=True))
        raise InputError(
            f"{names[0]} and {names[1]} cannot be paired: of their examples, {' and '.join(each)}. Answer the same "
            "rows of the same file with both, leaving none out."
        )
    other = [key for key, one in first.items() if one.truth != second[key].truth]
    if other:
        raise InputError(
            f"{names[0]} and {names[1]} cannot be paired: {len(other)} examples have another truth, as {other[0]}: "
            f"{first[other[0]].truth!r} and {second[other[0]].truth!r}. One of them answered another file of that name."
        )


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
