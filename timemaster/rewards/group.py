"""Scores the rollouts of one prompt as they finish. Each part is called as soon as everything it needs is known."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from functools import partial
from threading import Lock
from typing import Any, TypeVar

from timemaster.media.images import load_image
from timemaster.rewards.outcome import Outcome, outcome_of, outcomes_of
from timemaster.rewards.reward_part import RewardPart, Signature, in_order, signature_of
from timemaster.system.calls import Caller
from timemaster.types import Example, Media, Rollout, Score, Turn

Record = TypeVar("Record", Rollout, Turn)


@dataclass(frozen=True, slots=True)
class _Call:
    """A part that can be called now, and the rollouts that the call is about: one, or several of a batched part."""

    part: RewardPart
    signature: Signature
    indices: list[int]


class GroupScoring:
    """The scores of `num_rollouts` rollouts of one example. `add` each of them once, in any order.

    A part is called for a rollout when that rollout has been added and the parts it depends on are known. A part that
    asks for the group also waits for the last rollout. A rollout with `failure` is not scored and not in the group.
    """

    def __init__(
        self,
        caller: Caller,
        parts: Sequence[RewardPart],
        example: Example,
        num_rollouts: int,
        to_score: Callable[[Sequence[Outcome]], Score],  # given the outcomes in the order of `parts`
    ) -> None:
        """Raises InputError for parts whose dependencies or signatures cannot be satisfied."""
        self._caller, self._parts, self._example, self._to_score = caller, parts, example, to_score
        self._in_order = [(part, signature_of(part.fn)) for part in in_order(parts)]
        self._scores: list[Future[Score | None]] = [Future() for _ in range(num_rollouts)]
        self._changes: deque[Callable[[], None]] = deque()  # changes that have arrived, to be made under the lock
        self._lock = Lock()  # guards the attributes below
        self._num_missing = num_rollouts
        self._rollouts: dict[int, Rollout] = {}  # those that are scored
        self._outcomes: list[dict[str, Outcome]] = [{} for _ in range(num_rollouts)]  # of one rollout, by part
        self._begun: set[tuple[str, int]] = set()  # (part, rollout): called, or known without a call

    def add(self, index: int, rollout: Rollout) -> Future[Score | None]:
        """Start to score rollout number `index` of the group. The Future gives None for a rollout with `failure`."""
        self._apply(partial(self._take, index, rollout))
        return self._scores[index]

    def _apply(self, change: Callable[[], None]) -> None:
        """Make a change, then start all calls that it allows. If another thread is already here, it does both.

        No thread waits for the lock: a coroutine that is garbage-collected ends its call in any thread at any time,
        even in a thread that holds the lock.
        """
        self._changes.append(change)
        while self._changes and self._lock.acquire(blocking=False):
            try:
                while self._changes:
                    self._changes.popleft()()
                for call in self._due_calls():
                    self._start(call)
                self._publish()
            except BaseException as error:  # otherwise it would be lost in the thread of a call
                for score in self._scores:
                    if not score.done():
                        score.set_exception(error)
            finally:
                self._lock.release()

    def _take(self, index: int, rollout: Rollout) -> None:
        self._num_missing -= 1
        if rollout.failure:
            self._scores[index].set_result(None)
        else:
            self._rollouts[index] = rollout

    def _publish(self) -> None:
        """Give the scores of the rollouts whose parts are all known."""
        for i in self._rollouts:
            if self._scores[i].done() or len(self._outcomes[i]) < len(self._parts):
                continue
            try:
                self._scores[i].set_result(self._to_score([self._outcomes[i][part.name] for part in self._parts]))
            except BaseException as error:  # of this rollout alone
                self._scores[i].set_exception(error)

    def _due_calls(self) -> list[_Call]:
        """The calls that can be made now. A part whose conditions make a call needless gets its outcome here."""
        calls: list[_Call] = []
        for part, signature in self._in_order:
            if signature.needs_group and self._num_missing:
                continue
            not_begun = [i for i in sorted(self._rollouts) if (part.name, i) not in self._begun]
            ready = [i for i in not_begun if all(name in self._outcomes[i] for name in part.dependencies)]
            if signature.is_batched and len(ready) < len(not_begun):
                continue
            due = []
            for i in ready:
                outcome = _outcome_without_call(part, self._outcomes[i])
                if outcome is None:
                    due.append(i)
                else:
                    self._outcomes[i][part.name] = outcome
            self._begun.update((part.name, i) for i in ready)
            if signature.is_batched and due:
                calls.append(_Call(part, signature, due))
            elif not signature.is_batched:
                calls += [_Call(part, signature, [i]) for i in due]
        return calls

    def _start(self, call: _Call) -> None:
        fn, signature = call.part.fn, call.signature
        wants_images = "images" in signature.keywords
        future = self._caller.call(
            self._bound(call),
            # A call with images decodes them, which would block the event loop, so it runs in a thread. An awaitable
            # that it returns is still awaited on the loop.
            is_async=inspect.iscoroutinefunction(fn) and not wants_images,
            read=partial(outcomes_of, num_rollouts=len(call.indices)) if signature.is_batched else _single_outcome,
            has_limit=not call.part.asks_judge,
        )
        future.add_done_callback(lambda done: self._apply(partial(self._finish, call, done)))

    def _finish(self, call: _Call, done: Future[list[Outcome]]) -> None:
        failure = done.exception()  # of all rollouts of the call
        outcomes = done.result() if failure is None else [Outcome(failure=failure)] * len(call.indices)
        for i, outcome in zip(call.indices, outcomes, strict=True):
            self._outcomes[i][call.part.name] = outcome

    def _bound(self, call: _Call) -> Callable[[], Any]:
        """The part's function with its arguments. They are copies, so that a reward can change nothing for others."""
        signature = call.signature
        rollouts = [self._rollouts[i] for i in call.indices]
        keywords: dict[str, Any] = {}
        if "tokens" in signature.keywords:
            keywords["tokens"] = [_sampled_tokens(rollout) for rollout in rollouts]
        if "parts" in signature.keywords:
            names = call.part.dependencies
            keywords["parts"] = [{name: self._outcomes[i][name].value for name in names} for i in call.indices]
        if not signature.is_batched:
            keywords = {name: values[0] for name, values in keywords.items()}
        if "group" in signature.keywords:
            keywords["group"] = [copy_of_rollout(self._rollouts[i]) for i in sorted(self._rollouts)]
        copies = [copy_of_rollout(rollout) for rollout in rollouts]
        bound = partial(
            call.part.fn, copies if signature.is_batched else copies[0], copy_of_example(self._example), **keywords
        )
        if "images" not in signature.keywords:
            return bound
        return partial(_call_with_images, bound, [rollout.media for rollout in rollouts], signature.is_batched)


def _single_outcome(result: Any) -> list[Outcome]:
    return [outcome_of(result)]


def _sampled_tokens(rollout: Rollout) -> list[int]:
    return [token for token, is_sampled in zip(rollout.token_ids, rollout.mask, strict=True) if is_sampled]


def _call_with_images(fn: Callable[..., Any], media: Sequence[Sequence[Media]], is_batched: bool) -> Any:
    images = [[load_image(item) for item in of_rollout if item.kind == "image"] for of_rollout in media]
    return fn(images=images if is_batched else images[0])


def _outcome_without_call(part: RewardPart, known: Mapping[str, Outcome]) -> Outcome | None:
    """The outcome of a part that need not be called: 0.0 when a condition is false, unknown when a dependency is
    unknown. None when the part has to be called. A dependency that failed counts as 0.0.
    """
    if any(not known[name].unknown and known[name].value <= 0 for name in part.conditions):
        return Outcome(value=0.0)
    unknown = [name for name in part.dependencies if known[name].unknown]
    return Outcome(unknown=f"it depends on {unknown[0]!r}, which is unknown") if unknown else None


def copy_of_rollout(rollout: Rollout) -> Rollout:
    """The rollout with lists and dicts of its own."""
    return replace(_with_own_lists(rollout), turns=[_with_own_lists(turn) for turn in rollout.turns])


def _with_own_lists(record: Record) -> Record:
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    copies: dict[str, Any] = {name: value.copy() for name, value in values.items() if isinstance(value, list | dict)}
    return replace(record, **copies)


def copy_of_example(example: Example) -> Example:
    """The example with lists and dicts of its own."""
    messages = [replace(message, parts=list(message.parts)) for message in example.messages]
    return replace(example, messages=messages, extra=_copy(example.extra))


def _copy(value: Any) -> Any:
    # Not copy.deepcopy: it takes three times as long for a series of numbers.
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) if isinstance(item, list | dict) else item for item in value]
    return value
