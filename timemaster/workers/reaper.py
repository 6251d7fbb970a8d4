"""Ends the Ray processes that a killed run leaves behind. The run itself starts this program:

    python -m timemaster.workers.reaper PID SESSION_FOLDER

Ray's own processes end with their driver, however it dies. Some of their children do not end: the agents of the
dashboard and of runtime environments, and processes that an actor started. The folder of the Ray session stays, too.
This program waits until its parent, the run, is dead, gives Ray a moment, then ends the remaining processes of
exactly that session and removes its folder. A run that ends normally stops this program first.
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
SECONDS_BETWEEN_LISTS = 10.0  # between lists of the session's processes: each of them reads all of /proc
SECONDS_TO_END = 5.0  # for processes to end by themselves


def start_reaper(session: str) -> subprocess.Popen[bytes]:
    """Start the program for this process, which is the driver of the Ray session in the folder `session`."""
    command = [sys.executable, "-m", "timemaster.workers.reaper", str(os.getpid()), session]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


def stop_reaper(reaper: subprocess.Popen[bytes]) -> None:
    """Stop the program: the run ends normally."""
    reaper.terminate()
    reaper.wait()


def processes_of(driver: int, session: Path) -> set[psutil.Process]:
    """The children of `driver` whose command names the session, with all of their descendants."""
    processes: set[psutil.Process] = set()
    try:
        for child in psutil.Process(driver).children():
            if child.pid != os.getpid() and any(session.name in argument for argument in child.cmdline()):
                processes |= {child, *child.children(recursive=True)}
    except psutil.NoSuchProcess:
        pass  # it ended after it was listed
    return processes


def end(processes: set[psutil.Process], session: Path) -> None:
    """End those of `processes` that still run and remove the folder. psutil notices when a process id is used again."""
    _, alive = psutil.wait_procs(processes, timeout=SECONDS_TO_END)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    shutil.rmtree(session, ignore_errors=True)
    newest = session.with_name("session_latest")
    if newest.is_symlink() and newest.readlink().name == session.name:
        newest.unlink(missing_ok=True)


def main() -> None:
    """Wait until the driver, the parent of this process, is dead; then clean up."""
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
