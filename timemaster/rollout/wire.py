"""Weights on their way from trainer to engine without a GPU: chunks of named arrays.

The GPU wires ("ipc", "nccl") are vLLM's own; this one is for CPU machines and for the hf engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
