"""Evaluation of classification: accuracy, macro F1, per class, confusion, majority vote, pass@k.

Rows without a recipe (`WITHOUT_TASK`) have an accuracy, too: their rewards say what is right.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from timemaster.metrics.answers import Answer
from timemaster.metrics.evaluation import Evaluation, Items, Number, Trivial, common_figures
from timemaster.metrics.intervals import bootstrap_shares, wilson
from timemaster.series.labels import label_key
from timemaster.types import InputError

UNPARSED = "(unparsed)"
ACCURACY = Number(name="accuracy", is_share=True)
ACCURACY_NAMES = ("acc", "accuracy", "correct")  # its names in a reward's dictionary, verl's name first


def read_nothing(text: str, labels: Sequence[str]) -> None:
    """The reader of a task without labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification(Evaluation):
    """Answers that choose one of `labels`. Example: Classification(labels=("Desktop", "Laptop"), reader=predict_label)

    Without labels, the accuracy comes from the rewards: see `is_correct`.
    """

    labels: tuple[str, ...] = ()
    reader: Callable[[str, Sequence[str]], str | None] = read_nothing  # text, labels -> the label it chooses, or None
    numbers = (ACCURACY,)
    picture = "confusion"
    unread_note = "Answers that could not be read are wrong."

    @property
    def choices(self) -> tuple[str, ...]:
        """The labels."""
        return self.labels

    @property
    def columns(self) -> dict[str, str]:
        """Macro F1 beside the accuracy."""
        return {"macro_f1": "macro F1"}

    @property
    def shown_in_training(self) -> tuple[str, ...]:
        """The reward parts that recipes of this kind have."""
        return "reward/accuracy", "reward/format"

    def read(self, text: str) -> str | None:
        """The label that a response chooses, spelled as in `labels`."""
        return self.reader(text, self.labels)

    def read_truth(self, text: str) -> str:
        """The label with the same `label_key` as `text`, spelled as in `labels`."""
        for label in self.labels:
            if label_key(label) == label_key(text):
                return label
        raise InputError(f"{text!r} is none of the labels {', '.join(self.labels)}")

    def demonstrated(self, truth: str) -> str | None:
        """The class block alone."""
        return f"<class>{truth}</class>" if self.labels else None

    def measure(self, answer: Answer) -> dict[str, float] | None:
        """The accuracy, 0 or 1; None when nothing says what is right."""
        right = is_correct(answer)
        return None if right is None else {"accuracy": float(right)}

    def outcome(self, answer: Answer) -> str:
        """Without labels no answer is unparsed: nothing had to be read."""
        outcome = Evaluation.outcome(self, answer)
        return "wrong" if outcome == "unparsed" and not answer.choices else outcome

    def vote(self, samples: Sequence[Answer]) -> Answer:
        """The majority vote, which has no rewards of its own."""
        return self.measured(majority(samples))

    def trivial(self, truths: Sequence[str]) -> Trivial | None:
        """The most frequent class."""
        label, count = Counter(truths).most_common(1)[0]
        text = f"Always {label} would be right in {100 * count / len(truths):.1f} %."
        return Trivial(value=count / len(truths), text=text, legend="always the most frequent class")

    def figures(self, items: Items, seed: int) -> dict[str, Any]:
        """The figures of the answers. None stands for what does not exist: accuracy where nothing says what is right
        (`rightness`), macro F1 and unparsed without labels.

        With several samples of a row: n counts the rows, everything else the answers; accuracy is the mean over the
        samples; `majority` has the figures of the majority vote (None without labels), `pass_at_k` those by k = 1, 2,
        4, …, the number of samples. Their intervals come from a bootstrap over rows.
        """
        answers = [answer for item in items for answer in item]
        figures = _figures(answers)
        return figures if len(items) == len(answers) else figures | _sampled_figures(items, figures, seed)

    def training_numbers(self, answers: Sequence[Answer]) -> dict[str, float]:
        """The accuracy that rewards return in their dictionaries. (A reward part of that name is logged anyway.)"""
        accuracies = [value for answer in answers if (value := own_accuracy(answer.parts)) is not None]
        return {"reward/accuracy": fmean(accuracies)} if accuracies else {}


WITHOUT_TASK = Classification()  # of rows whose data source has no recipe


def _figures(answers: Sequence[Answer]) -> dict[str, Any]:
    n = len(answers)
    correct = rightness(answers)
    labels = list(dict.fromkeys(label for answer in answers for label in answer.choices))
    per_class = {label: _class_figures(label, answers) for label in labels}
    common = common_figures(answers)
    return {
        "n": n,
        "accuracy": fmean(correct) if correct else None,
        "accuracy_ci95": list(wilson(sum(correct), n)) if correct else None,
        "macro_f1": fmean(c["f1"] for c in per_class.values()) if per_class else None,
        "format_rate": common["format_rate"],
        "unparsed": sum(answer.prediction is None for answer in answers) if labels else None,
        "per_class": per_class,
        **common,
        "confusion": _confusion(labels, answers),
    }


def _sampled_figures(items: Items, figures: Mapping[str, Any], seed: int) -> dict[str, Any]:
    num_samples = len(items[0])
    out: dict[str, Any] = {"n": len(items), "num_samples": num_samples, "majority": None, "pass_at_k": {}}
    correct = rightness([answer for item in items for answer in item])
    if correct is None:
        return out
    right = [sum(correct[i * num_samples : (i + 1) * num_samples]) for i in range(len(items))]
    powers = [2**i for i in range(num_samples.bit_length()) if 2**i < num_samples]
    columns = {str(k): [pass_at_k(num_samples, c, k) for c in right] for k in [*powers, num_samples]}
    voted = [majority(item) for item in items]
    with_labels = all(answer.choices for answer in voted)
    if with_labels:
        columns["majority"] = [float(bool(is_correct(answer))) for answer in voted]
    intervals = bootstrap_shares(columns, seed)
    out["accuracy_ci95"] = intervals["1"]
    if with_labels:
        vote_figures = _figures(voted)
        out["majority"] = {name: vote_figures[name] for name in ("accuracy", "macro_f1", "unparsed")}
        out["majority"]["accuracy_ci95"] = intervals.pop("majority")
    return out | {"pass_at_k": {k: {"value": fmean(columns[k]), "ci95": ci95} for k, ci95 in intervals.items()}}


def is_correct(answer: Answer) -> bool | None:
    """Whether an answer is right; None when nothing says so. The first of these that exists decides:

    the accuracy in the reward's dictionary (`own_accuracy`, 1 is right); with labels, whether the truth was chosen; a
    reward part called accuracy; the reward, where it is 0 or 1 (a scaled reward does not say what is right).
    """
    accuracy = own_accuracy(answer.parts)
    if accuracy is not None:
        return accuracy >= 1.0
    if answer.choices:
        return answer.prediction == answer.truth
    part = next((answer.parts[name] for name in ACCURACY_NAMES if name in answer.parts), None)
    if part is not None:
        return part >= 1.0
    return answer.reward == 1.0 if answer.reward in (0.0, 1.0) else None


def own_accuracy(parts: Mapping[str, float]) -> float | None:
    """The `acc`, `accuracy` or `correct` of a reward's dictionary. Example: {"score/acc": 1.0} gives 1.0"""
    names = (name for word in ACCURACY_NAMES for name in parts if name.endswith(f"/{word}"))
    return next((parts[name] for name in names), None)


def rightness(answers: Sequence[Answer]) -> list[bool] | None:
    """Whether each answer is right; None when this is not known for all of them.

    Two kinds of answers count as wrong although nothing says so: those whose reward a judge left unknown, and those
    whose reward's dictionary holds no accuracy while other answers of their data source have one.
    """
    with_accuracy = {answer.data_source for answer in answers if own_accuracy(answer.parts) is not None}
    right = [is_correct(answer) for answer in answers]
    undecided = [
        known is None and answer.reward is not None and answer.data_source not in with_accuracy
        for answer, known in zip(answers, right, strict=True)
    ]
    return None if any(undecided) or set(right) <= {None} else [bool(known) for known in right]


def majority(samples: Sequence[Answer]) -> Answer:
    """The majority vote of several answers to one row, without rewards: these belong to single answers."""
    if len(samples) == 1:
        return samples[0]
    return replace(samples[0], prediction=majority_label([sample.prediction for sample in samples]), parts={})


def majority_label(predictions: Sequence[str | None]) -> str | None:
    """The most frequent label; in a tie, the one that reached its count first. Unparsed answers do not vote."""
    counts: Counter[str] = Counter()
    winner = None
    for label in predictions:
        if label is not None:
            counts[label] += 1
            winner = label if winner is None or counts[label] > counts[winner] else winner
    return winner


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of `k` answers is right: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al. (2021), https://arxiv.org/abs/2107.03374, section 2.1
    """
    assert 0 <= num_right <= num_samples
    assert 1 <= k <= num_samples
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def _class_figures(label: str, answers: Sequence[Answer]) -> dict[str, float]:
    hits = sum(answer.truth == label == answer.prediction for answer in answers)
    num_predicted = sum(answer.prediction == label for answer in answers)
    num_true = sum(answer.truth == label for answer in answers)
    unparsed = sum(answer.truth == label and answer.prediction is None for answer in answers)
    return {
        "n": num_true,
        "precision": hits / num_predicted if num_predicted else 0.0,
        "recall": hits / num_true if num_true else 0.0,
        "f1": 2 * hits / (num_predicted + num_true) if num_predicted + num_true else 0.0,
        "unparsed": unparsed,
    }


def _confusion(labels: list[str], answers: Sequence[Answer]) -> dict[str, dict[str, int]]:
    """truth -> prediction -> count, with unparsed answers in a column of their own; {} without labels."""
    counts = Counter((answer.truth, answer.prediction or UNPARSED) for answer in answers)
    return {truth: {predicted: counts[truth, predicted] for predicted in [*labels, UNPARSED]} for truth in labels}
