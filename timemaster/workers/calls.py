"""Calls of actors: waiting for them, naming the process that failed, and updating engines through Ray."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ray

from timemaster.types import InputError, WorkerDied

if TYPE_CHECKING:
    import torch


def gather(calls: dict[str, Any], actors: dict[str, str]) -> list[Any]:
    """Results of remote calls (name of the called -> ref), in order. The first failure stops waiting.

    Raises InputError when a process raised one, else WorkerDied with the cause and the process (`actors`: id -> name).
    """
    names = {ref: name for name, ref in calls.items()}
    waiting, results = list(names), {}
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        try:
            results[done[0]] = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:  # also what Ray raises when the call itself met a dead process
            if isinstance(error.cause, InputError):
                raise type(error.cause)(str(error.cause)) from None
            if isinstance(error.cause, ray.exceptions.RayActorError):
                raise _died(error.cause, actors, names[done[0]]) from None
            raise WorkerDied(f"{names[done[0]]} failed: {error}") from None
        except ray.exceptions.RayActorError as error:
            raise _died(error, actors, names[done[0]]) from None
    return [results[ref] for ref in calls.values()]


def _died(error: ray.exceptions.RayActorError, actors: dict[str, str], called: str) -> WorkerDied:
    who = actors.get(str(error.actor_id), called)
    where = "" if who == called else f" (found by {called})"
    return WorkerDied(f"{who} died{where}: {str(error).strip().splitlines()[0]}")


def _wait(calls: list[Any]) -> None:
    """Wait for engines, from the driver or from a trainer rank. What an engine refuses is an InputError here too."""
    try:
        ray.get(calls)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise type(error.cause)(str(error.cause)) from None
        raise


class EngineClient:
    """vLLM's weight-sync client over Ray actors (the four methods of its VLLMWeightSyncClient protocol)."""

    def __init__(self, engines: list[Any], tensor_parallel: int) -> None:
        self.engines, self.tensor_parallel = engines, tensor_parallel

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each engine's workers get ranks of their own in the NCCL group, behind those of the engines before it."""
        infos = [dict(init_info) for _ in self.engines]
        for k, info in enumerate(infos):
            if "rank_offset" in info:
                info["rank_offset"] += k * self.tensor_parallel
        _wait([e.init_weight_transfer_engine.remote(i) for e, i in zip(self.engines, infos, strict=True)])

    def start_weight_update(self) -> None:
        _wait([engine.start_weight_update.remote() for engine in self.engines])

    def update_weights(self, update_info: Any) -> None:
        shared = ray.put(update_info)
        _wait([engine.update_weights.remote(shared) for engine in self.engines])

    def send(self, layers: Iterable[list[tuple[str, torch.Tensor]]]) -> None:
        """One whole update over the object store, a layer at a time."""
        from timemaster.rollout.wire import pack

        self.start_weight_update()
        for layer in layers:
            self.update_weights({"chunk": pack(layer)})
        self.finish_weight_update()

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        _wait([engine.finish_weight_update.remote() for engine in self.engines])
