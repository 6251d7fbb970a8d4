"""Reading what a reward returned: a number, a dict of numbers, unknown, or one of these per rollout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

NUM_SHOWN = 500  # characters of a judge's reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one part for one rollout. Example: Outcome(value=1.0, more={"acc": 1.0})"""

    value: float = 0.0
    more: Mapping[str, float] = field(default_factory=dict)  # further numbers that the reward returned, by name
    unknown: str = ""  # why the value could not be determined, for instance by a judge
    failure: BaseException | None = None  # what was raised, or a TimeoutError


def outcome_of(result: Any) -> Outcome:
    """What a reward returned, as numbers. Raises ValueError for anything else, and any error of the user's objects."""
    if not isinstance(result, Mapping):
        return Outcome(value=_number(result, result))
    if "score" not in result:
        raise ValueError(f"a dict with 'score' is expected, got {result!r:.200}")
    if result["score"] is None:
        return Outcome(unknown=str(result.get("reason") or "")[:NUM_SHOWN] or "no reason given")
    more = {str(key): finite(value) for key, value in result.items() if key != "score"}
    return Outcome(
        value=_number(result["score"], result),
        more={key: number for key, number in more.items() if number is not None},
    )


def outcomes_of(result: Any, num_rollouts: int) -> list[Outcome]:
    """What a batched reward returned: one value per rollout. Raises ValueError for another number of values.
    A value that is not a number is a failure of its rollout alone.
    """
    if isinstance(result, str | Mapping) or not (hasattr(result, "__len__") and hasattr(result, "__iter__")):
        raise ValueError(f"a list of {num_rollouts} values is expected, one per rollout, got {result!r:.200}")
    values = list(result)
    if len(values) != num_rollouts:
        raise ValueError(f"{num_rollouts} values are expected, one per rollout, got {len(values)}: {result!r:.200}")
    return [_outcome_or_failure(value) for value in values]


def _outcome_or_failure(value: Any) -> Outcome:
    try:
        return outcome_of(value)
    except BaseException as error:  # of the user's objects
        return Outcome(failure=error)


def _number(value: Any, result: Any) -> float:
    number = finite(value)
    if number is None:
        raise ValueError(f"a finite number is expected, got {result!r:.200}")
    return number


def finite(value: Any) -> float | None:
    """`value` as a float; None unless it is one finite number."""
    if not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except Exception:  # the user's value, of any library: an array of several numbers, an int too large for a float
        return None
    return number if math.isfinite(number) else None
