"""Copies of tensors in host memory, so that other processes can use their device memory.

A tensor keeps its identity: only its storage is emptied and filled again. FSDP, the optimizer and views of the tensor
need no change. Host buffers are allocated once, with the exact size (torch's own pinned allocator rounds up to a power
of two), and reused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch.distributed.tensor import DTensor


class HostCopies:
    """The buffers, by the tensors' names. `park` and `restore` are called alternately, with the same names."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def park(self, tensors: Mapping[str, torch.Tensor], constant: Collection[str]) -> None:
        """Copy tensors to host memory and free their device memory. `constant` ones are copied the first time only."""
        for name, tensor in tensors.items():
            content = _content(tensor)
            if name not in self._buffers:
                self._buffers[name] = _host_buffer(content)
            elif name in constant:
                continue
            self._buffers[name].copy_(content, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        for tensor in tensors.values():
            _local(tensor).untyped_storage().resize_(0)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Allocate device memory again and copy the tensors back."""
        for name, tensor in tensors.items():
            buffer = self._buffers[name]
            _local(tensor).untyped_storage().resize_(buffer.nbytes)
            _content(tensor).copy_(buffer, non_blocking=True)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _content(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of a tensor's storage, including the padding of a shard."""
    local = _local(tensor)
    return torch.empty(0, dtype=torch.uint8, device=local.device).set_(local.untyped_storage())


def _host_buffer(content: torch.Tensor) -> torch.Tensor:
    buffer = torch.empty_like(content, device="cpu")
    if content.is_cuda and content.nbytes:
        error = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)
        if error.value:
            raise RuntimeError(f"cannot pin {buffer.nbytes} bytes of host memory: CUDA error {error}")
    return buffer
