"""Calling rewards. They are anybody's code: they raise, exit, cancel, block, never end; every call has an outcome.

Plain functions run in threads, awaitables on one event loop; a loop that is blocked or closed is replaced.
"""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Event, RLock, Thread
from typing import Any, SupportsFloat

from timemaster.types import InputError

logger = logging.getLogger(__name__)

GRACE = 60.0  # seconds after a call's time limit in which no thread of the process could run
MAX_STUCK = 32  # threads that calls hold after their time limit; with one more the run ends
NUM_SHOWN = 500  # characters of a failure


class RewardsStuck(InputError):
    """So many calls never end that nothing more can be scored. Never counted as a score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a call came to. Example: Outcome(value=1.0, more={"acc": 1.0})"""

    value: float = 0.0
    more: Mapping[str, float] = field(default_factory=dict)  # further numbers that the reward gave, by name
    unknown: str = ""  # why a judge could not settle it
    failure: BaseException | None = None  # what was raised instead
    batch: tuple[Outcome, ...] = ()  # of a batched reward that returned: one outcome per rollout


@dataclass(slots=True, eq=False)
class _Call:
    fn: Callable[[], Any]
    has_limit: bool
    read: Callable[[Any], Outcome]
    done: Future[Outcome] = field(default_factory=Future)
    is_settled: bool = False
    began: float | None = None  # time.monotonic()
    loop: asyncio.AbstractEventLoop | None = None  # None: in a thread, or waiting for one
    task: asyncio.Task[None] | None = None


class Caller:
    """Calls functions in `num_threads` threads and on an event loop. A call that takes longer than `timeout` seconds
    (0: no limit) fails; awaitables are then cancelled, threads left behind and replaced. All threads are daemons. A
    call that lets no other thread run ends the process, GRACE seconds later.
    """

    def __init__(self, num_threads: int, timeout: float) -> None:
        self._timeout = timeout
        self._waiting: SimpleQueue[_Call | None] = SimpleQueue()
        # Of all below and of the fields of calls. Reentrant: a coroutine that is collected as garbage settles its call.
        self._lock = RLock()
        self._running: set[_Call] = set()
        self._num_threads, self._num_stuck = 0, 0
        self._loop: asyncio.AbstractEventLoop | None = None  # made for the first awaitable
        self._pinged: float | None = None  # when the loop was asked for a sign of life that has not come yet
        self._closed = Event()
        for _ in range(num_threads):
            self._add_thread()
        if timeout:
            self._guard()
            Thread(target=self._watch, name="scoring limits", daemon=True).start()

    def call(
        self, fn: Callable[[], Any], is_async: bool, has_limit: bool, read: Callable[[Any], Outcome]
    ) -> Future[Outcome]:
        """What `fn` returns, as `read` reads it, later: the Future never raises. The event loop calls an async `fn`."""
        call = _Call(fn, has_limit, read)
        with self._lock:
            self._running.add(call)
        if is_async:
            self._move_to_loop(call, None)
        else:
            self._waiting.put(call)
        return call.done

    def close(self) -> None:
        """End the threads that are not in a call."""
        self._closed.set()
        for _ in range(self._num_threads):
            self._waiting.put(None)
        with self._lock:
            loop, self._loop = self._loop, None
        if loop:
            _post(loop, loop.stop)

    # ---- threads

    def _add_thread(self) -> None:
        with self._lock:
            self._num_threads += 1
        Thread(target=self._work, name="scoring", daemon=True).start()

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            call.began = time.monotonic()
            try:
                result = call.fn()
                if inspect.isawaitable(result):
                    is_mine = self._move_to_loop(call, result)
                else:
                    is_mine = self._settle(call, call.read(result))
            except BaseException as error:
                is_mine = self._settle(call, Outcome(failure=error))
            if not is_mine:  # it was given up, and another thread has taken the place of this one
                with self._lock:
                    self._num_stuck -= 1
                return

    # ---- the event loop

    def _move_to_loop(self, call: _Call, awaitable: Awaitable[Any] | None) -> bool:
        """Await what a call gave, or call it on the loop. False when it has an outcome already."""
        with self._lock:
            if call.is_settled:
                return False
            if self._loop is None:
                self._loop, self._pinged = asyncio.new_event_loop(), None
                Thread(target=self._serve, args=(self._loop,), name="scoring loop", daemon=True).start()
            loop = call.loop = self._loop

        def start() -> None:
            task = call.task = loop.create_task(self._await(call, loop, awaitable))
            # A task that is cancelled before its first step settles nothing itself.
            task.add_done_callback(lambda _: self._settle(call, Outcome(failure=asyncio.CancelledError())))

        if not _post(loop, start):
            self._lose(loop, "closed")
        return True

    async def _await(self, call: _Call, loop: asyncio.AbstractEventLoop, awaitable: Awaitable[Any] | None) -> None:
        if call.is_settled or call.loop is not loop:  # the loop was blocked, and another one has taken its place
            return
        call.began = call.began or time.monotonic()
        try:
            result = call.fn() if awaitable is None else awaitable
            while inspect.isawaitable(result):
                result = await result
            outcome = call.read(result)
        except BaseException as error:  # an exit, or being cancelled, would end more than this call
            outcome = Outcome(failure=error)
        self._settle(call, outcome)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the event loop until it is replaced, though a reward stops it, or exits in a task of its own."""
        asyncio.set_event_loop(loop)
        while self._loop is loop and not loop.is_closed():
            try:
                loop.run_forever()
            except BaseException as error:
                logger.warning("a task that a reward left on the event loop raised %s", described(error))
        if loop.is_closed():
            self._lose(loop, "closed")
            return
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.call_soon(loop.stop)
        loop.run_forever()  # once more, for what is cancelled to end
        loop.close()

    def _lose(self, loop: asyncio.AbstractEventLoop, what: str) -> None:
        """Go on with another event loop. Calls that had begun on this one fail, the others are made on the new one."""
        with self._lock:
            if self._loop is loop:
                self._loop = None
            own = [call for call in list(self._running) if call.loop is loop]
        for call in own:
            if call.began is None:
                self._move_to_loop(call, None)
            else:
                why = f"the event loop, which all async rewards share, was {what} by a reward"
                self._settle(call, Outcome(failure=RuntimeError(why)))

    # ---- limits

    def _watch(self) -> None:
        while not self._closed.wait(min(self._timeout / 4, 1.0)):
            self._guard()
            now = time.monotonic()
            with self._lock:
                begun = [call for call in list(self._running) if call.has_limit and call.began is not None]
                loop, pinged = self._loop, self._pinged
            for call in begun:
                if now - (call.began or now) > self._timeout:
                    self._give_up(call)
            if loop is None:
                continue
            if pinged is None:
                self._pinged = now
                _post(loop, self._pong)
            elif now - pinged > self._timeout:
                self._lose(loop, f"blocked for more than reward.timeout={self._timeout:g} seconds")
        faulthandler.cancel_dump_traceback_later()

    def _guard(self) -> None:
        """End the process unless this is called again in time, which takes a thread that runs.

        Some calls keep the interpreter to themselves, as a regular expression that backtracks for ever: then no thread
        runs any more. The stacks of all go to stderr.
        """
        faulthandler.dump_traceback_later(min(self._timeout + GRACE, TIMEOUT_MAX), exit=True, file=2)  # stderr

    def _pong(self) -> None:
        self._pinged = None

    def _give_up(self, call: _Call) -> None:
        why = f"it took longer than reward.timeout={self._timeout:g} seconds"
        failure: BaseException = TimeoutError(why)
        if call.loop is None and self._num_stuck == MAX_STUCK:
            failure = RewardsStuck(f"{why}, as {MAX_STUCK} calls before it that have not ended yet")
        if not self._settle(call, Outcome(failure=failure)):
            return
        if call.loop is None:
            with self._lock:
                self._num_stuck += 1
            self._add_thread()
        elif call.task:
            _post(call.loop, call.task.cancel)

    def _settle(self, call: _Call, outcome: Outcome) -> bool:
        """Whether this is the call's first outcome."""
        with self._lock:
            if call.is_settled:
                return False
            call.is_settled = True
            self._running.discard(call)
        call.done.set_result(outcome)
        return True


def _post(loop: asyncio.AbstractEventLoop, what: Callable[[], Any]) -> bool:
    """Have the loop's thread call `what`. False when the loop is closed."""
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:
        return False
    return True


def outcome_of(result: Any) -> Outcome:
    """What a reward returned, as numbers. Raises ValueError for anything else, and what the user's objects raise."""
    if not isinstance(result, Mapping):
        return Outcome(value=_number(result, result))
    if "score" not in result:
        raise ValueError(f"a dict with 'score' is expected, got {result!r:.200}")
    if result["score"] is None:
        return Outcome(unknown=str(result.get("reason") or "")[:NUM_SHOWN] or "no reason given")
    more = {str(key): finite(value) for key, value in result.items() if key != "score"}
    return Outcome(
        value=_number(result["score"], result),
        more={key: number for key, number in more.items() if number is not None},
    )


def outcomes_of(result: Any, num_rollouts: int) -> Outcome:
    """What a batched reward returned: one value per rollout. Raises ValueError unless there are as many as rollouts. A
    value that is no number is a failure of its rollout alone.
    """
    if isinstance(result, str | Mapping) or not (hasattr(result, "__len__") and hasattr(result, "__iter__")):
        raise ValueError(f"a list of {num_rollouts} values is expected, one per rollout, got {result!r:.200}")
    values = list(result)
    if len(values) != num_rollouts:
        raise ValueError(f"{num_rollouts} values are expected, one per rollout, got {len(values)}: {result!r:.200}")
    return Outcome(batch=tuple(_outcome_or_failure(value) for value in values))


def _outcome_or_failure(value: Any) -> Outcome:
    try:
        return outcome_of(value)
    except BaseException as error:  # of the user's objects
        return Outcome(failure=error)


def _number(value: Any, result: Any) -> float:
    number = finite(value)
    if number is None:
        raise ValueError(f"a finite number is expected, got {result!r:.200}")
    return number


def finite(value: Any) -> float | None:
    """`value` as a float; None when it is no number, several, or not finite."""
    if not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except Exception:  # the user's value, of any library: an array of several numbers, an int beyond all floats
        return None
    return number if math.isfinite(number) else None


def described(error: BaseException) -> str:
    """Kind and text of an exception of anybody's making."""
    try:
        return f"{type(error).__name__}: {error}"[:NUM_SHOWN]
    except BaseException:
        return f"{type(error).__name__}, whose text cannot be made"
