"""What a checkpoint holds and how it reaches the disk whole.

Written to a temporary name, synced, renamed, and only then are older ones pruned, after a rename of their own: a kill
at any moment leaves a loadable latest, and nothing under a checkpoint's name that is not whole. Whole means that every
file that was listed when it was committed is there with its size. The sharded state is torch's distributed checkpoint,
so the number of ranks may change on resume.

    global_step_<N>/state/          model and optimizer shards (torch.distributed.checkpoint)
    global_step_<N>/rng_<rank>.pt   random state of each trainer rank
    global_step_<N>/trainer.json    step, updates done, data position; `files`: the name and size of every other file
    global_step_<N>/huggingface/    safetensors, config, processor: loads in transformers and vLLM as it is
    tmp_*                           being written or removed: no checkpoint
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timemaster.types import InputError

if TYPE_CHECKING:
    from timemaster.backends.fsdp import FsdpBackend

log = logging.getLogger(__name__)

STEP = re.compile(r"global_step_(\d+)$")
SECONDS_TO_APPEAR = 30.0  # for what another node wrote: shared disks show it late


def save_rank(backend: FsdpBackend, folder: str) -> dict[str, int]:
    """Write this rank's part into `folder` (the temporary one). Returns name and size of the files it wrote.

    Called on every rank.
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optim = get_state_dict(backend.policy, backend.optimizer)
    dcp.save({"model": model, "optim": optim}, checkpoint_id=f"{folder}/state")
    states = {"cpu": torch.get_rng_state()}
    if backend.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    torch.save(states, f"{folder}/rng_{backend.rank}.pt")
    weights: dict[str, torch.Tensor] = {}
    for layer in backend.weights(tied_head=False):
        if backend.rank == 0:
            weights.update({name: tensor.cpu() for name, tensor in layer})
    own = [f"rng_{backend.rank}.pt", f"state/__{backend.rank}_*"]
    if backend.rank == 0:
        export_huggingface(backend, weights, f"{folder}/huggingface")
        own += ["state/.metadata", "huggingface/**/*"]
    return {name: size for pattern in own for name, size in _sizes(Path(folder), pattern).items()}


def _sizes(folder: Path, pattern: str) -> dict[str, int]:
    found = (path for path in sorted(folder.glob(pattern)) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in found}


def export_huggingface(backend: FsdpBackend, weights: dict[str, Any], folder: str) -> None:
    """An ordinary Hugging Face folder: weights, config, generation config, tokenizer and processor."""
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoProcessor, GenerationConfig

    model: Any = backend.policy.model
    if backend.cfg.model.freeze_vision_tower:
        frozen = {n: p.detach().cpu() for n, p in model.named_parameters() if not p.requires_grad}
        weights = frozen | weights
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.dtype = backend.dtype
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_torch_state_dict({backend.family.published_name(n): t.contiguous() for n, t in weights.items()}, folder)
    config.architectures = [backend.family.model_class().__name__]
    config.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(backend.cfg.model.path)
    data = backend.cfg.data  # who loads the export must see images as large as the run did
    processor.image_processor.size = backend.family.processor_size(data.min_pixels, data.max_pixels)
    processor.save_pretrained(folder)
    try:
        GenerationConfig.from_pretrained(backend.cfg.model.path).save_pretrained(folder)
    except OSError:  # a model folder need not have one
        model.generation_config.save_pretrained(folder)


def load_rank(backend: FsdpBackend, folder: str) -> None:
    """Load model and optimizer from a checkpoint of any number of ranks. Called on every rank."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optim = get_state_dict(backend.policy, backend.optimizer)
    dcp.load({"model": model, "optim": optim}, checkpoint_id=f"{folder}/state")
    settings = [{k: v for k, v in group.items() if k != "params"} for group in backend.optimizer.param_groups]
    set_state_dict(backend.policy, backend.optimizer, model_state_dict=model, optim_state_dict=optim)
    for group, setting in zip(backend.optimizer.param_groups, settings, strict=True):
        group.update(setting)  # the moments are the checkpoint's, the settings this run's
    backend.updates_done = read_state(folder)["updates_done"]
    rng = Path(folder, f"rng_{backend.rank}.pt")
    if rng.exists():
        states = torch.load(rng)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and backend.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"])


def checkpoints(run: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every whole checkpoint of a run, oldest first."""
    return [(step, path) for step, path in _folders(run) if not defects(path)]


def _folders(run: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of all that is named as a checkpoint, oldest first."""
    return sorted((int(m[1]), path) for path in Path(run).glob("global_step_*") if (m := STEP.match(path.name)))


def latest(run: str | Path) -> Path | None:
    """The newest checkpoint of a run, or None. Raises InputError when it is not whole."""
    found = _folders(run)
    if not found:
        return None
    check_whole(found[-1][1])
    return found[-1][1]


def check_whole(folder: Path) -> None:
    """InputError when a checkpoint is not as it was committed."""
    missing = defects(folder)
    if missing:
        raise InputError(
            f"{folder} is not whole: {_some(missing)}. Restore it, or remove the folder: the newest checkpoint before "
            "it then takes its place."
        )
    if _listed(folder) is None:
        log.warning("%s is of an older version, which kept no list of its files: taken as whole", folder)


def check_export(folder: Path) -> None:
    """InputError when a model's folder is the export of a checkpoint, and not as it was committed."""
    checkpoint = folder.resolve().parent
    if not STEP.match(checkpoint.name) or not (checkpoint / "trainer.json").exists():
        return
    missing = [defect for defect in defects(checkpoint) if defect.startswith(f"{folder.name}/")]
    if missing:
        raise InputError(f"{folder} is not whole: {_some(missing)}. Restore it or choose another checkpoint.")


def defects(folder: Path) -> list[str]:
    """What of a committed checkpoint is missing or has another size; [] when it is whole."""
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
    """Name and size of the files of a checkpoint as they were committed; None for one of an older version."""
    return json.loads((folder / "trainer.json").read_text(encoding="utf-8")).get("files")


def _differences(folder: Path, files: Mapping[str, int | None]) -> list[str]:
    """What of `files` (name: bytes, None for any number) is missing or has another size."""
    out = []
    for name, size in files.items():
        try:
            found = (folder / name).stat().st_size
        except FileNotFoundError:
            out.append(f"{name} is missing")
            continue
        if size not in (None, found):
            out.append(f"{name} has {found} bytes, not {size}")
    return out


def read_state(folder: str | Path) -> dict[str, Any]:
    """The driver's part of a checkpoint."""
    state = json.loads(Path(folder, "trainer.json").read_text(encoding="utf-8"))
    return {name: value for name, value in state.items() if name != "files"}


def begin(run: str | Path, step: int, needed_bytes: int) -> Path:
    """The temporary folder for a step. InputError when the disk has no room for `needed_bytes`."""
    run = Path(run)
    _remove_stale(run)
    if shutil.disk_usage(run).free < needed_bytes:
        raise no_space(run, step, needed_bytes)
    folder = run / f"tmp_global_step_{step}"
    folder.mkdir()
    return folder


def no_space(run: Path, step: int, needed_bytes: int) -> InputError:
    """The error for a full disk; the unfinished folder is removed, what was saved before stays."""
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
    """Sync the temporary folder, give it its name, then prune all but the newest `keep` whole checkpoints.

    `files`: name and size of all that the ranks wrote. Raises InputError, and prunes nothing, when some of it does not
    appear here.
    """
    missing = _wait_for(folder, files)
    if missing:
        raise InputError(
            f"{folder}: the checkpoint lacks files that the trainer ranks wrote: {_some(missing)}. Every node must see "
            "the run's folder under the same path: put it on a shared disk (trainer.default_local_dir). Earlier "
            "checkpoints are as they were."
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
    """What of `files` is not in `folder`, after a while in which a shared disk may show what other nodes wrote."""
    until = time.monotonic() + SECONDS_TO_APPEAR
    while (missing := _differences(folder, files)) and time.monotonic() < until:
        time.sleep(0.5)
        for inner in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            os.listdir(inner)  # has NFS ask the server again which names there are
    return missing


def _remove(folder: Path) -> None:
    """Remove a checkpoint. It loses its name first, so that a kill leaves no part of it under that name."""
    doomed = folder.with_name(f"tmp_{folder.name}_removed")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)  # an evaluation may still read it; the next save tries again


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
