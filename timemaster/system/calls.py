"""Calling functions that users wrote: rewards, environments. They may raise, exit, cancel, block or never end.

Every call has a result or an exception within its time limit. Plain functions run in threads, awaitables on one event
loop; a loop that is blocked or closed is replaced.
"""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import TIMEOUT_MAX, Event, RLock, Thread
from typing import Any, TypeVar

from timemaster.types import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

GRACE = 60.0  # seconds after a call's time limit until a process whose threads cannot run is ended
MAX_STUCK = 32  # threads that may be stuck in calls after their time limit; one more ends the run
NUM_SHOWN = 500  # characters shown of a failure


class CallsStuck(InputError):
    """Too many calls never end, so no further calls can be made. The run ends."""


@dataclass(slots=True, eq=False)
class _Call:
    fn: Callable[[], Any]
    read: Callable[[Any], Any]
    has_limit: bool
    done: Future[Any] = field(default_factory=Future)
    is_settled: bool = False
    began: float | None = None  # time.monotonic()
    loop: asyncio.AbstractEventLoop | None = None  # None: in a thread, or waiting for one
    task: asyncio.Task[None] | None = None


class Caller:
    """Calls functions in at most `num_threads` threads, started when needed, and on an event loop.

    A call that takes longer than `timeout` seconds (0: no limit) fails: an awaitable is cancelled, a thread is left
    behind and replaced. All threads are daemons. If a call keeps all other threads from running, the process ends GRACE
    seconds after the limit.
    """

    def __init__(self, num_threads: int, timeout: float, kind: str, setting: str) -> None:
        """`kind`: what is called, for messages ("reward"). `setting`: where the limit is set ("reward.timeout")."""
        self._timeout, self._kind, self._limit = timeout, kind, f"{setting}={timeout:g} seconds"
        self._waiting: SimpleQueue[_Call | None] = SimpleQueue()
        # For all fields below and the fields of calls. Reentrant: garbage collection of a coroutine may settle a call.
        self._lock = RLock()
        self._running: set[_Call] = set()
        self._max_threads = num_threads
        self._num_threads, self._num_stuck = 0, 0  # stuck threads do not count in _num_threads
        self._num_calls = 0  # calls that run in a thread or wait for one, without stuck calls
        self._loop: asyncio.AbstractEventLoop | None = None  # made for the first awaitable
        self._pinged: float | None = None  # time of a ping that the loop has not answered yet
        self._closed = Event()
        if timeout:
            self._guard()
            Thread(target=self._watch, name=f"{kind} limits", daemon=True).start()

    def call(
        self, fn: Callable[[], Any], is_async: bool, read: Callable[[Any], T], has_limit: bool = True
    ) -> Future[T]:
        """A Future of `read(fn())`. If the call fails, the Future has the exception, of any kind.

        An async `fn` is called on the event loop. `read` runs in the thread or on the loop where the call
        ends, within the call's limit.
        """
        call = _Call(fn, read, has_limit)
        with self._lock:
            self._running.add(call)
        if is_async:
            self._move_to_loop(call, None)
        else:
            self._change_calls(1)
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

    def _change_calls(self, change: int) -> None:
        """Change the number of calls, and start a thread if there are too few."""
        with self._lock:
            self._num_calls += change
            if self._num_threads >= min(self._num_calls, self._max_threads):
                return
            self._num_threads += 1
        Thread(target=self._work, name=self._kind, daemon=True).start()

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            call.began = time.monotonic()
            try:
                result = call.fn()
                if inspect.isawaitable(result):
                    is_first = self._move_to_loop(call, result)
                else:
                    is_first = self._settle(call, call.read(result))
            except BaseException as error:
                is_first = self._fail(call, error)
            if not is_first:  # the call was given up, and another thread has replaced this one
                with self._lock:
                    self._num_stuck -= 1
                return
            self._change_calls(-1)

    # ---- the event loop

    def _move_to_loop(self, call: _Call, awaitable: Awaitable[Any] | None) -> bool:
        """Await what the call returned, or make the call on the loop. False if the call already has an outcome."""
        with self._lock:
            if call.is_settled:
                return False
            if self._loop is None:
                self._loop, self._pinged = asyncio.new_event_loop(), None
                Thread(target=self._serve, args=(self._loop,), name=f"{self._kind} loop", daemon=True).start()
            loop = call.loop = self._loop

        def start() -> None:
            task = call.task = loop.create_task(self._await(call, loop, awaitable))
            # A task that is cancelled before its first step settles nothing itself.
            task.add_done_callback(lambda _: self._fail(call, asyncio.CancelledError()))

        if not _post(loop, start):
            self._replace_loop(loop, "closed")
        return True

    async def _await(self, call: _Call, loop: asyncio.AbstractEventLoop, awaitable: Awaitable[Any] | None) -> None:
        if call.is_settled or call.loop is not loop:  # the loop was blocked, and another loop has replaced it
            return
        call.began = call.began or time.monotonic()
        try:
            result = call.fn() if awaitable is None else awaitable
            while inspect.isawaitable(result):
                result = await result
            self._settle(call, call.read(result))
        except BaseException as error:  # an exit, or being cancelled, would end more than this call
            self._fail(call, error)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run the event loop until it is replaced, even if the code of a user stops it or exits in a task."""
        asyncio.set_event_loop(loop)
        while self._loop is loop and not loop.is_closed():
            try:
                loop.run_forever()
            except BaseException as error:
                logger.warning("a task that a %s left on the event loop raised %s", self._kind, described(error))
        if loop.is_closed():
            self._replace_loop(loop, "closed")
            return
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.call_soon(loop.stop)
        loop.run_forever()  # once more, so that the cancelled tasks end
        loop.close()

    def _replace_loop(self, loop: asyncio.AbstractEventLoop, state: str) -> None:
        """Go on with a new event loop. Calls that have begun on this loop fail, the others are made on the new one."""
        with self._lock:
            if self._loop is loop:
                self._loop = None
            affected = [call for call in list(self._running) if call.loop is loop]
        for call in affected:
            if call.began is None:
                self._move_to_loop(call, None)
            else:
                why = f"the event loop, which all async {self._kind} calls share, was {state} by one of them"
                self._fail(call, RuntimeError(why))

    # ---- limits

    def _watch(self) -> None:
        while not self._closed.wait(min(self._timeout / 4, 1.0)):
            self._guard()
            now = time.monotonic()
            with self._lock:
                started = [call for call in list(self._running) if call.has_limit and call.began is not None]
                loop, pinged = self._loop, self._pinged
            for call in started:
                if now - (call.began or now) > self._timeout:
                    self._give_up(call)
            if loop is None:
                continue
            if pinged is None:
                self._pinged = now
                _post(loop, self._pong)
            elif now - pinged > self._timeout:
                self._replace_loop(loop, f"blocked for more than {self._limit}")
        faulthandler.cancel_dump_traceback_later()

    def _guard(self) -> None:
        """End the process unless this is called again in time. Only a thread that can run is able to call it.

        Some calls keep the interpreter lock, such as a regular expression that backtracks forever: then no other thread
        runs any more. The stacks of all threads go to stderr.
        """
        faulthandler.dump_traceback_later(min(self._timeout + GRACE, TIMEOUT_MAX), exit=True, file=2)  # stderr

    def _pong(self) -> None:
        self._pinged = None

    def _give_up(self, call: _Call) -> None:
        why = f"it took longer than {self._limit}"
        failure: BaseException = TimeoutError(why)
        if call.loop is None and self._num_stuck == MAX_STUCK:
            failure = CallsStuck(f"{why}, as {MAX_STUCK} calls before it that have not ended yet")
        if not self._fail(call, failure):
            return
        if call.loop is None:
            with self._lock:
                self._num_stuck += 1
                self._num_threads -= 1
            self._change_calls(-1)
        elif call.task:
            _post(call.loop, call.task.cancel)

    def _settle(self, call: _Call, value: Any) -> bool:
        """Give the call its result. Returns whether this is its first outcome."""
        is_first = self._end(call)
        if is_first:
            call.done.set_result(value)
        return is_first

    def _fail(self, call: _Call, error: BaseException) -> bool:
        """Give the call its exception. Returns whether this is its first outcome."""
        is_first = self._end(call)
        if is_first:
            call.done.set_exception(error)
        return is_first

    def _end(self, call: _Call) -> bool:
        with self._lock:
            is_first = not call.is_settled
            call.is_settled = True
            self._running.discard(call)
        return is_first


def _post(loop: asyncio.AbstractEventLoop, callback: Callable[[], Any]) -> bool:
    """Have the loop's thread call `callback`. False when the loop is closed."""
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:
        return False
    return True


def described(error: BaseException) -> str:
    """Type and text of any exception, even if its text cannot be made."""
    try:
        return f"{type(error).__name__}: {error}"[:NUM_SHOWN]
    except BaseException:
        return f"{type(error).__name__}, whose text cannot be made"
