"""Weights on their way from trainer to engine: chunks of named arrays, and a count of what has arrived.

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
    """Named CPU tensors as plain arrays (numpy has no bfloat16, so the bytes travel)."""
    import torch

    chunk: Chunk = []
    for name, tensor in weights:
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()
        chunk.append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), flat))
    return chunk


def unpack(chunk: Chunk) -> list[tuple[str, torch.Tensor]]:
    """The named tensors of a chunk, in memory of their own: a receiver may keep them until a layer is complete."""
    import torch

    return [
        (name, torch.from_numpy(flat.copy()).view(getattr(torch, dtype)).reshape(shape))
        for name, dtype, shape, flat in chunk
    ]


class Arrivals:
    """The names of an update's weights as they arrive, whatever the wire.

    No engine misses a weight that does not come: the old one stays in its place.
    """

    def __init__(self, model_path: str, own_head: bool, preserve: Sequence[str]) -> None:
        """`own_head`: the engine needs the head's weight, tied or not. `preserve`: patterns of names never sent."""
        head = family_of(load_model_config(model_path)).head
        names = stored_shapes(model_path).keys() | ({head} if own_head else set())
        self._expected = {name for name in names if not any(fnmatch(name, pattern) for pattern in preserve)}
        self._missing: set[str] = set()

    def begin(self) -> None:
        """An update starts: everything has to come."""
        self._missing = set(self._expected)

    def add(self, update_info: dict[str, Any]) -> None:
        """What one call of `update_weights` brings."""
        names = update_info["names"] if "names" in update_info else [name for name, *_ in update_info["chunk"]]
        self._missing.difference_update(names)

    def check(self) -> None:
        """The update is said to be whole. Raises InputError when it is not."""
        if self._missing:
            names = sorted(self._missing)
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            raise InputError(
                f"an update of the engine's weights lacks {len(names)} of {len(self._expected)}: {shown}. If it was "
                "read from a folder, a file is missing or cut there: export or copy the model again."
            )
