"""This process: its memory and its share of the machine's cores."""

from __future__ import annotations

import os
import resource

from timemaster.types import InputError


def peak_memory_gib() -> float:
    """Highest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def use_cores(sharers: int, device: str) -> None:
    """Give this process its share of the node's cores. Call before torch is imported; Ray allows one core only."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(max(cores // sharers, 1))
    if device == "cpu":  # processes outnumber cores: threads that spin while they wait take them from those that work
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ.setdefault("GOMP_SPINCOUNT", "0")


def check_visible_gpus(wanted: int) -> None:
    """InputError when Ray has not limited this process to the GPUs it was given."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is None or len(seen.split(",")) != wanted:
        raise InputError(
            f"a process with {wanted} GPU(s) of its own sees {'all' if seen is None else seen or 'none'}: every rank "
            "would take the first one. RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES must not be set for the Ray "
            "cluster: unset it on every node (also for this command), and start Ray again."
        )
