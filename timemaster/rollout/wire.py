"""Weights sent from trainer to engine: chunks of named arrays, and a record of which have arrived.

The GPU wires ("ipc", "nccl") are vLLM's own; chunks are for CPU machines and for the hf engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from timemaster.models.family import family_of
from timemaster.models.folder import load_model_config
from timemaster.models.weights import stored_shapes
from timemaster.types import InputError

if TYPE_CHECKING:
    import torch

Chunk = list[tuple[str, str, tuple[int, ...], Any]]  # (name, dtype, shape, bytes as a uint8 numpy array)


def pack(weights: list[tuple[str, torch.Tensor]]) -> Chunk:
    """Named CPU tensors as plain arrays of bytes: numpy has no bfloat16."""
    import torch

    chunk: Chunk = []
    for name, tensor in weights:
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()
        chunk.append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), flat))
    return chunk


def unpack(chunk: Chunk) -> list[tuple[str, torch.Tensor]]:
    """The named tensors of a chunk, copied: a receiver may keep them until a layer is complete."""
    import torch

    return [
        (name, torch.from_numpy(flat.copy()).view(getattr(torch, dtype)).reshape(shape))
        for name, dtype, shape, flat in chunk
    ]


class Arrivals:
    """Records which weights of an update have arrived, on any wire.

    Engines do not notice a weight that is not sent: they go on with the old one.
    """

    def __init__(self, model_path: str, own_head: bool, preserve: Sequence[str]) -> None:
        """`own_head`: the engine needs the head's weight, tied or not. `preserve`: patterns of names never sent."""
        head = family_of(load_model_config(model_path)).head
        names = stored_shapes(model_path).keys() | ({head} if own_head else set())
        self._expected = {name for name in names if not any(fnmatch(name, pattern) for pattern in preserve)}
        self._missing: set[str] = set()

    def begin(self) -> None:
        """An update starts: all expected weights are missing."""
        self._missing = set(self._expected)

    def add(self, update_info: dict[str, Any]) -> None:
        """Record the weights of one call of `update_weights`."""
        names = update_info["names"] if "names" in update_info else [name for name, *_ in update_info["chunk"]]
        self._missing.difference_update(names)

    def check(self) -> None:
        """The update is finished. Raises InputError that names the weights which have not arrived."""
        if self._missing:
            names = sorted(self._missing)
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise InputError(
                f"an update of the engine's weights lacks {len(names)} of {len(self._expected)}: {shown}. If it was "
                "read from a folder, a file is missing or cut there: export or copy the model again."
            )
