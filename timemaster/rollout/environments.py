"""Calls environments while sequences are decoded: makes, steps and closes them. See `timemaster.environments`.

Each kind of environment has its own threads and event loop; a call that takes longer than `EnvironmentSpec.timeout` is
given up and its thread left behind.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Lock
from typing import Any

from timemaster.environments import Environment, EnvironmentSpec
from timemaster.environments.record import RESERVED
from timemaster.media.images import load_image
from timemaster.system.calls import Caller, described
from timemaster.tokens.render import parts_of
from timemaster.types import Example, Part, Reply, Turn

log = logging.getLogger(__name__)

NUM_THREADS = 64  # of each kind of environment: as many steps that are not async run at once


@dataclass(slots=True, eq=False)
class OpenEnvironment:
    """The environment of one rollout, made before its first step."""

    spec: EnvironmentSpec
    example: Example
    made: Environment | None = None
    is_closed: bool = False
    lock: Lock = field(default_factory=Lock)  # protects the two fields above


class Environments:
    """The environments of the rollouts that are being made."""

    def __init__(self) -> None:
        self._callers: dict[int, tuple[EnvironmentSpec, Caller]] = {}  # by the id of their spec, which is kept alive

    def step(self, opened: OpenEnvironment, turn: Turn) -> Future[Reply]:
        """A Future of the reply to `turn`. It has the exception of an environment that fails, or CallsStuck."""
        if opened.made is not None:
            return self._step(opened.spec, opened.made, turn)
        answer: Future[Reply] = Future()

        def step(made: Future[Environment]) -> None:
            if error := made.exception():
                answer.set_exception(error)
            elif opened.is_closed:  # nobody waits for the reply any more
                answer.cancel()
            else:
                self._step(opened.spec, made.result(), turn).add_done_callback(forward)

        def forward(reply: Future[Reply]) -> None:
            if error := reply.exception():
                answer.set_exception(error)
            else:
                answer.set_result(reply.result())

        make = partial(opened.spec.make, opened.example)
        self._call(opened.spec, make, partial(self._keep, opened)).add_done_callback(step)
        return answer

    def close(self, opened: OpenEnvironment) -> Future[None]:
        """Begin to close the environment if it was made. If it is still being made, it is closed afterwards."""
        with opened.lock:
            assert not opened.is_closed
            opened.is_closed = True
            made = opened.made
        if made is None:
            closed: Future[None] = Future()
            closed.set_result(None)
            return closed
        return self._close(opened, made)

    def _keep(self, opened: OpenEnvironment, made: Environment) -> Environment:
        """Store the environment that was made. If its rollout has ended by then, close it."""
        with opened.lock:
            opened.made = made
            is_late = opened.is_closed
        if is_late:
            self._close(opened, made)
        return made

    def _close(self, opened: OpenEnvironment, made: Environment) -> Future[None]:
        def warn_if_failed(done: Future[None]) -> None:
            if error := done.exception():
                log.warning("closing the %s of example %r failed: %s", _name(made), opened.example.id, described(error))

        closed = self._call(opened.spec, made.close, lambda _: None)
        closed.add_done_callback(warn_if_failed)
        return closed

    def _step(self, spec: EnvironmentSpec, made: Environment, turn: Turn) -> Future[Reply]:
        turn_copy = replace(turn, token_ids=list(turn.token_ids))
        return self._call(spec, partial(made.step, turn_copy), checked)

    def _call(self, spec: EnvironmentSpec, fn: Callable[[], Any], read: Callable[[Any], Any]) -> Future[Any]:
        if id(spec) not in self._callers:
            caller = Caller(NUM_THREADS, spec.timeout, "environment", "EnvironmentSpec.timeout")
            self._callers[id(spec)] = spec, caller
        target = fn.func if isinstance(fn, partial) else fn
        return self._callers[id(spec)][1].call(fn, inspect.iscoroutinefunction(target), read)


def checked(reply: Any) -> Reply:
    """The reply if it can be used. Raises TypeError or ValueError that says what is wrong with it, or PIL's errors."""
    if not isinstance(reply, Reply):
        raise TypeError(f"step gives a Reply, not {reply!r:.200}")
    if reply.messages and reply.parts:
        raise ValueError("Reply has messages and parts; give one of them")
    if reply.temperature is not None and not 0 < reply.temperature < math.inf:
        raise ValueError(f"Reply.temperature is {reply.temperature}; give a number above 0")
    if reply.max_tokens is not None and reply.max_tokens < 1:
        raise ValueError(f"Reply.max_tokens is {reply.max_tokens}; give 1 or more")
    if isinstance(reply.stop, str) or "" in (reply.stop or ()):
        raise ValueError(f"Reply.stop is {reply.stop!r}; give a tuple of strings, none of them empty")
    for part in parts_of(reply):
        _check_part(part)
    return replace(reply, numbers={name: _number(name, value) for name, value in reply.numbers.items()})


def _number(name: str, value: Any) -> float:
    number = float(value)
    if name in RESERVED or not math.isfinite(number):
        raise ValueError(f"Reply.numbers has {name!r}: {value!r:.200}; give finite numbers, none called {RESERVED}")
    return number


def _check_part(part: Part) -> None:
    """A broken image must not reach the engine."""
    if part.kind == "text":
        return
    if part.kind != "image" or part.media is None:
        raise ValueError(f"Reply has a part of kind {part.kind!r}; give text, and images with their media")
    size = load_image(part.media).size
    if size != (part.media.width, part.media.height):
        raise ValueError(f"Reply has an image of {size} pixels whose media says otherwise; make it by image_media")


def _name(made: Environment) -> str:
    return f"environment {type(made).__name__}"
