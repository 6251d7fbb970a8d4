"""The current process: its memory, its share of the cores, its GPUs."""

from __future__ import annotations

import os
import resource

from timemaster.types import InputError


def peak_memory_gib() -> float:
    """Highest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def use_cores(sharers: int, device: str) -> None:
    """Give this process its share of the node's cores. Call it before torch is imported. Ray allows only one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(max(cores // sharers, 1))
    if device == "cpu":  # with more processes than cores, spinning threads would slow the working ones
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ.setdefault("GOMP_SPINCOUNT", "0")


def check_visible_gpus(wanted: int) -> None:
    """Raise InputError unless this process sees exactly the `wanted` GPUs that Ray gave it."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is None or len(seen.split(",")) != wanted:
        raise InputError(
            f"a process with {wanted} GPU(s) of its own sees {'all' if seen is None else seen or 'none'}: every rank "
            "would take the first one. RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES must not be set for the Ray "
            "cluster: unset it on every node (also for this command), and start Ray again."
        )
