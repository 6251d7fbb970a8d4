"""A setting as a field of a dataclass: its default, its meaning and its rule, written once.

    lr: float = setting(1e-6, "learning rate after the warm-up", above(0))

Meaning and rule are kept in the field's metadata. `--help` prints both, the checks apply the rule.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import Field, dataclass, field
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")
Checked = TypeVar("Checked", contravariant=True)


@dataclass(frozen=True, slots=True)
class Rule(Generic[Checked]):
    """Which values a setting may have. Example: Rule(lambda: "greater than 0", lambda value: value > 0)"""

    describe: Callable[[], str]  # completes the sentence "must be …"; a function, since a registry may grow
    holds: Callable[[Checked], bool]
    advice: str = ""  # a further sentence of the error message


def rule(description: str, holds: Callable[[Checked], bool], advice: str = "") -> Rule[Checked]:
    """A rule with a fixed description."""
    return Rule(lambda: description, holds, advice)


def above(limit: float) -> Rule[float]:
    """Greater than `limit`."""
    return rule(f"greater than {limit:g}", lambda value: value > limit)


def at_least(limit: float) -> Rule[float]:
    """`limit` or greater."""
    return rule(f"{limit:g} or greater", lambda value: value >= limit)


def between(low: float, high: float) -> Rule[float]:
    """From `low` to `high`, both included."""
    return rule(f"between {low:g} and {high:g}", lambda value: low <= value <= high)


def one_of(names: Collection[Value], *more: Value) -> Rule[Value]:
    """One of `names` or `more`. `names` may be a registry: what is added to it later is allowed, too."""
    return Rule(lambda: f"one of {', '.join(map(str, [*more, *names]))}", lambda value: value in [*more, *names])


def some_of(names: Collection[str], *more: str) -> Rule[list[str]]:
    """A list of any of `names` and `more`, as in `one_of`."""
    return Rule(lambda: f"a list out of {', '.join([*more, *names])}", lambda value: {*value} <= {*more, *names})


def setting(default: Value, meaning: str, rule: Rule[Value] | None = None) -> Value:
    """A field of a settings dataclass. `meaning` is what `--help` prints, without a final period.

    Declared to return the type of its default, as `dataclasses.field` is. Lists and dicts are copied for each instance.
    """
    metadata: dict[str, Any] = {"meaning": meaning, "rule": rule}
    result: Any
    if isinstance(default, list | dict):
        result = field(default_factory=lambda: copy.copy(default), metadata=metadata)
    else:
        result = field(default=default, metadata=metadata)
    return result


def meaning_of(item: Field[Any]) -> str:
    """The meaning of a field that was made by `setting`."""
    return item.metadata["meaning"]


def rule_of(item: Field[Any]) -> Rule[Any] | None:
    """The rule of a field that was made by `setting`; None if every value of its type is allowed."""
    return item.metadata["rule"]
