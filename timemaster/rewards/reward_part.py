"""A reward part: its function, its weight, what it needs before it can be called, and the checks of all these.

A function takes `(rollout, example)` and returns one value. A batched function takes `(group, example)`, where `group`
is a list of rollouts, and returns one value per rollout. verl's form `(data_source, solution_str, ground_truth,
extra_info)` is wrapped by `as_reward`. A function gets further arguments if it has parameters with these names:

    group   all rollouts of the prompt, in order; the call then waits until the last of them is finished
    images  the decoded pictures of the rollout, in order: those of the prompt, then those of later turns
    tokens  the token ids that the policy sampled
    parts   the values of the parts named in `only_if` and `needs`, by name

In a batched function `images`, `tokens` and `parts` are lists with one entry per rollout.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any

from timemaster.types import Example, InputError, Rollout

# A reward is a number, or a dict with "score" and further numbers.
Reward = float | Mapping[str, Any]
# A function returns a reward (a batched function: a list of rewards), or an awaitable of it. The module's docstring
# lists the parameters.
RewardFn = Callable[..., Reward | Sequence[Reward] | Awaitable[Reward] | Awaitable[Sequence[Reward]]]

KEYWORDS = ("group", "images", "tokens", "parts")
FORMS = (
    "(rollout, example), batched as (group, example), or verl's (data_source, solution_str, ground_truth, extra_info); "
    f"the first two may also take {', '.join(KEYWORDS)}"
)
RESERVED = ("mean", "errors", "unknown", "zero_spread_groups")  # a step's own metrics, logged beside the parts


@dataclass(frozen=True, slots=True)
class RewardPart:
    """One named term of the total. Example: RewardPart("accuracy", 0.9, accuracy(("Desktop", "Laptop")))

    A bonus that a judge gives to right answers only: RewardPart("advice", 0.5, graded, only_if="accuracy")
    """

    name: str  # how it is logged
    weight: float  # its factor in the total; may be negative; 0.0 logs the part without training on it
    fn: RewardFn
    only_if: str | tuple[str, ...] = ()  # parts; unless all of them are above 0, this one is 0.0 and not called
    needs: str | tuple[str, ...] = ()  # further parts whose values `fn` reads from its parameter `parts`

    @property
    def asks_judge(self) -> bool:
        """Whether it needs judge.*: its function has an attribute of this name that is true."""
        return getattr(self.fn, "asks_judge", False)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The parts that must be above 0."""
        return _names(self.only_if)

    @property
    def dependencies(self) -> tuple[str, ...]:
        """The parts that must be known before this one is called."""
        return tuple(dict.fromkeys([*self.conditions, *_names(self.needs)]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a reward's function takes. Example: Signature(is_batched=False, keywords=("images",))"""

    is_batched: bool  # (group, example) instead of (rollout, example)
    keywords: tuple[str, ...]  # of KEYWORDS

    @property
    def needs_group(self) -> bool:
        """Whether it is called only after the last rollout of the prompt is finished."""
        return self.is_batched or "group" in self.keywords


def signature_of(fn: Callable[..., Any]) -> Signature:
    """What `fn` takes, read from the names of its parameters. Raises InputError when no call could satisfy it."""
    parameters = _parameters(fn)
    names = list(parameters)
    is_batched = names[:1] == ["group"]
    misplaced = [name for name in names[is_batched:2] if name in KEYWORDS and _is_positional(parameters[name])]
    if misplaced:
        raise InputError(
            f"Reward {_name(fn)} takes ({', '.join(map(str, parameters.values()))}), with {misplaced[0]!r} in the "
            f"place of the rollout or the example; write it as {FORMS}."
        )
    bound = fn.keywords if isinstance(fn, partial) else {}
    by_position = {"group"} if is_batched else set()
    keywords = tuple(name for name in KEYWORDS if name in parameters and name not in bound and name not in by_position)
    _check_call(fn, None, None, **dict.fromkeys(keywords))
    return Signature(is_batched=is_batched, keywords=keywords)


def as_reward(fn: Callable[..., Any]) -> RewardFn:
    """`fn` itself when it takes (rollout, example) or (group, example); wrapped when it is in verl's form.

    verl's form is recognised by its parameter names: `solution_str` and `ground_truth`, and, where it takes them,
    `data_source` and `extra_info`. Raises InputError for any other signature, such as one with a further argument.
    """
    parameters = _parameters(fn)
    if not {"solution_str", "ground_truth"} <= parameters.keys():
        signature_of(fn)
        return fn
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    wanted = [n for n in ("data_source", "extra_info") if takes_all or n in parameters]
    _check_call(fn, **dict.fromkeys(["solution_str", "ground_truth", *wanted]))

    def arguments(rollout: Rollout, example: Example) -> dict[str, Any]:
        further = {"data_source": example.data_source, "extra_info": example.extra}
        truth = example.answer if example.truth is None else example.truth
        return {"solution_str": rollout.text, "ground_truth": truth} | {n: further[n] for n in wanted}

    async def judged(rollout: Rollout, example: Example) -> Any:
        return await fn(**arguments(rollout, example))

    def reward(rollout: Rollout, example: Example) -> Any:
        return fn(**arguments(rollout, example))

    return judged if inspect.iscoroutinefunction(fn) else reward


def check_parts(parts: Sequence[RewardPart]) -> None:
    """Raise InputError unless every part has its own name for the log, a finite weight, a signature that can be
    called, and dependencies that exist and form no circle.
    """
    names = [part.name for part in parts]
    for part in parts:
        if not part.name.strip() or "/" in part.name or part.name in RESERVED or names.count(part.name) > 1:
            raise InputError(
                f"The reward parts are called {names}; give each a name of its own, not empty, without '/' "
                f"and none of {', '.join(RESERVED)}."
            )
        if not math.isfinite(part.weight):
            raise InputError(f"Reward part {part.name!r} has the weight {part.weight}; give a finite number.")
        signature = signature_of(part.fn)
        if "parts" in signature.keywords and not part.dependencies:
            raise InputError(
                f"Reward part {part.name!r} takes `parts` but depends on none: name them, as in "
                'RewardPart(…, needs="accuracy").'
            )
    in_order(parts)


def in_order(parts: Sequence[RewardPart]) -> list[RewardPart]:
    """The parts, each after those it depends on. Raises InputError for a missing dependency and for a circle."""
    by_name = {part.name: part for part in parts}
    for part in parts:
        missing = [name for name in part.dependencies if name not in by_name]
        if missing:
            raise InputError(
                f"Reward part {part.name!r} depends on {', '.join(map(repr, missing))}, which is no reward part here; "
                f"there are {', '.join(map(repr, by_name))}."
            )
    try:
        order = [*TopologicalSorter({part.name: part.dependencies for part in parts}).static_order()]
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise InputError(f"Reward parts depend on each other in a circle: {circle}. Remove one of these.") from error
    return [by_name[name] for name in order]


def _names(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _is_positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _check_call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raise InputError unless `fn` takes these arguments and needs no others."""
    parameters = _parameters(fn)
    try:
        inspect.Signature(list(parameters.values())).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"Reward {_name(fn)} takes ({', '.join(map(str, parameters.values()))}), and {error}; write it as {FORMS}."
        ) from error


def _parameters(fn: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    if inspect.isclass(fn):
        raise InputError(f"Reward {_name(fn)} is a class: name an object that the file makes of it, or a function.")
    try:
        return inspect.signature(fn).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f"Reward {_name(fn)} has no signature to be read ({error}); write it as {FORMS}.") from error


def _name(fn: Callable[..., Any]) -> str:
    return repr(getattr(fn, "__name__", fn))
