"""A folder's lock: one process at a time, released however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from timemaster.system.locks import folder_lock
from timemaster.types import InputError

ROOT = Path(__file__).resolve().parents[2]

HOLD = """
import os, sys, time
from timemaster.system.locks import folder_lock
with folder_lock(sys.argv[1], "a training run"):
    {work}
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder: Path, work: str = "pass") -> subprocess.Popen[str]:
    """A process that holds the folder until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD.format(work=work), str(folder)], stdout=-1, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    first = holder(tmp_path / "run")
    try:
        names = rf"run is in use by a training run: process {first.pid} on host {re.escape(socket.gethostname())}, .*"
        names += rf"kill {first.pid}\).*another folder"
        with pytest.raises(InputError, match=names), folder_lock(tmp_path / "run", "an evaluation"):
            pass
        assert first.poll() is None
    finally:
        kill(first)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_ends_with_its_process_however_it_dies(tmp_path: Path, number: signal.Signals) -> None:
    first = holder(tmp_path)
    first.send_signal(number)
    first.wait()
    with folder_lock(tmp_path, "a training run"):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == []


FORK = """ready, done = os.pipe()
    os.fork() or os.write(done, b"x") and time.sleep(600)
    os.read(ready, 1)"""
START = "import subprocess; subprocess.Popen(['sleep', '600'])"


@pytest.mark.parametrize("child", [FORK, START])
def test_a_child_that_outlives_the_process_does_not_keep_the_lock(tmp_path: Path, child: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(work=child), str(tmp_path)],
        stdout=-1, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        kill(process)
        with folder_lock(tmp_path, "a training run"):
            pass
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_the_lock_of_a_folder_that_was_removed_is_no_lock_of_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with folder_lock(folder, "a training run"):
        (folder / ".lock").unlink()
        folder.rmdir()
        with folder_lock(folder, "a training run"):
            held = (folder / ".lock").stat().st_ino
    assert not (folder / ".lock").exists(), held


def test_many_processes_that_start_at_once_hold_the_folder_in_turns(tmp_path: Path) -> None:
    """Each adds its line to a file that it reads first: a line is lost when two hold the folder together."""
    work = """
import sys, time
from pathlib import Path
from timemaster.system.locks import folder_lock
from timemaster.types import InputError
turns, log = 0, Path(sys.argv[1], "log")
while turns < 20:
    try:
        with folder_lock(sys.argv[1], "a test"):
            log.write_text((log.read_text() if log.exists() else "") + "x")
            turns += 1
    except InputError:
        time.sleep(0.001)
"""
    processes = [subprocess.Popen([sys.executable, "-c", work, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    assert len((tmp_path / "log").read_text(encoding="utf-8")) == 80


def test_a_disk_without_locks_is_said(tmp_path: Path, monkeypatch, caplog) -> None:
    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with folder_lock(tmp_path, "a training run"):
        assert "no file locks" in caplog.text


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder in (tmp_path / "file", Path("/proc/timemaster")):  # there mkdir says that no such file exists
        with pytest.raises(InputError, match="cannot be written"), folder_lock(folder, "a training run"):
            pass


SCRIPT = """source example/stages.sh
fresh_folder "$1"
echo begun >"$1/file"
echo ready
read -r line || true
"""


def script(folder: Path) -> subprocess.Popen[str]:
    """A script that makes its folder afresh, writes there and waits for its input to end."""
    return subprocess.Popen(
        ["bash", "-c", f"set -euo pipefail\n{SCRIPT}", "a-script.sh", str(folder)], cwd=ROOT, text=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def end_script(process: subprocess.Popen[str]) -> None:
    """Not `communicate`: what measures the memory writes to the same pipe for a while yet."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=60)


def test_a_script_empties_its_folder_and_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    (folder / "old" / "deep").mkdir(parents=True)
    (folder / "old" / "file").write_text("", encoding="utf-8")
    first = script(folder)
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    assert {path.name for path in folder.iterdir()} - {"peak_memory_gib"} == {".lock", "file"}
    said, _ = script(folder).communicate(timeout=60)
    assert f"error: {folder} is in use by a script: process" in said
    assert (folder / "file").read_text(encoding="utf-8") == "begun\n"
    end_script(first)
    again = script(folder)
    assert again.stdout is not None
    assert again.stdout.readline() == "ready\n"  # at once after the first one's end
    end_script(again)


def test_a_script_does_not_empty_a_folder_in_which_a_run_is_going_on(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("kept", encoding="utf-8")
    with folder_lock(tmp_path / "z" / "grpo", "a training run"):
        said, _ = script(tmp_path).communicate(timeout=60)
        assert f"error: {tmp_path}/z/grpo is in use by a training run: process {os.getpid()}" in said
        assert (tmp_path / "a" / "file").read_text(encoding="utf-8") == "kept"
