"""Rewards that misbehave, through the real loop and scorer: each ends as documented, and none hangs."""

from __future__ import annotations

import asyncio
import functools
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from timemaster.judge import ChatRefused
from timemaster.rewards import RewardPart, Scorer, as_reward, score
from timemaster.rollout.loop import RolloutLoop
from timemaster.system.calls import MAX_STUCK, CallsStuck
from timemaster.types import Completion, Example, Group, InputError, Prompt, Rollout, Sampling

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 30  # seconds after which a test has hung
SCORERS: list[Scorer] = []  # made by a test
LET_GO = Event()  # ends what would never end, so that no test leaves a busy thread behind


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    LET_GO.clear()
    yield
    LET_GO.set()
    while SCORERS:
        SCORERS.pop().close()


class OneWord:
    """An engine and a renderer of one token: every answer is "word"."""

    end_of_turn = 0

    def __init__(self) -> None:
        self.queue: list[tuple[str, int]] = []

    def submit(self, key: str, prompt: Prompt, sampling: Sampling) -> None:
        self.queue.append((key, sampling.n))

    def busy(self) -> bool:
        return bool(self.queue)

    def abort(self, keys: Sequence[str]) -> None:
        self.queue = [item for item in self.queue if item[0] not in keys]

    def step(self) -> list[tuple[str, list[Completion]]]:
        key, n = self.queue.pop()
        return [(key, [Completion(token_ids=[7, 0], logprobs=[-0.5, -0.1], finish_reason="stop")] * n)]

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        return "word"


def within_limit(what: Callable[[], Any]) -> Any:
    """What `what` gives, or raises; a failure when it hangs."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(what())
        except BaseException as error:
            found.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert found, "it hangs"
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def example(name: str) -> Example:
    return Example(id=f"test.parquet:{name}", messages=[], answer=name, data_source="any", extra={"deep": {"a": [1]}})


def rollout_of(one: Example) -> Rollout:
    return Rollout(
        id=one.id, token_ids=[5, 7], mask=[0, 1], logprobs=[0.0, -1.0], versions=[-1, 0], media=[], text="word",
        finish_reason="stop",
    )  # fmt: skip


class Bench:
    """The rollout loop with one reward."""

    def __init__(self, fn: Callable[..., Any], on_error: str, timeout: float = 60.0, num_threads: int = 2) -> None:
        parts = [RewardPart("own", 1.0, fn)]
        self.scorer, model = Scorer(lambda _: parts, on_error, num_threads, timeout), OneWord()
        SCORERS.append(self.scorer)
        self.loop = RolloutLoop(
            engine=model, renderer=model, score=self.scorer.start_group, environment=lambda _: None, max_model_len=99
        )  # type: ignore[arg-type]

    def run(self, *names: str) -> list[Group]:
        """Two answers each about these examples, scored."""
        jobs = [(example(name), Prompt(id=name, token_ids=[5], media=[])) for name in names]
        return within_limit(lambda: self.loop.run(jobs, Sampling(n=2, max_tokens=9), version=0, seed="s"))


# ---- what a reward may do wrong: about the example "bad"


class GivenUp(BaseException):
    """As time-limit libraries raise it: not an Exception."""


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class FloatExits:
    def __float__(self) -> float:
        sys.exit("no number")


class NoRepr:
    def __repr__(self) -> str:
        raise RuntimeError("nothing to show")


def raises(error: BaseException) -> Callable[[], Any]:
    def misbehave() -> Any:
        raise error

    return misbehave


def raises_async(error: BaseException) -> Callable[[], Any]:
    async def misbehave() -> Any:
        await asyncio.sleep(0)
        raise error

    return misbehave


def recurses() -> Any:
    return recurses()


def yields() -> Any:
    yield 1.0


def sets_an_alarm() -> Any:
    signal.signal(signal.SIGALRM, lambda *_: None)


async def cancels_itself() -> Any:
    task = asyncio.current_task()
    assert task
    task.cancel()
    await asyncio.sleep(0)


async def cancels_all() -> Any:
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(0)


async def exits_in_a_task() -> Any:
    return await asyncio.create_task(raises_async(SystemExit(3))())


async def runs_a_loop_in_the_loop() -> Any:
    waiting = asyncio.sleep(0)
    try:
        asyncio.run(waiting)
    finally:
        waiting.close()


async def closes_the_loop() -> Any:
    asyncio.get_running_loop().close()


async def closes_the_loop_by_force() -> Any:
    loop: Any = asyncio.get_running_loop()
    loop._thread_id = None  # as between two runs of the loop, when nothing forbids it
    loop.close()
    await asyncio.Event().wait()


async def blocks_the_loop() -> Any:
    LET_GO.wait()


async def never_ends() -> Any:
    await asyncio.Event().wait()


async def cannot_be_cancelled() -> Any:
    while not LET_GO.is_set():
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue


FAILS: dict[str, tuple[Callable[[], Any], str]] = {  # name -> (what is done, what the error says)
    "raises no Exception": (raises(GivenUp("took too long")), "GivenUp: took too long"),
    "exits": (raises(SystemExit(3)), "SystemExit: 3"),
    "interrupts": (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
    "raises what cancels": (raises(asyncio.CancelledError()), "CancelledError"),
    "raises GeneratorExit": (raises(GeneratorExit()), "GeneratorExit"),
    "runs out of an iterator": (lambda: next(iter(())), "StopIteration"),
    "is out of memory": (raises(MemoryError()), "MemoryError"),
    "recurses for ever": (recurses, "RecursionError"),
    "raises what has no text": (raises(NoText()), "NoText, whose text cannot be made"),
    "raises a group": (raises(BaseExceptionGroup("two", [SystemExit(), ValueError()])), "BaseExceptionGroup: two"),
    "raises our own error": (raises(InputError("no such row")), "InputError: no such row"),
    "sets an alarm in a thread": (sets_an_alarm, "signal only works in main thread"),
    "returns None": (lambda: None, "a finite number is expected, got None"),
    "returns NaN": (lambda: float("nan"), "a finite number is expected, got nan"),
    "returns text": (lambda: "1.0", "a finite number is expected, got '1.0'"),
    "returns a dict without score": (lambda: {"acc": 1.0}, "a dict with 'score' is expected, got {'acc': 1.0}"),
    "returns a dict with text": (lambda: {"score": "high"}, "a finite number is expected, got {'score': 'high'}"),
    "returns several numbers": (lambda: np.ones(2), "a finite number is expected"),
    "returns a generator": (yields, "a finite number is expected, got <generator"),
    "returns a number beyond floats": (lambda: 10**400, "a finite number is expected"),
    "returns what exits as a number": (FloatExits, "SystemExit: no number"),
    "returns what cannot be shown": (NoRepr, "RuntimeError: nothing to show"),
    "async, raises no Exception": (raises_async(GivenUp("took too long")), "GivenUp: took too long"),
    "async, exits": (raises_async(SystemExit(3)), "SystemExit: 3"),
    "async, interrupts": (raises_async(KeyboardInterrupt()), "KeyboardInterrupt"),
    "async, runs out of an iterator": (raises_async(StopIteration()), "coroutine raised StopIteration"),
    "async, raises GeneratorExit": (raises_async(GeneratorExit()), "GeneratorExit"),
    "async, cancels itself": (cancels_itself, "CancelledError"),
    "async, exits in a task of its own": (exits_in_a_task, "SystemExit: 3"),
    "async, runs a loop in the loop": (runs_a_loop_in_the_loop, "cannot be called from a running event loop"),
    "async, closes the loop": (closes_the_loop, "Cannot close a running event loop"),
    "async, closes the loop by force": (closes_the_loop_by_force, "the event loop, .* was closed by one of them"),
}
TOO_LONG = "it took longer than reward.timeout=1 seconds"
HANGS: dict[str, tuple[Callable[[], Any], str]] = {
    "never ends": (LET_GO.wait, TOO_LONG),
    "async, never ends": (never_ends, TOO_LONG),
    "async, cannot be cancelled": (cannot_be_cancelled, TOO_LONG),
    "async, blocks the loop": (blocks_the_loop, "TimeoutError: it took longer|was blocked for more than"),
}


def reward_that(misbehave: Callable[[], Any]) -> Callable[[Rollout, Example], Any]:
    def reward(rollout: Rollout, example: Example) -> Any:
        return misbehave() if example.answer == "bad" else 1.0

    async def async_reward(rollout: Rollout, example: Example) -> Any:
        return await misbehave() if example.answer == "bad" else 1.0

    return async_reward if asyncio.iscoroutinefunction(misbehave) else reward


def batched_that(misbehave: Callable[[], Any]) -> Callable[[list[Rollout], Example], Any]:
    def reward(group: list[Rollout], example: Example) -> Any:
        return [misbehave() if example.answer == "bad" else 1.0 for _ in group]

    async def async_reward(group: list[Rollout], example: Example) -> Any:
        return [await misbehave() if example.answer == "bad" else 1.0 for _ in group]

    return async_reward if asyncio.iscoroutinefunction(misbehave) else reward


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # on a loop that a reward has closed
@pytest.mark.parametrize("on_error", ["zero", "raise"])
@pytest.mark.parametrize(
    ("name", "form"), [*((name, reward_that) for name in FAILS | HANGS), *((name, batched_that) for name in FAILS)]
)
def test_a_reward_that_misbehaves_ends_as_documented(
    name: str, form: Callable[[Callable[[], Any]], Callable[..., Any]], on_error: str
) -> None:
    misbehave, says = (FAILS | HANGS)[name]
    bench = Bench(form(misbehave), on_error, timeout=1.0 if name in HANGS else 60.0)
    if on_error == "raise":
        with pytest.raises(InputError, match=f"(?s)Reward part 'own' failed on example 'test.parquet:bad': .*({says})"):
            bench.run("good", "bad", "fine")
    else:
        groups = bench.run("good", "bad", "fine")
        scores = [one.score for group in groups for one in group.rollouts if one.score]
        assert [score.total for score in scores] == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
        for bad in scores[2:4]:
            assert re.match(f"(?s)reward part 'own' failed on example 'test.parquet:bad': .*({says})", bad.error)
        assert [bool(score.error) for score in scores] == [False, False, True, True, False, False]
    (group,) = bench.run("good")  # threads and loop live on
    assert [one.score.total for one in group.rollouts if one.score] == [1.0, 1.0]


def test_calls_that_another_reward_cancels_have_an_outcome_too() -> None:
    """One that is cancelled before its first step would otherwise be waited for in vain."""

    async def reward(rollout: Rollout, example: Example) -> float:
        for task in asyncio.all_tasks():
            task.cancel()
        return 1.0

    groups = Bench(reward, "zero").run(*(f"row {i}" for i in range(20)))
    scores = [one.score for group in groups for one in group.rollouts if one.score]
    assert all(score.total == 1.0 or "CancelledError" in score.error for score in scores)


def test_what_a_reward_leaves_behind_harms_nobody() -> None:
    """A task that exits later, a stopped loop, a task that never ends, a loop of its own in a thread: all score 1."""

    async def reward(rollout: Rollout, example: Example) -> float:
        loop = asyncio.get_running_loop()
        left = [loop.create_task(raises_async(SystemExit())()), loop.create_task(never_ends())]
        loop.stop()
        await asyncio.sleep(0)
        return float(len(left)) / 2

    def own_loop(rollout: Rollout, example: Example) -> float:
        asyncio.run(asyncio.sleep(0))
        return 1.0

    for fn in (reward, own_loop):
        groups = Bench(fn, "raise").run("a", "b", "c")
        assert [one.score.total for group in groups for one in group.rollouts if one.score] == [1.0] * 6


def test_a_blocked_loop_is_replaced_and_calls_that_had_not_begun_are_made_on_the_new_one() -> None:
    async def reward(rollout: Rollout, example: Example) -> float:
        if example.answer == "bad":
            LET_GO.wait()
        return 1.0

    scorer = Scorer(lambda _: [RewardPart("own", 1.0, reward)], "zero", num_threads=1, timeout=1.0)
    SCORERS.append(scorer)
    one, other = example("bad"), example("good")
    futures = [scorer.submit(rollout_of(which), which) for which in (one, other, other)]
    assert [future.result(LIMIT).total for future in futures] == [0.0, 1.0, 1.0]


def test_threads_that_never_end_are_replaced_until_there_are_too_many() -> None:
    """One thread, and MAX_STUCK calls that hold it: each is given up, the next is still made. One more ends the run."""
    bench = Bench(reward_that(LET_GO.wait), "zero", timeout=0.05, num_threads=1)
    for _ in range(MAX_STUCK // 2):
        bench.run("bad")  # two answers each
    with pytest.raises(CallsStuck, match=rf"'test.parquet:bad'.* as {MAX_STUCK} calls before it"):
        bench.run("bad")
    LET_GO.set()


KEEPS_THE_INTERPRETER = """
import re
import timemaster.system.calls as calls
from tests.unit.test_scoring import Bench

calls.GRACE = 1.0

def backtracks(rollout, example):
    return re.match("(a+)+$", "a" * 60 + "b") is None

Bench(backtracks, "zero", timeout=0.5).run("bad")
"""


def test_a_reward_that_keeps_the_interpreter_to_itself_ends_the_process_and_is_shown() -> None:
    """No thread can run any more: not the one that would score it 0."""
    done = subprocess.run(
        [sys.executable, "-c", KEEPS_THE_INTERPRETER], cwd=ROOT, capture_output=True, text=True, encoding="utf-8",
        timeout=2 * LIMIT,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in backtracks" in done.stderr


def test_a_part_that_asks_a_judge_has_the_judges_limits_alone() -> None:
    async def reward(rollout: Rollout, example: Example) -> float:
        await asyncio.sleep(0.5)
        return 1.0

    reward.asks_judge = True  # type: ignore[attr-defined]
    assert Bench(reward, "raise", timeout=0.1).run("a")[0].rollouts[0].score is not None


def test_a_refusing_judge_ends_the_run_from_inside_of_a_group_of_tasks_too() -> None:
    async def asks() -> float:
        raise ChatRefused("no key")

    async def reward(rollout: Rollout, example: Example) -> float:
        async with asyncio.TaskGroup() as group:
            group.create_task(asks())
        return 1.0

    with pytest.raises(ChatRefused, match="no key"):
        Bench(reward, "zero").run("a")


def test_a_reward_changes_neither_rollout_nor_example() -> None:
    def greedy(rollout: Rollout, example: Example) -> float:
        rollout.token_ids.clear()
        rollout.mask[:] = [1]
        example.messages.clear()
        example.extra["deep"]["a"].append(2)
        object.__setattr__(example, "answer", "mine")
        object.__setattr__(rollout, "text", "mine")
        return float(len(example.extra.pop("deep")["a"]))

    before = example("a")
    (group,) = Bench(greedy, "raise").run("a")
    assert group.example == before
    for one in group.rollouts:
        assert (one.token_ids, one.mask, one.text) == ([5, 7, 0], [0, 1, 1], "word")
        assert one.score is not None
        assert one.score.total == 2.0  # the answer before this one left no trace either


def test_a_total_beyond_all_floats_is_an_error() -> None:
    parts = [RewardPart("big", 10.0, lambda rollout, example: 1e308)]
    one = example("a")
    with pytest.raises(InputError, match=r"The total of example 'test.parquet:a' is inf"):
        score(rollout_of(one), one, parts)
    assert score(rollout_of(one), one, parts, "zero").total == 0.0


# ---- what a reward may be


class Grader:
    """A grader with state between calls, such as a client."""

    async def __call__(self, rollout: Rollout, example: Example) -> float:
        await asyncio.sleep(0)
        return 0.5

    async def grade(self, rollout: Rollout, example: Example, scale: float = 1.0) -> float:
        await asyncio.sleep(0)
        return 0.5 * scale


class VerlGrader:
    async def __call__(self, data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> Any:
        await asyncio.sleep(0)
        return {"score": 0.5, "acc": ground_truth == "a"}


class Later:
    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return 0.5


def wrapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    """As a decorator that logs or counts is written."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def waited_for(fn: Callable[..., Any]) -> Callable[..., Any]:
    """As a decorator that makes an async function a plain one is written: it may not be called on an event loop."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(fn(*args, **kwargs))

    return wrapper


async def verl_async(solution_str: str, ground_truth: str, **rest: Any) -> float:
    await asyncio.sleep(0)
    return 0.5 if set(rest) == {"data_source", "extra_info"} else 0.0


async def twice_async(rollout: Rollout, example: Example) -> Any:
    return Grader()(rollout, example)  # forgot to await


ASYNC: dict[str, Callable[..., Any]] = {
    "object": Grader(),
    "bound method": Grader().grade,
    "partial of a method": functools.partial(Grader().grade, scale=1.0),
    "partial of an object": functools.partial(Grader()),
    "wrapped": wrapped(Grader().grade),
    "wrapped object": wrapped(Grader()),
    "made plain": waited_for(Grader().grade),
    "returns a coroutine": lambda rollout, example: Grader()(rollout, example),
    "returns an awaitable": lambda rollout, example: Later(),
    "returns a coroutine, async": twice_async,
    "verl": verl_async,
    "verl, object": VerlGrader(),
    "verl, wrapped": wrapped(verl_async),
    "verl, partial": functools.partial(VerlGrader(), extra_info=None),
}


@pytest.mark.parametrize("name", ASYNC)
def test_async_rewards_of_every_shape_are_awaited(name: str) -> None:
    (group,) = Bench(as_reward(ASYNC[name]), "raise").run("a")
    assert [one.score.total for one in group.rollouts if one.score] == [0.5, 0.5]


@pytest.mark.parametrize("value", [True, np.bool_(True), np.float32(1), np.array(1.0), 1, Decimal(1), Fraction(1)])
def test_numbers_of_every_kind_are_read(value: Any) -> None:
    one = example("a")
    for result in (value, {"score": value, "acc": value}):
        total = score(rollout_of(one), one, [RewardPart("own", 1.0, lambda rollout, example, r=result: r)]).total
        assert total == 1.0
