"""What a checkpoint holds and how it reaches the disk whole.

Written to a temporary name, synced, renamed, and only then are older ones pruned: a kill at any moment leaves a
loadable latest. The sharded state is torch's distributed checkpoint, so the number of ranks may change on resume.

    global_step_<N>/state/          model and optimizer shards (torch.distributed.checkpoint)
    global_step_<N>/rng_<rank>.pt   random state of each trainer rank
    global_step_<N>/trainer.json    step, updates done, data position
    global_step_<N>/huggingface/    safetensors, config, processor: loads in transformers and vLLM as it is
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timemaster.types import InputError

if TYPE_CHECKING:
    from timemaster.backends.fsdp import FsdpBackend

STEP = re.compile(r"global_step_(\d+)$")


def save_rank(backend: FsdpBackend, folder: str) -> None:
    """Write this rank's part into `folder` (the temporary one). Called on every rank."""
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
    if backend.rank == 0:
        export_huggingface(backend, weights, f"{folder}/huggingface")


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
    save_torch_state_dict({published_name(n): t.contiguous() for n, t in weights.items()}, folder)
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.save_pretrained(folder)
    AutoProcessor.from_pretrained(backend.cfg.model.path).save_pretrained(folder)
    try:
        GenerationConfig.from_pretrained(backend.cfg.model.path).save_pretrained(folder)
    except OSError:  # a model folder need not have one
        model.generation_config.save_pretrained(folder)


def published_name(name: str) -> str:
    """The name Qwen2.5-VL's own files use, which every version of transformers and vLLM reads."""
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def live_name(name: str) -> str:
    """The name transformers gives in memory to a weight of a file; the inverse of `published_name`."""
    if name.startswith(("lm_head.", "model.language_model.", "model.visual.")):
        return name
    return "model." + name if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1)


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
    """(step, folder) of every complete checkpoint of a run, oldest first."""
    found = [(int(m[1]), path) for path in Path(run).glob("global_step_*") if (m := STEP.match(path.name))]
    return sorted((step, path) for step, path in found if (path / "trainer.json").exists())


def latest(run: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = checkpoints(run)
    return found[-1][1] if found else None


def read_state(folder: str | Path) -> dict[str, Any]:
    """The driver's part of a checkpoint."""
    return json.loads(Path(folder, "trainer.json").read_text(encoding="utf-8"))


def begin(run: str | Path, step: int, needed_bytes: int) -> Path:
    """The temporary folder for a step. InputError when the disk has no room for `needed_bytes`."""
    run = Path(run)
    for stale in run.glob("tmp_global_step_*"):
        shutil.rmtree(stale)
    if shutil.disk_usage(run).free < needed_bytes:
        raise no_space(run, step, needed_bytes)
    folder = run / f"tmp_global_step_{step}"
    folder.mkdir()
    return folder


def no_space(run: Path, step: int, needed_bytes: int) -> InputError:
    """The error for a full disk; the unfinished folder is removed, what was saved before stays."""
    for stale in run.glob("tmp_global_step_*"):
        shutil.rmtree(stale, ignore_errors=True)
    newest = latest(run)
    kept = f"The last checkpoint is {newest}" if newest else "There is no earlier checkpoint"
    return InputError(
        f"no space left to save step {step} in {run}: about {needed_bytes / 2**30:.2f} GiB needed, "
        f"{shutil.disk_usage(run).free / 2**30:.2f} GiB free. {kept}; free some space and start the same command again."
    )


def commit(folder: Path, state: dict[str, Any], num_ranks: int, keep: int) -> Path:
    """Sync the temporary folder, give it its name, then prune all but the newest `keep`.

    Raises InputError, and prunes nothing, when a part of one of the `num_ranks` ranks is not there.
    """
    wanted = ["state/.metadata", "huggingface/config.json", *(f"rng_{rank}.pt" for rank in range(num_ranks))]
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"{folder}: the checkpoint lacks {', '.join(missing)}. Every node must see the run's folder under the same "
            "path: put it on a shared disk (trainer.default_local_dir). Earlier checkpoints are as they were."
        )
    step = int(folder.name.rsplit("_", 1)[1])
    (folder / "trainer.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    final = folder.with_name(f"global_step_{step}")
    if final.exists():
        shutil.rmtree(final)
    folder.rename(final)
    _sync(final.parent)
    for _, old in checkpoints(final.parent)[:-keep]:
        shutil.rmtree(old)
    return final


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
