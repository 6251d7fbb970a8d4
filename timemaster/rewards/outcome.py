"""What a call of a reward came to: a number, several, unknown, or a failure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

NUM_SHOWN = 500  # characters of a judge's reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a call came to. Example: Outcome(value=1.0, more={"acc": 1.0})"""

    value: float = 0.0
    more: Mapping[str, float] = field(default_factory=dict)  # further numbers that the reward gave, by name
    unknown: str = ""  # why a judge could not settle it
    failure: BaseException | None = None  # what was raised instead


def settled_outcome(call: Future[Outcome]) -> Outcome:
    """The outcome of a call that is done; what it raised is the outcome's failure."""
    failure = call.exception()
    return call.result() if failure is None else Outcome(failure=failure)


def outcome_of(result: Any) -> Outcome:
    """What a reward returned, as numbers. Raises ValueError for anything else, and what the user's objects raise."""
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


def _number(value: Any, result: Any) -> float:
    number = finite(value)
    if number is None:
        raise ValueError(f"a finite number is expected, got {result!r:.200}")
    return number


def finite(value: Any) -> float | None:
    """`value` as a float; None when it is no number, several, or not finite."""
    if not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except Exception:  # the user's value, of any library: an array of several numbers, an int beyond all floats
        return None
    return number if math.isfinite(number) else None
