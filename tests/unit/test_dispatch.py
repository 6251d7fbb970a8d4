"""Engines pull prompts: which engine is given which prompt, and that results do not depend on it. Without Ray."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import question
from timemaster.config import Config
from timemaster.rollout.progress import Request
from timemaster.types import Group, InputError, Prompt, PromptRow, Sampling
from timemaster.workers import handle
from timemaster.workers.dispatch import Dispatcher, EngineReport
from timemaster.workers.engine import EngineRank

ROWS = [PromptRow(question(f"row {i}", []), Prompt(id=f"row {i}", token_ids=[1], media=[])) for i in range(24)]
FOUR = Sampling(n=4)


def requests(num: int) -> list[Request]:
    return [
        Request(key=i, example=row.example, prompt=row.prompt, sampling=FOUR, version=0, seed="")
        for i, row in enumerate(ROWS[:num])
    ]


def test_prompts_are_dealt_equally_while_all_fit() -> None:
    calls = Dispatcher(requests(5), num_engines=2, capacity=16).first_calls()
    shares = [(engine, [request.key for request in share]) for engine, share in calls]
    assert shares == [(0, [0, 2, 4]), (0, []), (1, [1, 3]), (1, [])]  # the second calls begin when the first ones end
    assert [engine for engine, _ in Dispatcher(requests(1), 3, 16).first_calls()] == [0, 0]


def test_an_engine_is_given_prompts_as_its_sequences_finish_and_no_more_than_it_may_hold() -> None:
    dispatcher = Dispatcher(requests(9), num_engines=1, capacity=16)
    assert [len(share) for _, share in dispatcher.first_calls()] == [4, 0]  # 4 x 4 sequences
    scoring = EngineReport([], num_unfinished=9)  # a prompt is not complete before it is scored, but its room is free
    assert [request.key for request in dispatcher.next_call(0, scoring) or []] == [4]  # 9 + 4; another 4 are too many
    assert dispatcher.next_call(0, EngineReport([], num_unfinished=9)) == []  # the call with prompt 4 is still open
    assert [r.key for r in dispatcher.next_call(0, EngineReport([(0, Group(ROWS[0].example, []))], 4)) or []] == [
        5,
        6,
        7,
    ]


def test_more_answers_a_prompt_than_an_engine_may_hold_go_one_prompt_at_a_time() -> None:
    dispatcher = Dispatcher(requests(3), num_engines=1, capacity=2)
    assert [len(share) for _, share in dispatcher.first_calls()] == [1, 0]
    assert dispatcher.next_call(0, EngineReport([], num_unfinished=3)) == []
    assert [r.key for r in dispatcher.next_call(0, EngineReport([(0, Group(ROWS[0].example, []))], 0)) or []] == [1]


class Loop:
    """A rollout loop whose engine finishes one prompt a step, the latest first."""

    def __init__(self, fails_at: int = -1) -> None:
        self.open: list[Request] = []
        self.taken: list[int] = []
        self.fails_at = fails_at

    def add(self, request: Request) -> None:
        self.open.append(request)
        self.taken.append(request.key)

    def num_open(self) -> int:
        return len(self.open)

    def num_unfinished(self) -> int:
        return sum(request.sampling.n for request in self.open)

    def advance(self) -> list[tuple[int, Group]]:
        request = self.open.pop()
        if request.key == self.fails_at:
            raise InputError("a reward failed")
        return [(request.key, Group(request.example, []))]

    def abandon(self) -> None:
        self.open = []


class Actor:
    """An engine's actor: its calls wait until the driver looks for them."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.rank = loop, EngineRank.__new__(EngineRank)
        self.rank.loop = loop  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.rank, name)
        return SimpleNamespace(remote=lambda *args: call() if name == "abandon" else (self, lambda: call(*args)))


def workers_with(monkeypatch: pytest.MonkeyPatch, loops: list[Loop], next_engine: Callable[[], int]) -> handle.Workers:
    """The driver's handle on engines; `next_engine` says which of them answers its oldest call next."""
    actors = [Actor(loop) for loop in loops]

    def first_result(calls: list[Any], _: Any) -> tuple[int, Any]:
        wanted = actors[next_engine()]
        position = next((i for i, (actor, _) in enumerate(calls) if actor is wanted), 0)
        return position, calls[position][1]()

    monkeypatch.setattr(handle, "first_result", first_result)
    workers = handle.Workers.__new__(handle.Workers)
    workers.cfg, workers.engines, workers.shares_gpus, workers._names = Config(), actors, False, {}
    workers.cfg.rollout.max_num_seqs = 8
    return workers


def test_a_faster_engine_answers_more_prompts_and_the_groups_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter([0, 0, 0, 1] * 100)
    loops = [Loop(), Loop()]
    two = list(workers_with(monkeypatch, loops, lambda: next(turns)).rollout(ROWS, FOUR, version=0, seed="1"))
    fast, slow = (len(loop.taken) for loop in loops)
    assert fast + slow == len(ROWS)
    assert fast > 1.5 * slow
    one = list(workers_with(monkeypatch, [Loop()], lambda: 0).rollout(ROWS, FOUR, version=0, seed="1"))
    assert dict(two) == dict(one) == {i: Group(row.example, []) for i, row in enumerate(ROWS)}
    assert [i for i, _ in two] != sorted(i for i, _ in two)  # they come as they are complete


def test_at_a_failure_all_engines_give_up_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter([0, 1] * 100)
    loops = [Loop(), Loop(fails_at=1)]
    workers = workers_with(monkeypatch, loops, lambda: next(turns))
    groups = workers.rollout(ROWS, FOUR, version=0, seed="1")
    assert len([next(groups) for _ in range(5)]) == 5
    with pytest.raises(InputError, match="a reward failed"):
        list(groups)
    assert [loop.num_open() for loop in loops] == [0, 0]
    turns = iter([0, 1] * 100)
    stopped = workers_with(monkeypatch, [Loop(), Loop()], lambda: next(turns))
    for _ in stopped.rollout(ROWS, FOUR, version=0, seed="1"):
        break  # the caller has enough
    assert [actor.loop.num_open() for actor in stopped.engines] == [0, 0]
