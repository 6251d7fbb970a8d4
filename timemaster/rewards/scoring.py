"""From reward parts to a score: load functions by path, check their signatures, call them, weigh and sum once."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import itertools
import math
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from timemaster.config.registries import ON_ERROR
from timemaster.judge import ChatRefused
from timemaster.rewards.calls import Caller, Outcome, RewardsStuck, described
from timemaster.types import Example, InputError, Rollout, Score

# A reward gives a number, or a dict with "score" and further numbers, or something to await that gives one of these.
Reward = float | Mapping[str, Any]
RewardFn = Callable[[Rollout, Example], Reward | Awaitable[Reward]]

FORMS = "(rollout, example) or verl's (data_source, solution_str, ground_truth, extra_info)"
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

    A file may import its neighbours, as with `python some/file.py`; see `_neighbours_first` for names that clash.
    Raises InputError when the path has another form, the module or file cannot be imported, or the name is missing.
    """
    module_name, colon, name = path.rpartition(":")
    if not colon or not module_name or not name:
        raise InputError(f"Function path {path!r}: write 'package.module:function' or 'folder/file.py:function'.")
    try:
        module = (
            _import_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
        )
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a script without a main guard exits when it is imported
        raise InputError(f"Function path {path!r}: importing {module_name!r} failed: {error!r}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise InputError(f"Function path {path!r}: {module_name!r} has no function {name!r}; it has {known}.")
    return function


def _import_file(path: Path) -> ModuleType:
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
        with _neighbours_first(path.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


@contextmanager
def _neighbours_first(folder: Path) -> Iterator[None]:
    """Imports find the modules of `folder` first, as those of a script find the modules beside it.

    Afterwards the folder stays at the end of the search path, for imports inside functions. Where another module has
    the name of a neighbour (an installed one, or one beside another reward), that name means the other module again:
    such a neighbour must be imported at the top of the file. Modules of the standard library that are loaded stay.
    """
    names = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    clashing = {name for name in names - sys.stdlib_module_names if not _is_neighbour(name, folder)}
    others = {name: module for name, module in list(sys.modules.items()) if name.partition(".")[0] in clashing}
    for name in others:
        del sys.modules[name]
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the file may change the search path, too
            sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        new = [name for name in sys.modules.keys() - known if _is_neighbour(name, folder)]
        for name in new:
            if not _leads_to(name.partition(".")[0], folder):
                del sys.modules[name]
        sys.modules.update(others)


def _is_neighbour(name: str, folder: Path) -> bool:
    """Whether the loaded module of this name, or the package that it belongs to, lies in `folder`."""
    top = name.partition(".")[0]
    return _lies_in(getattr(sys.modules.get(top), "__file__", None), top, folder)


def _leads_to(top: str, folder: Path) -> bool:
    """Whether the search path finds the module `top` in `folder`."""
    specs = (finder.find_spec(top, None) for finder in sys.meta_path)
    spec = next((spec for spec in specs if spec is not None), None)
    return spec is not None and _lies_in(spec.origin, top, folder)


def _lies_in(file: str | None, top: str, folder: Path) -> bool:
    beside = (folder / f"{top}.py", folder / top / "__init__.py")
    return bool(file) and Path(str(file)).resolve() in [path.resolve() for path in beside]


def as_reward(fn: Callable[..., Any]) -> RewardFn:
    """`fn` itself when it takes (rollout, example); wrapped when it is in verl's form.

    verl's form is recognised by its parameter names: `solution_str` and `ground_truth`, and, where it takes them,
    `data_source` and `extra_info`. Raises InputError for any other signature, such as one with an argument more.
    """
    parameters = _parameters(fn)
    if {"solution_str", "ground_truth"} <= parameters.keys():
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        wanted = [n for n in ("data_source", "extra_info") if takes_all or n in parameters]
        _check_call(fn, **dict.fromkeys(["solution_str", "ground_truth", *wanted]))

        def arguments(rollout: Rollout, example: Example) -> dict[str, Any]:
            more = {"data_source": example.data_source, "extra_info": example.extra}
            truth = example.answer if example.truth is None else example.truth
            return {"solution_str": rollout.text, "ground_truth": truth} | {n: more[n] for n in wanted}

        async def judged(rollout: Rollout, example: Example) -> Any:
            return await fn(**arguments(rollout, example))

        def reward(rollout: Rollout, example: Example) -> Any:
            return fn(**arguments(rollout, example))

        return judged if inspect.iscoroutinefunction(fn) else reward
    _check_call(fn, None, None)
    return fn


def _check_call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """InputError unless `fn` takes these arguments and needs no others."""
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


def check_parts(parts: Sequence[RewardPart]) -> None:
    """InputError unless every part has a name of its own for the log, a finite weight, and takes (rollout, example)."""
    names = [part.name for part in parts]
    for part in parts:
        if not part.name.strip() or "/" in part.name or part.name in RESERVED or names.count(part.name) > 1:
            raise InputError(
                f"The reward parts are called {names}; give each a name of its own, not empty, without '/' "
                f"and none of {', '.join(RESERVED)}."
            )
        if not math.isfinite(part.weight):
            raise InputError(f"Reward part {part.name!r} has the weight {part.weight}; give a finite number.")
        _check_call(part.fn, None, None)


def score(rollout: Rollout, example: Example, parts: Sequence[RewardPart], on_error: str = "raise") -> Score:
    """The score of one rollout, waited for without a limit: for scripts and tests. A run scores with a `Scorer`."""
    scorer = Scorer(lambda _: parts, on_error, num_threads=len(parts))
    try:
        return scorer.submit(rollout, example).result()
    finally:
        scorer.close()


class Scorer:
    """Scores rollouts beside other work.

    All parts of all rollouts are called at once: plain functions in `num_threads` threads, `async` ones (a judge) on an
    event loop of their own, and what any of them gives to be awaited is awaited there. `timeout`: see `Caller`; parts
    that ask a judge have no limit, for its calls have limits of their own and wait for each other.
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
        self._caller = Caller(num_threads, timeout)

    def submit(self, rollout: Rollout, example: Example) -> Future[Score]:
        """The weighted sum of the parts, and every part by name, unweighted: later.

        A part that returns a dict counts with its "score"; its other finite numbers are reported as "<part>/<key>",
        what else it holds is left out. {"score": None, "reason": "…"} means unknown: the part is left out of total and
        values and named in `Score.unknown`. A part that raises, exits or is cancelled, takes too long, or returns NaN,
        infinity or no number, is an InputError naming example, part and cause (on_error="raise"), or counts 0.0 with
        the cause in `Score.error` (on_error="zero"). ChatRefused (by a judge: key, address, budget) and RewardsStuck
        are raised in both cases: it would be every later row's, too.

        Every call gets a copy of rollout and example, so that a reward can change neither. Raises InputError at once
        for an example without rewards.
        """
        parts = self._parts_of(example)
        outcomes = [
            self._caller.call(
                partial(part.fn, *_copies(rollout, example)),
                is_async=inspect.iscoroutinefunction(part.fn),
                has_limit=not part.asks_judge,
            )
            for part in parts
        ]
        answer: Future[Score] = Future()
        left = itertools.count(len(outcomes) - 1, -1)

        def one_more(_: object) -> None:
            if next(left) <= 0:
                try:
                    answer.set_result(total_of(parts, [one.result() for one in outcomes], example, self._on_error))
                except BaseException as error:  # it would be lost here, and the answer waited for
                    answer.set_exception(error)

        for outcome in outcomes:
            outcome.add_done_callback(one_more)
        if not outcomes:
            one_more(None)
        return answer

    def close(self) -> None:
        """End its threads."""
        self._caller.close()


def total_of(parts: Sequence[RewardPart], outcomes: Sequence[Outcome], example: Example, on_error: str) -> Score:
    """What the calls of the parts came to, as a score; see `Scorer.submit`."""
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
            _raise_what_ends_a_run(outcome.failure, message)
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


def _raise_what_ends_a_run(failure: BaseException, message: str) -> None:
    if isinstance(failure, RewardsStuck):
        raise RewardsStuck(message[0].upper() + message[1:])
    if isinstance(failure, ChatRefused):
        raise failure
    if isinstance(failure, BaseExceptionGroup):  # of tasks that a reward awaits together
        for one in failure.exceptions:
            _raise_what_ends_a_run(one, message)


def _copies(rollout: Rollout, example: Example) -> tuple[Rollout, Example]:
    """Both with lists and dicts of their own."""
    tokens: dict[str, Any] = {
        name: list(getattr(rollout, name)) for name in ("token_ids", "mask", "logprobs", "versions", "media")
    }
    messages = [replace(message, parts=list(message.parts)) for message in example.messages]
    return replace(rollout, **tokens), replace(example, messages=messages, extra=_copy(example.extra))


def _copy(value: Any) -> Any:
    # Not copy.deepcopy: it takes three times as long for a series of numbers.
    if isinstance(value, dict):
        return {key: _copy(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_copy(one) if isinstance(one, list | dict) else one for one in value]
    return value
