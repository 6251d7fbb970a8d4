"""What one trainer rank writes into a checkpoint's folder and reads from it.

The driver chooses the folder, checks that it is complete and removes older ones: see timemaster/run/checkpoints.py,
which also lists the files. The sharded state is torch's distributed checkpoint, so the number of ranks may change on
resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from timemaster.backends.fsdp import FsdpBackend


def save_rank(backend: FsdpBackend, folder: str) -> dict[str, int]:
    """Write this rank's part of a checkpoint. Called on every rank. Returns the size in bytes of each file it wrote."""
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
    for layer in backend.weights(tied_head=False):  # the gathers are collective
        if backend.rank == 0:
            weights.update({name: tensor.cpu() for name, tensor in layer})
    written = [f"rng_{backend.rank}.pt", f"state/__{backend.rank}_*"]
    if backend.rank == 0:
        export_huggingface(backend, weights, f"{folder}/huggingface")
        written += ["state/.metadata", "huggingface/**/*"]
    paths = [path for pattern in written for path in sorted(Path(folder).glob(pattern)) if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths}


def load_rank(backend: FsdpBackend, folder: str, updates_done: int) -> None:
    """Load model, optimizer and random state from a checkpoint of any number of ranks. Called on every rank.

    `updates_done`: optimizer updates up to that checkpoint, for the learning rate's schedule.
    """
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optim = get_state_dict(backend.policy, backend.optimizer)
    dcp.load({"model": model, "optim": optim}, checkpoint_id=f"{folder}/state")
    settings = [{k: v for k, v in group.items() if k != "params"} for group in backend.optimizer.param_groups]
    set_state_dict(backend.policy, backend.optimizer, model_state_dict=model, optim_state_dict=optim)
    for group, setting in zip(backend.optimizer.param_groups, settings, strict=True):
        group.update(setting)  # the moments come from the checkpoint, the settings from this run
    backend.updates_done = updates_done
    rng = Path(folder, f"rng_{backend.rank}.pt")
    if rng.exists():  # more ranks than before: the new ones keep the random state that they started with
        states = torch.load(rng)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and backend.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"])


def export_huggingface(backend: FsdpBackend, weights: dict[str, torch.Tensor], folder: str) -> None:
    """Write an ordinary Hugging Face folder: weights, config, generation config, tokenizer and processor."""
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
    data = backend.cfg.data  # whoever loads the export must see images at the same size as this run did
    processor.image_processor.size = backend.family.processor_size(data.min_pixels, data.max_pixels)
    processor.save_pretrained(folder)
    try:
        GenerationConfig.from_pretrained(backend.cfg.model.path).save_pretrained(folder)
    except OSError:  # a model's folder may have no generation config
        model.generation_config.save_pretrained(folder)
