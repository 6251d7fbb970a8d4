"""Peak memory of a process and all its descendants, sampled until it ends.

    python -m timemaster.system.memory PID FILE

Proportional set sizes are summed, so that pages shared between processes count once. Where the system does not tell
them (macOS, Windows), shared pages are left out, or else count for every process. FILE holds the peak in GiB.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

SECONDS_BETWEEN = 2.0


def num_bytes(process: psutil.Process) -> int:
    """Memory of one process: its proportional set size, else what is its own alone, else what is resident."""
    try:
        memory = process.memory_full_info()
    except psutil.AccessDenied:
        memory = process.memory_info()
    return next(getattr(memory, name) for name in ("pss", "uss", "rss") if hasattr(memory, name))


def tree_gib(pid: int) -> float:
    """Memory of a process and its descendants now, in GiB; this process is left out."""
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
            continue  # ended since it was listed
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
