"""Handling of SIGTERM, Ctrl-C and the alarm of a time limit."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def end_on_sigterm() -> None:
    """Treat SIGTERM (SLURM, Kubernetes, `kill`) like Ctrl-C, so that this process cleans up before it ends."""
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise KeyboardInterrupt("SIGTERM")
        os._exit(143)  # a forked child has nothing to clean up

    signal.signal(signal.SIGTERM, end)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Send Ctrl-C, SIGTERM and the alarm of a time limit to `handler` for the time of the block."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, old in before.items():
            signal.signal(number, old)
