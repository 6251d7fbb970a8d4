"""From reward parts to a score: load functions by path, call them, check what they return, weigh and sum once."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, SupportsFloat

from timemaster.judge import ChatRefused
from timemaster.types import Example, InputError, Rollout, Score

# A reward gives a number, or a dict with "score" and further numbers; it may be an async function.
Reward = float | Mapping[str, Any]
RewardFn = Callable[[Rollout, Example], Reward | Awaitable[Reward]]

ON_ERROR = ("raise", "zero")
RESERVED = ("mean", "errors", "unknown", "zero_spread_groups")  # a step's own metrics, logged beside the parts


@dataclass(frozen=True, slots=True)
class RewardPart:
    """One named term of the total. Example: RewardPart("accuracy", 0.9, accuracy(("Desktop", "Laptop")))"""

    name: str  # how it is logged
    weight: float  # its factor in the total; 0.0 logs the part without training on it
    fn: RewardFn

    @property
    def asks_judge(self) -> bool:
        """Whether it needs judge.*: its function has an attribute of this name that is true."""
        return getattr(self.fn, "asks_judge", False)


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
    # A name of its own: two files may be called reward.py, and none may hide an installed module.
    name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a function's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
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

        def arguments(rollout: Rollout, example: Example) -> dict[str, Any]:
            more = {"data_source": example.data_source, "extra_info": example.extra}
            truth = example.answer if example.truth is None else example.truth
            return {"solution_str": rollout.text, "ground_truth": truth} | {n: more[n] for n in wanted}

        async def judged(rollout: Rollout, example: Example) -> Any:
            return await fn(**arguments(rollout, example))

        def reward(rollout: Rollout, example: Example) -> Any:
            return fn(**arguments(rollout, example))

        return judged if inspect.iscoroutinefunction(fn) else reward
    try:
        inspect.signature(fn).bind(None, None)
    except TypeError as error:
        raise InputError(
            f"Reward {getattr(fn, '__name__', fn)!r} takes ({', '.join(parameters)}); write it as (rollout, example) "
            "or as verl's (data_source, solution_str, ground_truth, extra_info)."
        ) from error
    return fn


def check_parts(parts: Sequence[RewardPart]) -> None:
    """InputError unless every part can be logged under a name of its own and has a finite weight."""
    names = [part.name for part in parts]
    for part in parts:
        if not part.name.strip() or "/" in part.name or part.name in RESERVED or names.count(part.name) > 1:
            raise InputError(
                f"The reward parts are called {names}; give each a name of its own, not empty, without '/' "
                f"and none of {', '.join(RESERVED)}."
            )
        if not math.isfinite(part.weight):
            raise InputError(f"Reward part {part.name!r} has the weight {part.weight}; give a finite number.")


def score(rollout: Rollout, example: Example, parts: Sequence[RewardPart], on_error: str = "raise") -> Score:
    """`score_async`, waited for: for scripts and tests. A run scores with a `Scorer`."""
    return asyncio.run(score_async(rollout, example, parts, on_error))


async def score_async(rollout: Rollout, example: Example, parts: Sequence[RewardPart], on_error: str) -> Score:
    """The weighted sum of the parts, and every part by name, unweighted.

    Plain functions run in threads, `async` ones (a judge) on this event loop, all parts at once. A part that returns a
    dict counts with its "score"; its other finite numbers are reported as "<part>/<key>", what else it holds is left
    out. {"score": None, "reason": "…"} means unknown: the part is left out of total and values and named in
    `Score.unknown`. A part that raises, or returns NaN, infinity or no number, is an InputError naming example, part
    and cause (on_error="raise"), or counts 0.0 with the cause in `Score.error` (on_error="zero"). ChatRefused (by a
    judge: key, address, budget) is raised in both cases: it would be every later row's, too.
    """
    if on_error not in ON_ERROR:
        raise InputError(f"on_error is {on_error!r}; allowed: {', '.join(ON_ERROR)}.")
    results = await asyncio.gather(*(_result(part, rollout, example) for part in parts), return_exceptions=True)
    values: dict[str, float] = {}
    errors: list[str] = []
    unknown: list[str] = []
    total = 0.0
    for part, result in zip(parts, results, strict=True):
        if isinstance(result, Mapping) and "score" in result and result["score"] is None:
            unknown.append(part.name)
            errors.append(f"reward part {part.name!r} is unknown: {result.get('reason', 'no reason given')}")
            continue
        try:
            value, more = _numbers(result)
        except Exception as error:  # a reward is the user's code: whatever it raises is reported with its example
            if isinstance(error, ChatRefused):
                raise
            message = f"reward part {part.name!r} failed on example {example.id!r}: {type(error).__name__}: {error}"
            if on_error == "raise":
                raise InputError(message[0].upper() + message[1:]) from error
            errors.append(message)
            value, more = 0.0, {}
        values[part.name] = value
        values |= {f"{part.name}/{key}": number for key, number in more.items()}
        total += part.weight * value
    return Score(total=total, parts=values, error="; ".join(errors), unknown=tuple(unknown))


async def _result(part: RewardPart, rollout: Rollout, example: Example) -> Any:
    if inspect.iscoroutinefunction(part.fn):
        return await part.fn(rollout, example)
    return await asyncio.to_thread(part.fn, rollout, example)


def _numbers(result: Any) -> tuple[float, dict[str, float]]:
    """What a part returned, as its score and further numbers by name. Raises what it raised, or ValueError."""
    if isinstance(result, BaseException):
        raise result
    more = dict(result) if isinstance(result, Mapping) else {}
    value = _finite(more.pop("score", None) if isinstance(result, Mapping) else result)
    if value is None:
        raise ValueError(f"a finite number is expected, got {result!r:.200}")
    return value, {key: number for key, v in more.items() if (number := _finite(v)) is not None}


class Scorer:
    """Scores rollouts beside other work: an event loop in a thread of its own, plain rewards in `num_threads` more."""

    def __init__(self, parts_of: Callable[[Example], Sequence[RewardPart]], on_error: str, num_threads: int) -> None:
        self._parts_of, self._on_error = parts_of, on_error
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(num_threads))
        Thread(target=self._loop.run_forever, name="scoring", daemon=True).start()

    def submit(self, rollout: Rollout, example: Example) -> Future[Score]:
        """The score, later; its result raises what `score_async` raises. InputError now for one without rewards."""
        parts = self._parts_of(example)
        return asyncio.run_coroutine_threadsafe(score_async(rollout, example, parts, self._on_error), self._loop)


def _finite(value: Any) -> float | None:
    """`value` as a float; None when it is no number, several, or not finite."""
    if not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except Exception:  # the user's value, of any library: an array of several numbers, an int beyond all floats
        return None
    return number if math.isfinite(number) else None
