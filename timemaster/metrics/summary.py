"""The figures of an evaluation, for all answers together and for each data source, and their text for the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timemaster.metrics.classification import ACCURACY, WITHOUT_TASK
from timemaster.metrics.evaluation import Evaluation, Items, Number, answers_of, common_figures, described
from timemaster.types import Group

Evaluations = Mapping[str, Evaluation]  # by data_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The headline of a metrics.json. Example: Headline(number=ACCURACY, value=0.844, ci95=(0.794, 0.884), n=250)"""

    number: Number
    value: float
    ci95: tuple[float, float]
    n: int  # rows

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.number.heading} {self.value:.3f} [{low:.3f}, {high:.3f}]"


def pooled(sources: Sequence[str], evaluations: Evaluations) -> Evaluation | None:
    """The evaluation that summarises the answers of several data sources together; None: they differ in kind.

    Rows of a data source without a recipe are measured by their rewards.
    """
    used = [evaluations.get(source, WITHOUT_TASK) for source in sources] or [WITHOUT_TASK]
    return used[0] if all(used[0].pools_with(other) for other in used) else None


def summarise(items: Items, evaluations: Evaluations, seed: int = 1) -> dict[str, Any]:
    """The figures of the answers to each row (metrics.json). Several data sources also have theirs in `by_data_source`.

    `numbers` describes what was measured, the headline first, so that a reader needs no recipe. It is empty where
    data sources of different kinds have no number in common.
    """
    sources = sorted({item[0].data_source for item in items})
    out = _figures(items, pooled(sources, evaluations), seed)
    if len(sources) > 1:
        out["by_data_source"] = {}
        for source in sources:
            source_items = [item for item in items if item[0].data_source == source]
            out["by_data_source"][source] = _figures(source_items, pooled([source], evaluations), seed)
    return out


def _figures(items: Items, evaluation: Evaluation | None, seed: int) -> dict[str, Any]:
    if evaluation is None:
        figures = {"n": len(items)} | common_figures([answer for item in items for answer in item])
        return figures | {"numbers": []}
    return evaluation.figures(items, seed) | {"numbers": described(evaluation.numbers)}


def numbers_of(figures: Mapping[str, Any]) -> list[Number]:
    """What was measured, the headline first. Figures of older versions are those of a classification."""
    if "numbers" not in figures:
        return [ACCURACY] if "accuracy" in figures else []
    return [Number(**number) for number in figures["numbers"]]


def headline_of(figures: Mapping[str, Any]) -> Headline | None:
    """The headline of a metrics.json, also of an older one; None when there is none, or no answer has the number."""
    numbers = numbers_of(figures)
    if not numbers or figures.get(numbers[0].name) is None:
        return None
    number = numbers[0]
    low, high = figures[f"{number.name}_ci95"]
    return Headline(number=number, value=figures[number.name], ci95=(low, high), n=figures["n"])


def in_words(figures: Mapping[str, Any]) -> str:
    """The figures that exist, for the console."""
    headline = headline_of(figures)
    formats = {number.name: number.heading + " {:.3f}" for number in numbers_of(figures)[1:]}
    formats |= {"macro_f1": "macro F1 {:.3f}", "format_rate": "format {:.3f}", "unparsed": "unparsed {}"}
    formats |= {"reward_mean": "reward {:.3f}", "response_tokens_mean": "{:.1f} tokens each"}
    texts = [text.format(figures[name]) for name, text in formats.items() if figures.get(name) is not None]
    return ", ".join([(f"{headline} of " if headline else "") + f"{figures['n']} rows", *texts])


def samples_in_words(figures: Mapping[str, Any]) -> str:
    """The figures of several samples per row, as text. Example: "8 samples a row: pass@1 0.500, pass@8 0.900" """
    vote = figures.get("majority")
    texts = [f"majority vote {vote['accuracy']:.3f}"] if vote else []
    texts += [f"pass@{k} {estimate['value']:.3f}" for k, estimate in figures.get("pass_at_k", {}).items()]
    return f"{figures['num_samples']} samples a row: {', '.join(texts)}"


def validation_metrics(figures: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a validation, such as val/accuracy; with several data sources also val/accuracy@source."""
    metrics = _validation_metrics(figures, "")
    for source, source_figures in figures.get("by_data_source", {}).items():
        metrics |= _validation_metrics(source_figures, f"@{source}")
    return metrics


def _validation_metrics(figures: Mapping[str, Any], suffix: str) -> dict[str, float]:
    measured = [number.name for number in numbers_of(figures)]
    names = (*measured, "macro_f1", "format_rate", "reward_mean", "response_tokens_mean")
    out = {name: figures[name] for name in names if figures.get(name) is not None}
    out |= {name: mean for name, mean in figures["parts"].items() if name not in (*measured, "format")}
    out |= {"unparsed": figures["unparsed"] / figures["n"]} if figures.get("unparsed") is not None else {}
    out |= {"unknown": figures["unknown"]} if figures["unknown"] else {}
    return {f"val/{name}{suffix}": float(value) for name, value in out.items()}


def training_numbers(groups: Sequence[Group], evaluations: Evaluations) -> dict[str, float]:
    """The metrics of a training step that the evaluations of its data sources compute from the answers."""
    metrics: dict[str, float] = {}
    waiting = list(dict.fromkeys(group.example.data_source for group in groups))
    while waiting:
        evaluation = evaluations.get(waiting[0], WITHOUT_TASK)
        alike = [source for source in waiting if evaluation.pools_with(evaluations.get(source, WITHOUT_TASK))]
        waiting = [source for source in waiting if source not in alike]
        members = [group for group in groups if group.example.data_source in alike]
        answers = [a for g in members for a in answers_of(g, evaluations.get(g.example.data_source, WITHOUT_TASK))]
        metrics |= evaluation.training_numbers(answers)
    return metrics


def shown_in_training(evaluations: Evaluations) -> list[str]:
    """The metrics of a training step that the console shows beside the mean reward."""
    used = list(evaluations.values()) or [WITHOUT_TASK]
    return list(dict.fromkeys(name for evaluation in used for name in evaluation.shown_in_training))
