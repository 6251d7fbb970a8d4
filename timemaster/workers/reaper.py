"""Ends what a killed run leaves of Ray. The run itself starts it:

    python -m timemaster.workers.reaper PID SESSION_FOLDER

Ray's own processes end with their driver, however it dies; some of their children do not (the agents of the dashboard
and of runtime environments, and what an actor started), and the session's folder stays. This process waits for its
parent, the run, to die, gives Ray a moment, then ends what is left of exactly that session and removes its folder. A
run that ends in order stops it before.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LISTS = 10.0  # of the session's processes: each reads all of /proc
SECONDS_TO_END = 5.0  # that processes are given to end by themselves


def start_reaper(session: str) -> subprocess.Popen[bytes]:
    """Watch this process, the driver of Ray's session in the folder `session`."""
    command = [sys.executable, "-m", "timemaster.workers.reaper", str(os.getpid()), session]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def stop_reaper(reaper: subprocess.Popen[bytes]) -> None:
    """The run ends in order."""
    reaper.terminate()
    reaper.wait()


def processes_of(driver: int, session: Path) -> set[psutil.Process]:
    """The children of `driver` whose command names the session, with all of their descendants."""
    found: set[psutil.Process] = set()
    try:
        for child in psutil.Process(driver).children():
            if child.pid != os.getpid() and any(session.name in argument for argument in child.cmdline()):
                found |= {child, *child.children(recursive=True)}
    except psutil.NoSuchProcess:
        pass  # ended since it was listed: the next look is better
    return found


def end(processes: set[psutil.Process], session: Path) -> None:
    """End what is left of `processes` (psutil knows them from others with their number) and remove the folder."""
    _, left = psutil.wait_procs(processes, timeout=SECONDS_TO_END)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    shutil.rmtree(session, ignore_errors=True)
    newest = session.with_name("session_latest")
    if newest.is_symlink() and newest.readlink().name == session.name:
        newest.unlink(missing_ok=True)


def main() -> None:
    """Wait for the driver, this process's parent, to die; then clean up."""
    driver, session = int(sys.argv[1]), Path(sys.argv[2])
    known: set[psutil.Process] = set()
    next_list = 0.0
    while os.getppid() == driver:
        if time.monotonic() >= next_list:
            known = {process for process in known | processes_of(driver, session) if process.is_running()}
            next_list = time.monotonic() + SECONDS_BETWEEN_LISTS
        time.sleep(SECONDS_BETWEEN_LOOKS)
    end(known, session)


if __name__ == "__main__":
    main()
