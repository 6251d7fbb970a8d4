"""Checkpoints on disk: the driver's side. What a trainer rank writes into one: timemaster/backends/state.py.

A checkpoint is written under a temporary name, synced, then renamed. Older checkpoints are removed after that, and each
is renamed before it is removed. So after a kill at any moment, the newest checkpoint loads, and every folder with a
checkpoint's name is complete: each file that was listed at the commit is there and has its size.

    global_step_<N>/state/          model and optimizer shards (torch.distributed.checkpoint)
    global_step_<N>/rng_<rank>.pt   random state of each trainer rank
    global_step_<N>/trainer.json    step, updates done, what the run trains on; `files`: size of every other file
    global_step_<N>/huggingface/    safetensors, config, processor: transformers and vLLM load it as it is
    tmp_*                           is being written or removed: not a checkpoint
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timemaster.run.step_names import by_step, step_of
from timemaster.types import InputError

log = logging.getLogger(__name__)

SECONDS_TO_APPEAR = 30.0  # shared disks show files of another node late


def checkpoints(run: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every complete checkpoint of a run, oldest first."""
    return [(step, path) for step, path in _folders(run) if not defects(path)]


def _folders(run: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every folder with a checkpoint's name, oldest first."""
    return list(by_step(Path(run), "global_step_*").items())


def latest(run: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None. Raises InputError when it is not complete."""
    folders = _folders(run)
    if not folders:
        return None
    _, newest = folders[-1]
    check_whole(newest)
    return newest


def check_whole(folder: Path) -> None:
    """Raise InputError when a checkpoint is not as it was committed."""
    missing = defects(folder)
    if missing:
        raise InputError(
            f"{folder} is not complete: {_listing(missing)}. Restore it, or remove the folder: then the run continues "
            "from the checkpoint before it."
        )
    if _listed(folder) is None:
        log.warning("%s was written by an older version and has no list of its files: it is taken as complete", folder)


def check_export(folder: Path) -> None:
    """Raise InputError when a model's folder is the export of a checkpoint and is not as it was committed."""
    checkpoint = folder.resolve().parent
    if step_of(checkpoint) is None or not (checkpoint / "trainer.json").exists():
        return
    missing = [defect for defect in defects(checkpoint) if defect.startswith(f"{folder.name}/")]
    if missing:
        raise InputError(f"{folder} is not complete: {_listing(missing)}. Restore it or choose another checkpoint.")


def defects(folder: Path) -> list[str]:
    """Which files of a committed checkpoint are missing or have another size; [] when it is complete."""
    try:
        listed = _listed(folder)
    except FileNotFoundError:
        return ["trainer.json is missing"]
    except ValueError:
        return ["trainer.json cannot be read"]
    return _differences(
        folder, dict.fromkeys(("state/.metadata", "huggingface/config.json")) if listed is None else listed
    )


def _listed(folder: Path) -> dict[str, int | None] | None:
    """Size in bytes by name of a checkpoint's files at its commit; None for a checkpoint of an older version."""
    return json.loads((folder / "trainer.json").read_text(encoding="utf-8")).get("files")


def _differences(folder: Path, files: Mapping[str, int | None]) -> list[str]:
    """Which of `files` (size in bytes by name; None: any size) are missing or have another size."""
    out = []
    for name, size in files.items():
        try:
            actual = (folder / name).stat().st_size
        except FileNotFoundError:
            out.append(f"{name} is missing")
            continue
        if size not in (None, actual):
            out.append(f"{name} has {actual} bytes, not {size}")
    return out


def read_state(folder: str | Path) -> dict[str, Any]:
    """The `state` that was given to `commit`."""
    state = json.loads(Path(folder, "trainer.json").read_text(encoding="utf-8"))
    return {name: value for name, value in state.items() if name != "files"}


def begin(run: str | Path, step: int, needed_bytes: int) -> Path:
    """Make the temporary folder of a checkpoint. Raises InputError when the disk has no room for `needed_bytes`."""
    run = Path(run)
    _remove_stale(run)
    if shutil.disk_usage(run).free < needed_bytes:
        raise no_space(run, step, needed_bytes)
    folder = run / f"tmp_global_step_{step}"
    folder.mkdir()
    return folder


def no_space(run: Path, step: int, needed_bytes: int) -> InputError:
    """The error for a full disk. Removes the unfinished folder; earlier checkpoints stay."""
    _remove_stale(run)
    whole = checkpoints(run)
    kept = f"The last checkpoint is {whole[-1][1]}" if whole else "There is no earlier checkpoint"
    return InputError(
        f"no space left to save step {step} in {run}: about {needed_bytes / 2**30:.2f} GiB needed, "
        f"{shutil.disk_usage(run).free / 2**30:.2f} GiB free. {kept}; free some space and start the same command again."
    )


def _remove_stale(run: Path) -> None:
    for stale in run.glob("tmp_global_step_*"):
        shutil.rmtree(stale, ignore_errors=True)


def commit(folder: Path, state: dict[str, Any], files: dict[str, int], keep: int) -> Path:
    """Sync the temporary folder, give it its name, then remove all but the newest `keep` complete checkpoints.

    `files`: size in bytes by name of all files that the ranks wrote. When one of them does not appear on this machine,
    raises InputError and removes nothing.
    """
    missing = _wait_for(folder, files)
    if missing:
        raise InputError(
            f"{folder}: files that the trainer ranks wrote do not appear here: {_listing(missing)}. Every node must "
            "see the run's folder under the same path: put it on a shared disk (trainer.default_local_dir). Earlier "
            "checkpoints are unchanged."
        )
    step = int(folder.name.rsplit("_", 1)[1])
    (folder / "trainer.json").write_text(json.dumps(state | {"files": files}, indent=1), encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    final = folder.with_name(f"global_step_{step}")
    if final.exists():
        _remove(final)
    folder.rename(final)
    _sync(final.parent)
    first_kept = min(step for step, _ in checkpoints(final.parent)[-keep:])
    for old_step, old in _folders(final.parent):
        if old_step < first_kept:
            _remove(old)
    return final


def _wait_for(folder: Path, files: dict[str, int]) -> list[str]:
    """Which of `files` are not in `folder`. Waits up to SECONDS_TO_APPEAR: a shared disk may show them late."""
    until = time.monotonic() + SECONDS_TO_APPEAR
    while (missing := _differences(folder, files)) and time.monotonic() < until:
        time.sleep(0.5)
        for inner in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            os.listdir(inner)  # makes NFS ask the server again for the names
    return missing


def _remove(folder: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a kill leaves no part of it under a checkpoint's name."""
    renamed = folder.with_name(f"tmp_{folder.name}_removed")
    folder.rename(renamed)
    shutil.rmtree(renamed, ignore_errors=True)  # an evaluation may still read it; the next save tries again


def _listing(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
