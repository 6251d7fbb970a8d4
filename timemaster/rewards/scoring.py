"""From reward parts to a score: load functions by path, call them, check what they return, weigh and sum once."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

from timemaster.types import Example, InputError, Rollout, Score

# A reward gives a number; functions in verl's form may give a dict with "score" and further numbers.
RewardFn = Callable[[Rollout, Example], float | Mapping[str, Any]]

ON_ERROR = ("raise", "zero")


@dataclass(frozen=True, slots=True)
class RewardPart:
    """One named term of the total. Example: RewardPart("accuracy", 0.9, accuracy(("Desktop", "Laptop")))"""

    name: str  # how it is logged
    weight: float  # its factor in the total; 0.0 logs the part without training on it
    fn: RewardFn


def load_function(path: str) -> Callable[..., Any]:
    """The function that `path` names: "package.module:function" or "some/file.py:function".

    Raises InputError when the path has another form, the module or file cannot be imported, or the name is missing.
    """
    module_name, colon, name = path.rpartition(":")
    if not colon or not module_name or not name:
        raise InputError(f"Function path {path!r}: write 'package.module:function' or 'folder/file.py:function'.")
    try:
        module = (
            _import_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
        )
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"Function path {path!r}: importing {module_name!r} failed: {error!r}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise InputError(f"Function path {path!r}: {module_name!r} has no function {name!r}; it has {known}.")
    return function


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"Function file {str(path)!r} does not exist (looked from {Path.cwd()}).")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_reward(fn: Callable[..., Any]) -> RewardFn:
    """`fn` itself when it takes (rollout, example); wrapped when it is in verl's form.

    verl's form is recognised by its parameter names: `solution_str` and `ground_truth`, and, where it takes them,
    `data_source` and `extra_info`. Raises InputError for any other signature.
    """
    parameters = inspect.signature(fn).parameters
    if {"solution_str", "ground_truth"} <= parameters.keys():
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        wanted = [n for n in ("data_source", "extra_info") if takes_all or n in parameters]

        def reward(rollout: Rollout, example: Example) -> Any:
            more = {"data_source": example.data_source, "extra_info": example.extra}
            return fn(solution_str=rollout.text, ground_truth=example.answer, **{n: more[n] for n in wanted})

        return reward
    try:
        inspect.signature(fn).bind(None, None)
    except TypeError as error:
        raise InputError(
            f"Reward {getattr(fn, '__name__', fn)!r} takes ({', '.join(parameters)}); write it as (rollout, example) "
            "or as verl's (data_source, solution_str, ground_truth, extra_info)."
        ) from error
    return fn


def score(rollout: Rollout, example: Example, parts: Sequence[RewardPart], on_error: str = "raise") -> Score:
    """The weighted sum of the parts, and every part by name, unweighted.

    A part that returns a dict counts with its "score"; its other numbers are reported as "<part>/<key>". A part that
    raises, or returns NaN, infinity or no number, is an InputError naming example, part and cause
    (on_error="raise"), or counts 0.0 with the cause in `Score.error` (on_error="zero").
    """
    if on_error not in ON_ERROR:
        raise InputError(f"on_error is {on_error!r}; allowed: {', '.join(ON_ERROR)}.")
    values: dict[str, float] = {}
    errors: list[str] = []
    total = 0.0
    for part in parts:
        try:
            result = part.fn(rollout, example)
            more = dict(result) if isinstance(result, Mapping) else {}
            value = _number(more.pop("score", None) if isinstance(result, Mapping) else result)
        except Exception as error:  # a reward is the user's code: whatever it raises is reported with its example
            message = f"reward part {part.name!r} failed on example {example.id!r}: {type(error).__name__}: {error}"
            if on_error == "raise":
                raise InputError(message[0].upper() + message[1:]) from error
            errors.append(message)
            value, more = 0.0, {}
        values[part.name] = value
        values |= {f"{part.name}/{key}": float(v) for key, v in more.items() if _is_number(v)}
        total += part.weight * value
    return Score(total=total, parts=values, error="; ".join(errors))


def _is_number(value: Any) -> bool:
    return isinstance(value, SupportsFloat) and math.isfinite(float(value))


def _number(value: Any) -> float:
    if not _is_number(value):
        raise ValueError(f"a finite number is expected, got {value!r}")
    return float(value)
