"""Peak memory of a process and all its descendants, sampled until it ends.

    python -m timemaster.system.memory PID FILE

Sums proportional set sizes: a page that processes share counts once. On systems without them (macOS, Windows),
shared pages do not count, or count for every process. Writes the peak in GiB to FILE.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

SECONDS_BETWEEN = 2.0


def num_bytes(process: psutil.Process) -> int:
    """Memory of a process: its proportional, else its unique, else its resident set size."""
    try:
        memory = process.memory_full_info()
    except psutil.AccessDenied:
        memory = process.memory_info()
    return next(getattr(memory, name) for name in ("pss", "uss", "rss") if hasattr(memory, name))


def tree_gib(pid: int) -> float:
    """Current memory of a process and its descendants in GiB, without this process."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in processes:
        try:
            if process.pid != os.getpid():
                total += num_bytes(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has ended meanwhile
    return total / 2**30


def main() -> None:
    """Sample until the watched process ends."""
    pid, path = int(sys.argv[1]), Path(sys.argv[2])
    peak = 0.0
    while psutil.pid_exists(pid) and path.parent.exists():
        now = tree_gib(pid)
        if now > peak:
            peak = now
            path.write_text(f"{peak:.3f}\n", encoding="utf-8")
        time.sleep(SECONDS_BETWEEN)


if __name__ == "__main__":
    main()
