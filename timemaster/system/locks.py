"""A lock so that one process at a time writes to a folder. The operating system releases it when the process ends.

    with folder_lock("checkpoints/ctu/grpo", "a training run"): ...
    python -m timemaster.system.locks FOLDER DESCRIPTOR    # for scripts: see `main`

The lock is `flock` on the file .lock in that folder. On NFS and on most cluster file systems, all hosts see it. If a
file system has no locks, a warning says so, and the work continues without a lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from timemaster.system.console import print_any_letter
from timemaster.types import InputError

log = logging.getLogger(__name__)

NAME = ".lock"
# Errors of file systems without locks: Lustre mounted without -o flock, NFS without a lock service, some FUSE mounts;
# 524 is the kernel's ENOTSUPP, which the module errno does not have.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, 524)

_held: set[int] = set()


@contextmanager
def folder_lock(folder: str | Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder` during the block. Creates the folder. `what` names the holder: "a training run".

    Raises InputError at once when another process holds it (with its host and pid), and when the folder cannot be
    written. Take the lock before anything in the folder changes. Do not rename or replace the folder meanwhile; if you
    must, lock another folder beside it.
    """
    path = Path(folder) / NAME
    descriptor = _acquire(path, what)
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        if _is_same_file(path, descriptor):
            path.unlink()  # before the release, so that a process that has opened the file sees that it is gone
        os.close(descriptor)


def _acquire(path: Path, what: str) -> int:
    """An open, locked descriptor of the file at `path`."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(
                    path, os.O_RDWR | os.O_CREAT, 0o666
                )  # NFS locks only files that are open for writing
            except FileNotFoundError:  # the folder was removed between the two lines
                continue
        except OSError as error:
            raise InputError(f"{path.parent} cannot be written: {error.strerror}. Choose another folder.") from error
        try:
            if _lock(path, descriptor, what):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(path: Path, descriptor: int, what: str) -> bool:
    """Lock the file at `path`, which is open as `descriptor`, and write the owner to it. False if it was removed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_same_file(path, descriptor):
            return False
        _write_owner(descriptor, what)
    except BlockingIOError:
        raise InputError(f"{path.parent} is in use by {_read_owner(path)}, or choose another folder.") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise InputError(f"{path}: {error.strerror}. Free some space or choose another folder.") from error
        log.warning(
            "%s: its file system has no file locks (%s), so a second process that writes there is not noticed. Start "
            "only one. A disk mounted with locks (Lustre: -o flock) has this check.",
            path.parent, error.strerror,
        )  # fmt: skip
    return True


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_owner(descriptor: int, what: str) -> None:
    owner = {"what": what, "host": socket.gethostname(), "pid": os.getpid()}
    owner |= {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "command": " ".join(shlex.join(sys.orig_argv).split())}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    os.fsync(descriptor)


def _read_owner(path: Path) -> str:
    """Who holds the lock and what to do, for a message."""
    for _ in range(20):  # the owner may not have written yet
        try:
            owner = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, FileNotFoundError):
            time.sleep(0.05)
            continue
        return (
            f"{owner['what']}: process {owner['pid']} on host {owner['host']}, started {owner['started']} with "
            f"`{owner['command']}`. Wait for its end, or end it (on {owner['host']}: kill {owner['pid']})"
        )
    return "another process, which has not written its name. Wait for its end"


def _release_in_child() -> None:
    """Close the lock in a forked child, so that the child does not keep it after this process ends."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


def main() -> None:
    """Lock a folder for a script that has opened the lock file as DESCRIPTOR, and empty the folder.

    If this folder or one below it is in use, ends with a message and changes nothing.
    """
    print_any_letter()
    folder, descriptor = Path(sys.argv[1]), int(sys.argv[2])
    try:
        if not _lock(folder / NAME, descriptor, "a script"):
            raise InputError(f"{folder}: its last user has just ended. Start again.")
        with ExitStack() as locks:
            for path in sorted(folder.rglob(NAME)):
                if path.parent != folder:
                    locks.enter_context(folder_lock(path.parent, "a script that empties it"))
            for path in folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != NAME:
                    path.unlink()
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
