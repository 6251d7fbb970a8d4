"""Starting Ray and placing the actors of a run on its nodes and GPUs.

Run on CPU. Placement on GPUs (colocated and separate) is written and has not been run on a GPU yet.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from timemaster.config import Config, world_size
from timemaster.rollout.engine import EngineSpec
from timemaster.rollout.rank import EngineRank
from timemaster.types import InputError


def start_ray(cfg: Config, device: str) -> None:
    """Start Ray on this machine, or join the cluster named by trainer.ray_address."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    args: dict[str, Any] = {"address": cfg.trainer.ray_address} if cfg.trainer.ray_address else {"include_dashboard": False}
    if not cfg.trainer.ray_address and device == "cpu":
        args |= {"num_gpus": 0}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **args)


def place_trainers(cfg: Config, device: str, rank_class: type) -> list[Any]:
    """One actor per rank: a GPU each, nodes filled one after another; on CPU plain processes that share the cores."""
    ranks = world_size(cfg)
    actor = ray.remote(rank_class)
    if device == "cpu":
        threads = str(max((os.cpu_count() or 1) // ranks, 1))
        env = {"env_vars": {"OMP_NUM_THREADS": threads}}
        return [actor.options(num_cpus=0, runtime_env=env).remote(cfg, rank, device) for rank in range(ranks)]
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


def place_engines(
    cfg: Config, device: str, engine: tuple[str, EngineSpec], trainers: list[tuple[str, list[str]]]
) -> list[Any]:
    """Engine actors: on the trainers' GPUs (colocated), on GPUs of their own (separate), or plain processes on CPU."""
    actor, (name, spec), tp = ray.remote(EngineRank), engine, engine[1].tensor_parallel
    if device == "cpu":
        env = {"env_vars": {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}}
        count = max(cfg.rollout.num_engines, 1)
        return [actor.options(num_cpus=0, runtime_env=env).remote(cfg, name, spec) for _ in range(count)]
    if cfg.rollout.placement == "separate" or not trainers:
        count = cfg.rollout.num_engines or world_size(cfg) // tp
        return [actor.options(num_gpus=tp, num_cpus=1).remote(cfg, name, spec) for _ in range(count)]
    if len(trainers) % tp:
        raise InputError(f"rollout.tensor_parallel_size={tp} must divide the {len(trainers)} trainer ranks it shares with")
    actors = []
    for k in range(0, len(trainers), tp):
        node, gpus = trainers[k][0], [gpu for _, one in trainers[k : k + tp] for gpu in one]
        env = {"env_vars": {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
        stay = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 1, "num_gpus": 0, "scheduling_strategy": stay, "runtime_env": env}
        actors.append(actor.options(**options).remote(cfg, name, spec))
    return actors
