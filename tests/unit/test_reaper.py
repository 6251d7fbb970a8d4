"""What a killed driver leaves of Ray, with stand-ins for Ray's processes: a parent, its child, and a bystander."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from timemaster.workers.reaper import SECONDS_TO_END

# A driver with a "raylet", whose own child (the agent) survives it, and with a child that has nothing to do with Ray.
RAYLET = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
DRIVER = f"""
import subprocess, sys, time
from timemaster.workers.reaper import start_reaper
raylet = subprocess.Popen([sys.executable, "-c", {RAYLET!r}, sys.argv[1] + "/sockets/raylet"], stdout=-1, text=True)
bystander = subprocess.Popen(["sleep", "600"])
reaper = start_reaper(sys.argv[1])
print(raylet.pid, raylet.stdout.readline().strip(), bystander.pid, reaper.pid, flush=True)
time.sleep(600)
"""


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_for(processes: list[psutil.Process], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not all(map(gone, processes)) and time.monotonic() < until:
        time.sleep(0.1)


def test_a_killed_drivers_session_ends_and_nothing_else(tmp_path: Path) -> None:
    session = tmp_path / "session_2026_1"
    (session / "logs").mkdir(parents=True)
    (tmp_path / "session_2026_2").mkdir()
    (tmp_path / "session_latest").symlink_to(session)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(session)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    raylet, agent, bystander, reaper = (psutil.Process(int(pid)) for pid in driver.stdout.readline().split())
    try:
        while not any("_psutil" in area.path for area in reaper.memory_maps()):
            time.sleep(0.1)
        # It has imported all it needs, and first sleeps when it has made its first list.
        asleep = 0
        while asleep < 5:
            asleep = asleep + 1 if reaper.status() == psutil.STATUS_SLEEPING else 0
            time.sleep(0.05)
        driver.kill()
        driver.wait()
        raylet.kill()  # as the system does to Ray's own processes
        wait_for([agent, reaper], SECONDS_TO_END + 20)
        assert gone(agent)
        assert gone(reaper)
        assert not gone(bystander)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["session_2026_2"]
    finally:
        for process in (raylet, agent, bystander, reaper):
            if not gone(process):
                process.kill()
