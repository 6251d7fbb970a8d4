"""Starting Ray, placing the actors of a run on its nodes and GPUs, and the client that updates engines through Ray.

Run on CPU. Placement on GPUs (colocated and separate) is written and has not been run on a GPU yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from timemaster.config import Config, world_size
from timemaster.rollout.rank import EngineRank
from timemaster.types import InputError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def start_ray(cfg: Config) -> str:
    """Start Ray on this machine, or join the cluster of trainer.ray_address. Returns "cuda" or "cpu"."""
    args: dict[str, Any] = {"include_dashboard": False}
    if cfg.trainer.device == "cpu":
        args["num_gpus"] = 0
    if cfg.trainer.ray_address:
        args = {"address": cfg.trainer.ray_address}
    log.info("starting Ray")
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **args)
    found = ray.cluster_resources().get("GPU", 0) > 0
    if cfg.trainer.device == "cuda" and not found:
        raise InputError("trainer.device=cuda, but Ray finds no GPU. Use trainer.device=auto or cpu.")
    return "cuda" if found and cfg.trainer.device != "cpu" else "cpu"


def place_trainers(cfg: Config, device: str, rank_class: type) -> list[Any]:
    """One actor per rank: a GPU each, nodes filled one after another; on CPU plain processes that share the cores."""
    ranks = world_size(cfg)
    actor = ray.remote(rank_class)
    if device == "cpu":
        return [actor.options(num_cpus=0).remote(cfg, rank, device) for rank in range(ranks)]
    group = placement_group([{"GPU": 1, "CPU": 1}] * ranks, strategy="PACK")
    if not group.wait(timeout_seconds=60):
        have = ray.cluster_resources().get("GPU", 0)
        raise InputError(
            f"trainer.n_gpus_per_node={cfg.trainer.n_gpus_per_node} x trainer.nnodes={cfg.trainer.nnodes} asks for "
            f"{ranks} GPUs, the Ray cluster has {have:.0f}: lower them, or start more nodes with `ray start`."
        )
    actors = []
    for rank in range(ranks):
        bundle = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
        actors.append(actor.options(num_gpus=1, num_cpus=1, scheduling_strategy=bundle).remote(cfg, rank, device))
    return actors


def place_engines(cfg: Config, device: str, name: str, trainers: list[tuple[str, list[str]]]) -> list[Any]:
    """Engine actors: on the trainers' GPUs (colocated), on GPUs of their own (separate), or plain processes on CPU."""
    actor, tp = ray.remote(EngineRank), cfg.rollout.tensor_model_parallel_size
    if device == "cpu":
        return [actor.options(num_cpus=0).remote(cfg, name, device) for _ in range(max(cfg.rollout.num_engines, 1))]
    if cfg.rollout.placement == "separate" or not trainers:
        count = cfg.rollout.num_engines or world_size(cfg) // tp
        return [actor.options(num_gpus=tp, num_cpus=1).remote(cfg, name, device) for _ in range(count)]
    if len(trainers) % tp:
        raise InputError(
            f"rollout.tensor_parallel_size={tp} must divide the {len(trainers)} trainer ranks it shares with"
        )
    actors = []
    for k in range(0, len(trainers), tp):
        node, gpus = trainers[k][0], [gpu for _, one in trainers[k : k + tp] for gpu in one]
        env = {"env_vars": {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
        stay = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 1, "num_gpus": 0, "scheduling_strategy": stay, "runtime_env": env}
        actors.append(actor.options(**options).remote(cfg, name, device))
    return actors


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
        ray.get([e.init_weight_transfer_engine.remote(i) for e, i in zip(self.engines, infos, strict=True)])

    def start_weight_update(self) -> None:
        ray.get([engine.start_weight_update.remote() for engine in self.engines])

    def update_weights(self, update_info: Any) -> None:
        shared = ray.put(update_info)
        ray.get([engine.update_weights.remote(shared) for engine in self.engines])

    def send(self, layers: Iterable[list[tuple[str, torch.Tensor]]]) -> None:
        """One whole update over the object store, a layer at a time."""
        from timemaster.rollout.wire import pack

        self.start_weight_update()
        for layer in layers:
            self.update_weights({"chunk": pack(layer)})
        self.finish_weight_update()

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        ray.get([engine.finish_weight_update.remote() for engine in self.engines])
