"""Memory of a process tree on systems that tell less than Linux."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest

from timemaster.memory import num_bytes


class FakeProcess:
    """A process whose system tells `full`, or nothing but the resident set."""

    def __init__(self, **full: int) -> None:
        self.full = full

    def memory_full_info(self) -> SimpleNamespace:
        if not self.full:
            raise psutil.AccessDenied
        return SimpleNamespace(**self.full)

    def memory_info(self) -> SimpleNamespace:
        return SimpleNamespace(rss=3)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (FakeProcess(rss=3, uss=1, pss=2), 2),
        (FakeProcess(rss=3, uss=1), 1),
        (FakeProcess(rss=3), 3),
        (FakeProcess(), 3),
    ],
)
def test_the_best_figure_that_the_system_tells_is_taken(process: FakeProcess, expected: int) -> None:
    assert num_bytes(process) == expected  # type: ignore[arg-type]


def test_this_process_has_memory() -> None:
    assert num_bytes(psutil.Process()) > 2**20  # an interpreter has more than a mebibyte of its own
