"""Scoring the rollouts of one prompt as they are finished: each part is called as soon as what it needs is there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

from timemaster.media.images import load_image
from timemaster.rewards.outcome import Outcome, outcome_of, outcomes_of
from timemaster.rewards.reward_part import RewardPart, Signature, in_order, signature_of
from timemaster.system.calls import Caller
from timemaster.types import Example, Media, Rollout, Score


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
        self._lock = Lock()  # guards all below
        self._num_missing = num_rollouts
        self._rollouts: dict[int, Rollout] = {}  # those that are scored
        self._outcomes: list[dict[str, Outcome]] = [{} for _ in range(num_rollouts)]  # of one rollout, by part
        self._begun: set[tuple[str, int]] = set()  # part and rollout: called, or settled without a call
        self._open = set(range(num_rollouts))  # rollouts without a score

    def add(self, index: int, rollout: Rollout) -> Future[Score | None]:
        """Start to score rollout number `index` of the group. The Future gives None for a rollout with `failure`."""
        with self._lock:
            self._num_missing -= 1
            if rollout.failure:
                self._open.discard(index)
            else:
                self._rollouts[index] = rollout
        if rollout.failure:
            self._scores[index].set_result(None)
        self._advance()
        return self._scores[index]

    def _advance(self) -> None:
        """Start all calls that can be made now, and publish the scores that are complete."""
        complete: list[int] = []
        try:
            with self._lock:
                calls = self._due_calls()
                complete = [i for i in self._rollouts if i in self._open and len(self._outcomes[i]) == len(self._parts)]
                self._open.difference_update(complete)
            for call in calls:
                self._start(call)
        except BaseException as error:  # else it would be lost in the thread of a call
            with self._lock:
                unscored, self._open = {*self._open, *complete}, set()
            for i in unscored:
                self._scores[i].set_exception(error)
            return
        for i in complete:
            try:
                self._scores[i].set_result(self._to_score([self._outcomes[i][part.name] for part in self._parts]))
            except BaseException as error:  # likewise
                self._scores[i].set_exception(error)

    def _due_calls(self) -> list[_Call]:
        """The calls that can be made now. A part that needs no call, by its condition, gets its outcome here."""
        calls: list[_Call] = []
        for part, signature in self._in_order:
            if signature.needs_group and self._num_missing:
                continue
            left = [i for i in sorted(self._rollouts) if (part.name, i) not in self._begun]
            ready = [i for i in left if all(name in self._outcomes[i] for name in part.dependencies)]
            if signature.is_batched and len(ready) < len(left):
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
            # Pictures are decoded in the call, which would block the event loop; what a thread's call returns is
            # awaited there, too.
            is_async=inspect.iscoroutinefunction(fn) and not wants_images,
            read=partial(outcomes_of, num_rollouts=len(call.indices)) if signature.is_batched else _single_outcome,
            has_limit=not call.part.asks_judge,
        )
        future.add_done_callback(lambda done: self._finish(call, done))

    def _finish(self, call: _Call, done: Future[list[Outcome]]) -> None:
        failure = done.exception()  # of all rollouts of the call
        outcomes = done.result() if failure is None else [Outcome(failure=failure)] * len(call.indices)
        with self._lock:
            for i, one in zip(call.indices, outcomes, strict=True):
                self._outcomes[i][call.part.name] = one
        self._advance()

    def _bound(self, call: _Call) -> Callable[[], Any]:
        """The part's function with its arguments. They are copies, so that a reward can change nothing for others."""
        signature, names = call.signature, call.part.dependencies
        own = [self._rollouts[i] for i in call.indices]
        values: dict[str, list[Any]] = {  # by keyword, one entry per rollout of the call
            "tokens": [[id for id, sampled in zip(r.token_ids, r.mask, strict=True) if sampled] for r in own],
            "parts": [{name: self._outcomes[i][name].value for name in names} for i in call.indices],
        }
        values = {name: value if signature.is_batched else value[0] for name, value in values.items()}
        if "group" in signature.keywords:
            values["group"] = [copy_of_rollout(self._rollouts[i]) for i in sorted(self._rollouts)]
        keywords = {name: value for name, value in values.items() if name in signature.keywords}
        copies = [copy_of_rollout(rollout) for rollout in own]
        bound = partial(
            call.part.fn, copies if signature.is_batched else copies[0], copy_of_example(self._example), **keywords
        )
        if "images" not in signature.keywords:
            return bound
        return partial(_call_with_images, bound, [rollout.media for rollout in own], signature.is_batched)


def _single_outcome(result: Any) -> list[Outcome]:
    return [outcome_of(result)]


def _call_with_images(fn: Callable[..., Any], media: Sequence[Sequence[Media]], is_batched: bool) -> Any:
    images = [[load_image(one) for one in own if one.kind == "image"] for own in media]
    return fn(images=images if is_batched else images[0])


def _outcome_without_call(part: RewardPart, known: Mapping[str, Outcome]) -> Outcome | None:
    """The outcome of a part that is not called: 0.0 when a condition is false, unknown when a dependency is unknown.
    None when it has to be called. A dependency that failed counts as 0.0.
    """
    if any(not known[name].unknown and known[name].value <= 0 for name in part.conditions):
        return Outcome(value=0.0)
    unknown = [name for name in part.dependencies if known[name].unknown]
    return Outcome(unknown=f"it depends on {unknown[0]!r}, which is unknown") if unknown else None


def copy_of_rollout(rollout: Rollout) -> Rollout:
    """The rollout with lists and dicts of its own."""
    lists: dict[str, Any] = {
        name: list(getattr(rollout, name)) for name in ("token_ids", "mask", "logprobs", "versions", "media")
    }
    turns = [replace(turn, token_ids=list(turn.token_ids), media=list(turn.media)) for turn in rollout.turns]
    return replace(rollout, **lists, turns=turns, numbers=dict(rollout.numbers))


def copy_of_example(example: Example) -> Example:
    """The example with lists and dicts of its own."""
    messages = [replace(message, parts=list(message.parts)) for message in example.messages]
    return replace(example, messages=messages, extra=_copy(example.extra))


def _copy(value: Any) -> Any:
    # Not copy.deepcopy: it takes three times as long for a series of numbers.
    if isinstance(value, dict):
        return {key: _copy(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_copy(one) if isinstance(one, list | dict) else one for one in value]
    return value
