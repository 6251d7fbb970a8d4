"""Remote calls of actors: waiting for them, naming the process that failed, and updating engines through Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ray

from timemaster.types import InputError, WorkerDied

if TYPE_CHECKING:
    import torch


def gather(calls: Sequence[Any], actors: Mapping[str, str]) -> list[Any]:
    """The results of remote calls, in their order. Raises what `first_result` raises, at the first failure."""
    results: dict[int, Any] = {}
    waiting = list(range(len(calls)))
    while waiting:
        k, result = first_result([calls[i] for i in waiting], actors)
        results[waiting.pop(k)] = result
    return [results[i] for i in range(len(calls))]


def first_result(calls: Sequence[Any], actors: Mapping[str, str]) -> tuple[int, Any]:
    """Wait for one of several remote calls. Returns its position and its result.

    `actors`: name of each process by its actor's id. Raises InputError when the called process raised one, else
    WorkerDied with the name of the process and the cause.
    """
    ref = ray.wait(list(calls), num_returns=1)[0][0]
    called = actors[ref.task_id().actor_id().hex()]
    try:
        return list(calls).index(ref), ray.get(ref)
    except ray.exceptions.RayTaskError as error:  # Ray also raises this when the called process found a dead process
        if isinstance(error.cause, InputError):
            raise type(error.cause)(str(error.cause)) from None
        if isinstance(error.cause, ray.exceptions.RayActorError):
            raise _died(error.cause, actors, called) from None
        raise WorkerDied(f"{called} failed: {error}") from None
    except ray.exceptions.RayActorError as error:
        raise _died(error, actors, called) from None


def _died(error: ray.exceptions.RayActorError, actors: Mapping[str, str], called: str) -> WorkerDied:
    who = actors.get(str(error.actor_id), called)
    where = "" if who == called else f" (found by {called})"
    return WorkerDied(f"{who} died{where}: {str(error).strip().splitlines()[0]}")


def _wait(calls: list[Any]) -> None:
    """Wait for engines, from the driver or from a trainer rank. An engine's InputError is raised here as InputError."""
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
        """Each engine's workers get their own ranks in the NCCL group, after those of the engines before it."""
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
        """One complete update over the object store, a layer at a time."""
        from timemaster.rollout.wire import pack

        self.start_weight_update()
        for layer in layers:
            self.update_weights({"chunk": pack(layer)})
        self.finish_weight_update()

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        _wait([engine.finish_weight_update.remote() for engine in self.engines])
