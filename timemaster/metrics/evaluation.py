"""The contract of an evaluation: how a task's answers are read, measured, summarised and compared.

A kind of task writes a class with two methods and names its numbers, the headline first:

    class MeanError(Evaluation):
        numbers = (Number(name="error", title="mean error", higher_is_better=False),)

        def read(self, text: str) -> str | None:
            found = re.search(r"<value>(.*?)</value>", text)
            return found[1] if found else None

        def measure(self, answer: Answer) -> dict[str, float]:
            return {"error": 1.0 if answer.prediction is None else abs(float(answer.prediction) - float(answer.truth))}

Means, 95 % intervals, the paired test, tables and pictures follow from that. Knows nothing about engines, files, plots.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from timemaster.metrics.answers import OUTCOMES, Answer, answer_of_rollout, answer_of_text
from timemaster.metrics.intervals import bootstrap, bootstrap_shares, wilson
from timemaster.metrics.paired import Paired, check_pairs, mcnemar, sign_flip
from timemaster.types import Example, Group, InputError

Items = Sequence[Sequence[Answer]]  # for each example, its sampled answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number that every answer gets. Example: Number(name="error", title="mean error", higher_is_better=False)"""

    name: str  # its key in `Answer.numbers` and in metrics.json
    title: str = ""  # what its mean is called; "" is the name
    is_share: bool = False  # each answer has 0 or 1: the mean is a share, shown in percent
    higher_is_better: bool = True

    @property
    def heading(self) -> str:
        """What its mean is called."""
        return self.title or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Trivial:
    """What answers reach without looking at the data. Example: Trivial(value=0.5, text="Always Laptop would …", …)"""

    value: float  # of the headline
    text: str  # a sentence below the table
    legend: str  # of the line in the picture


class Evaluation(ABC):
    """How the answers of a task are read, measured, summarised and compared."""

    numbers: tuple[Number, ...]  # what `measure` returns; the first is the headline
    picture: str = "histogram"  # the picture of an evaluation: "histogram" of the headline, or "confusion" of choices
    unread_note: str = "Answers that could not be read have the value that the recipe gives them."

    # ---- what a kind of task must define

    @abstractmethod
    def read(self, text: str) -> str | None:
        """The prediction in a response, as text; None when it cannot be read."""

    @abstractmethod
    def measure(self, answer: Answer) -> dict[str, float] | None:
        """All `numbers` of an answer by name, even if it could not be read. None: nothing says what it is worth.

        `answer` has prediction and truth, and score and parts where rewards scored it.
        """

    # ---- what it may override

    def read_truth(self, text: str) -> str:
        """A row's answer, spelled as predictions are. Raises InputError when it cannot be an answer of this task."""
        return text

    def demonstrated(self, truth: str) -> str | None:
        """The shortest response that is read as `truth`, for examples in a prompt; None: this kind of task has none."""
        return None

    def vote(self, samples: Sequence[Answer]) -> Answer:
        """Combine several answers to one row: the first answer, with the means of all numbers.

        A share becomes 1 when more than half of the answers have it, else 0.
        """
        known = [sample.numbers for sample in samples if sample.numbers]
        means = {number.name: fmean(numbers[number.name] for numbers in known) for number in self.numbers if known}
        votes = {n.name: float(means[n.name] > 0.5) for n in self.numbers if known and n.is_share}
        return replace(samples[0], numbers=means | votes)

    def trivial(self, truths: Sequence[str]) -> Trivial | None:
        """What the best constant answer would reach; None when this is not known."""
        return None

    # ---- what follows from these

    @property
    def choices(self) -> tuple[str, ...]:
        """The closed list of possible predictions; () for open answers."""
        return ()

    @property
    def headline(self) -> Number:
        """The number by which answers are judged."""
        return self.numbers[0]

    @property
    def columns(self) -> dict[str, str]:
        """The further columns of a comparison: the key in the figures, and the heading."""
        return {number.name: number.heading for number in self.numbers[1:]}

    @property
    def interval_note(self) -> str:
        """How intervals in a comparison are made."""
        return "Intervals are Wilson's." if self.headline.is_share else "Intervals are a bootstrap's percentiles."

    @property
    def test_name(self) -> str:
        """The paired test of a comparison."""
        return "McNemar's exact test" if self.headline.is_share else "sign-flip permutation test"

    @property
    def shown_in_training(self) -> tuple[str, ...]:
        """The metrics of a training step that the console shows beside the mean reward."""
        return tuple(f"answer/{number.name}" for number in self.numbers)

    def read_answer(self, answer: Answer) -> Answer:
        """The answer with its response read and measured."""
        return self.measured(replace(answer, prediction=self.read(answer.response)))

    def outside_answer(self, example: Example, response: str, prediction: str | None) -> Answer:
        """A measured answer from outside a run: a classifier's, an API model's. Its numbers are also its parts."""
        answer = self.measured(answer_of_text(example, response, prediction))
        return replace(answer, parts=answer.numbers)

    def measured(self, answer: Answer) -> Answer:
        """The answer with `choices`, `numbers` and `outcome`. InputError when `measure` leaves out a number."""
        answer = replace(answer, choices=self.choices)
        numbers = self.measure(answer)
        values = {n.name: 0.0 if numbers is None else numbers.get(n.name, math.nan) for n in self.numbers}
        missing = [name for name, value in values.items() if not math.isfinite(value)]
        if missing:
            raise InputError(
                f"{answer.id}: {type(self).__name__}.measure gives no finite {', '.join(missing)} for the prediction "
                f"{answer.prediction!r} (truth {answer.truth!r}). Give every number, also where the prediction is None."
            )
        answer = replace(answer, numbers=numbers or {})
        outcome = self.outcome(answer)
        assert outcome in OUTCOMES, outcome
        return replace(answer, outcome=outcome)

    def outcome(self, answer: Answer) -> str:
        """One of OUTCOMES for a measured answer."""
        value = answer.numbers.get(self.headline.name)
        if value is None:
            return "unscored"
        if self.headline.is_share and value >= 1:
            return "right"
        if answer.prediction is None:
            return "unparsed"
        return "wrong" if self.headline.is_share else "measured"

    def pools_with(self, other: Evaluation) -> bool:
        """Whether answers of both may be summarised together."""
        return type(self) is type(other) and self.numbers == other.numbers

    def figures(self, items: Items, seed: int) -> dict[str, Any]:
        """What goes to metrics.json: every number's mean and <name>_ci95 over the examples, and `common_figures`.

        The interval is Wilson's for shares with one answer per example. Otherwise it is a bootstrap over examples,
        because samples of one example are not independent. None stands for what does not exist.
        """
        answers = [answer for item in items for answer in item]
        known = [samples for item in items if (samples := [answer.numbers for answer in item if answer.numbers])]
        columns = {n.name: [fmean(numbers[n.name] for numbers in samples) for samples in known] for n in self.numbers}
        reals = bootstrap({n.name: columns[n.name] for n in self.numbers if not n.is_share}, seed) if known else {}
        shares = bootstrap_shares({n.name: columns[n.name] for n in self.numbers if n.is_share}, seed) if known else {}
        if len(items) == len(answers):
            shares = {name: list(wilson(round(sum(columns[name])), len(known))) for name in shares}
        intervals = reals | shares
        out: dict[str, Any] = {"n": len(items)}
        if len(items) < len(answers):
            out["num_samples"] = len(items[0])
        for number in self.numbers:
            column = columns[number.name]
            out[number.name] = fmean(column) if column else None
            out[f"{number.name}_ci95"] = intervals.get(number.name)
        out["unparsed"] = sum(answer.prediction is None for answer in answers)
        out["unmeasured"] = sum(not answer.numbers for answer in answers)
        return out | common_figures(answers)

    def training_numbers(self, answers: Sequence[Answer]) -> dict[str, float]:
        """The metrics of a training step from its measured answers, beside those of their rewards."""
        known = [answer.numbers for answer in answers if answer.numbers]
        return {f"answer/{n.name}": fmean(numbers[n.name] for numbers in known) for n in self.numbers if known}

    def paired_test(
        self, first: Mapping[str, Answer], second: Mapping[str, Answer], names: tuple[str, str] = ("first", "second")
    ) -> Paired:
        """Whether two sets of measured answers, by example id, differ in the headline.

        McNemar's test for shares, else a sign-flip permutation test. For a share, an answer without the number
        is wrong; otherwise its example is left out. Raises InputError when ids or truths do not match.
        """
        check_pairs(first, second, names)
        name = self.headline.name
        if self.headline.is_share:
            right = [[answers[key].numbers.get(name, 0.0) >= 1 for key in first] for answers in (first, second)]
            return mcnemar(*right)
        keys = [key for key in first if name in first[key].numbers and name in second[key].numbers]
        return sign_flip([first[key].numbers[name] for key in keys], [second[key].numbers[name] for key in keys])


def answers_of(group: Group, evaluation: Evaluation | None) -> list[Answer]:
    """A group's rollouts as answers, read and measured; None: their data source has no recipe, so they are not read."""
    answers = [answer_of_rollout(group.example, rollout) for rollout in group.rollouts]
    if evaluation is None:
        return [replace(answer, is_read=False) for answer in answers]
    return [evaluation.read_answer(answer) for answer in answers]


def common_figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """The figures that every kind of task has: rewards, their parts, lengths. None stands for what does not exist."""
    rewards = [answer.reward for answer in answers if answer.reward is not None]
    formats = [answer.parts["format"] for answer in answers if "format" in answer.parts]
    parts = sorted({name for answer in answers for name in answer.parts})
    return {
        "format_rate": fmean(formats) if formats else None,
        "reward_mean": fmean(rewards) if rewards else None,
        "unknown": len(answers) - len(rewards),
        "parts": {name: fmean(a.parts[name] for a in answers if name in a.parts) for name in parts},
        "response_tokens_mean": fmean(a.tokens for a in answers) if answers else None,
        "prompt_tokens_mean": fmean(a.prompt_tokens for a in answers) if answers else None,
    }


def described(numbers: Sequence[Number]) -> list[dict[str, Any]]:
    """The numbers as metrics.json holds them, so that its readers need no recipe."""
    return [asdict(number) for number in numbers]
