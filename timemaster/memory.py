"""Peak memory of a process and all its descendants, sampled until it ends: `python -m timemaster.memory PID FILE`.

Proportional set sizes are summed, so that pages shared between processes count once. FILE holds the peak in GiB.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

SECONDS_BETWEEN = 2.0


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
                total += process.memory_full_info().pss
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
            path.write_text(f"{peak:.3f}\n")
        time.sleep(SECONDS_BETWEEN)


if __name__ == "__main__":
    main()
