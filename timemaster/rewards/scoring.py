"""From reward parts to scores: a `Scorer` calls the parts and returns the weighted sum of their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from timemaster.config.registries import ON_ERROR
from timemaster.judge import ChatRefused
from timemaster.rewards.group import GroupScoring
from timemaster.rewards.outcome import Outcome
from timemaster.rewards.reward_part import RewardPart
from timemaster.system.calls import Caller, CallsStuck, described
from timemaster.types import Example, InputError, Rollout, Score


def score(rollout: Rollout, example: Example, parts: Sequence[RewardPart], on_error: str = "raise") -> Score:
    """The score of one rollout, waited for without a limit: for scripts and tests. A run scores with a `Scorer`."""
    scorer = Scorer(lambda _: parts, on_error, num_threads=len(parts))
    try:
        result = scorer.submit(rollout, example).result()
    finally:
        scorer.close()
    if result is None:
        raise InputError(f"the rollout of {example.id!r} has failed and cannot be scored: {rollout.failure}")
    return result


class Scorer:
    """Scores rollouts in the background.

    Parts run at the same time: plain functions in `num_threads` threads, `async` ones (a judge) on one event loop, and
    any awaitable that a part returns is awaited on that loop, too. `timeout`: see `Caller`. Parts that ask a judge have
    no time limit, because the judge's calls have limits of their own and wait for each other.
    """

    def __init__(
        self,
        parts_of: Callable[[Example], Sequence[RewardPart]],
        on_error: str,
        num_threads: int,
        timeout: float = 0.0,
    ) -> None:
        if on_error not in ON_ERROR:
            raise InputError(f"on_error is {on_error!r}; allowed: {', '.join(ON_ERROR)}.")
        self._parts_of, self._on_error = parts_of, on_error
        self._caller = Caller(num_threads, timeout, "reward", "reward.timeout")

    def start_group(self, example: Example, num_rollouts: int) -> GroupScoring:
        """Begin to score the rollouts of one prompt: `add` each of them to what this returns, when it is finished.

        A score is the weighted sum of the parts, and every part by name, unweighted. A part that returns a dict counts
        with its "score"; its other finite numbers are reported as "<part>/<key>", everything else in it is left out.
        {"score": None, "reason": "…"} means unknown: the part is left out of total and values and named in
        `Score.unknown`.

        These are errors: a part raises, exits or is cancelled; it takes too long; it returns NaN, infinity or no
        number; a batched part does not return one value per rollout. With on_error="raise" an error is an
        InputError that names example, part and cause. With "zero" the part counts 0.0, and `Score.error` has the cause.
        ChatRefused (by a judge: key, address, budget) and CallsStuck are raised in both cases, because every later
        rollout would fail in the same way.

        A part with `only_if` is 0.0, without being called, when one of the parts named there is not above 0. A part is
        unknown when a part that it depends on is unknown. A dependency with an error counts as 0.0.

        Every call gets copies of rollout and example, so that a reward can change neither. Raises InputError at once
        for an example without rewards, and for parts with dependencies that cannot be met.
        """
        parts = self._parts_of(example)
        to_score = partial(total_of, parts, example=example, on_error=self._on_error)
        return GroupScoring(self._caller, parts, example, num_rollouts, to_score)

    def submit(self, rollout: Rollout, example: Example) -> Future[Score | None]:
        """Start to score one rollout as a group of one. See `start_group`."""
        return self.start_group(example, 1).add(0, rollout)

    def close(self) -> None:
        """End the threads."""
        self._caller.close()


def total_of(parts: Sequence[RewardPart], outcomes: Sequence[Outcome], example: Example, on_error: str) -> Score:
    """The score that the outcomes of the parts make; see `Scorer.start_group`."""
    values: dict[str, float] = {}
    errors: list[str] = []
    unknown: list[str] = []
    total = 0.0
    for part, outcome in zip(parts, outcomes, strict=True):
        if outcome.unknown:
            unknown.append(part.name)
            errors.append(f"reward part {part.name!r} is unknown: {outcome.unknown}")
            continue
        if outcome.failure is not None:
            message = f"reward part {part.name!r} failed on example {example.id!r}: {described(outcome.failure)}"
            _raise_if_it_ends_the_run(outcome.failure, message)
            if on_error == "raise":
                raise InputError(message[0].upper() + message[1:]) from outcome.failure
            errors.append(message)
        values[part.name] = outcome.value
        values |= {f"{part.name}/{key}": number for key, number in outcome.more.items()}
        total += part.weight * outcome.value
    if not math.isfinite(total):
        message = f"the total of example {example.id!r} is {total}, out of {values}"
        if on_error == "raise":
            raise InputError(message[0].upper() + message[1:])
        errors, total = [*errors, message], 0.0
    return Score(total=total, parts=values, error="; ".join(errors), unknown=tuple(unknown))


def _raise_if_it_ends_the_run(failure: BaseException, message: str) -> None:
    if isinstance(failure, CallsStuck):
        raise CallsStuck(message[0].upper() + message[1:])
    if isinstance(failure, ChatRefused):
        raise failure
    if isinstance(failure, BaseExceptionGroup):  # of tasks that a reward awaits together
        for inner in failure.exceptions:
            _raise_if_it_ends_the_run(inner, message)
