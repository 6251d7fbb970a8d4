"""Starting Ray, and placing a run's actors on its nodes and GPUs.

Tested on CPU. The placement on GPUs (colocated and separate) has not run on a GPU yet.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import sys
import tempfile
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from timemaster.config import Config, world_size
from timemaster.types import InputError

log = logging.getLogger(__name__)
# The path of a socket has 107 bytes, of which Ray's /ray/session_<time>_<pid>/sockets/plasma_store takes up to 70.
MAX_TEMP_DIR = 37
WAIT_SECONDS = 60  # for GPUs: another run may be about to release them


def start_ray(cfg: Config) -> str:
    """Start Ray on this machine, or join the cluster of trainer.ray_address. Returns "cuda" or "cpu"."""
    args: dict[str, Any] = {"address": "local", "include_dashboard": False}
    if cfg.trainer.device == "cpu":
        args["num_gpus"] = 0
    if cfg.trainer.ray_address:
        args = {"address": cfg.trainer.ray_address}
    else:
        prepare_for_ray()
    log.info("starting Ray")
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **args)
    except (OSError, RuntimeError, ValueError) as error:
        if not cfg.trainer.ray_address:
            raise
        raise InputError(
            f"trainer.ray_address={cfg.trainer.ray_address!r}: no Ray cluster answers there ({error}). Start one with "
            "`ray start --head`, correct the address, or leave it empty for this machine alone."
        ) from error
    signal.signal(signal.SIGTERM, before)  # Ray sets its own handler, which ends the driver at once
    has_gpu = ray.cluster_resources().get("GPU", 0) > 0
    if cfg.trainer.device == "cuda" and not has_gpu:
        raise InputError("trainer.device=cuda, but Ray finds no GPU. Use trainer.device=auto or cpu.")
    return "cuda" if has_gpu and cfg.trainer.device != "cpu" else "cpu"


def prepare_for_ray() -> None:
    """Provide what Ray needs on this machine. Raises InputError when that is not possible.

    Where TMPDIR (or RAY_TMPDIR) cannot hold Ray's sockets, all processes of the run use /tmp instead. Where the home
    folder cannot be written, the token by which the processes of a cluster know each other is made for this run only.
    """
    for path in (sys.executable, ray.__file__):
        if re.search(r"['\\]", path) and " " not in path:  # Ray quotes only paths with a blank
            raise InputError(
                f"{path}: Ray cannot start this. Move the project out of a folder with ' or \\ in its name."
            )
    for name in ("RAY_TMPDIR", "TMPDIR"):
        given = os.environ.get(name, "")
        if not given or _holds_sockets(given):
            continue
        log.warning(
            "%s=%s: Ray needs the absolute path of a folder that can be written, at most %d bytes long (paths of "
            "sockets are short); /tmp is used instead", name, given, MAX_TEMP_DIR,
        )  # fmt: skip
        os.environ[name], tempfile.tempdir = "/tmp", None  # None: tempfile chooses again
    if not _holds_sockets(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"):
        raise InputError(
            "/tmp cannot be written: set TMPDIR to a folder that can be written, with a short path such as /scratch."
        )
    if "RAY_AUTH_TOKEN_PATH" not in os.environ and not _can_be_written(os.path.expanduser("~/.ray")):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _holds_sockets(folder: str) -> bool:
    return os.path.isabs(folder) and len(os.fsencode(folder)) <= MAX_TEMP_DIR and _can_be_written(folder)


def _can_be_written(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def session_folder() -> str:
    """The folder with sockets and logs of the Ray that this process started."""
    return ray._private.worker._global_node.get_session_dir_path()


def place_trainers(cfg: Config, device: str, rank_class: type) -> list[Any]:
    """One actor per rank: one GPU each, node by node; on CPU ordinary processes that share the cores."""
    ranks, per_node = world_size(cfg), cfg.trainer.n_gpus_per_node
    actor = ray.remote(rank_class)
    if device == "cpu":
        return [actor.options(num_cpus=0).remote(cfg, rank, device) for rank in range(ranks)]
    settings = f"trainer.nnodes={cfg.trainer.nnodes} x trainer.n_gpus_per_node={per_node}"
    group = reserve_gpus([per_node] * cfg.trainer.nnodes, "STRICT_SPREAD", settings)
    places = [PlacementGroupSchedulingStrategy(group, rank // per_node) for rank in range(ranks)]
    return [
        actor.options(num_gpus=1, num_cpus=0, scheduling_strategy=place).remote(cfg, rank, device)
        for rank, place in enumerate(places)
    ]


def place_engines(
    cfg: Config, device: str, rank_class: type, name: str, trainers: list[tuple[str, list[str]]]
) -> list[Any]:
    """Engine actors: on the trainers' GPUs (colocated), on other GPUs (separate), or ordinary processes on CPU.

    No actor reserves cores: trainers and engines work in turns, or wait for each other.
    """
    actor, tp = ray.remote(rank_class), cfg.rollout.tensor_model_parallel_size
    if device == "cpu":
        return [actor.options(num_cpus=0).remote(cfg, name, device, 1) for _ in range(max(cfg.rollout.num_engines, 1))]
    if cfg.rollout.placement == "separate" or not trainers:
        count = cfg.rollout.num_engines or max(world_size(cfg) // tp, 1)
        settings = f"{count} engines (rollout.num_engines) x rollout.tensor_model_parallel_size={tp}"
        group = reserve_gpus([tp] * count, "PACK", settings)
        sharers = max(int(max(gpus_of_nodes())) // tp, 1)
        return [
            actor.options(
                num_gpus=tp, num_cpus=0, scheduling_strategy=PlacementGroupSchedulingStrategy(group, k)
            ).remote(cfg, name, device, sharers)
            for k in range(count)
        ]
    places = share_gpus(trainers, tp)
    if cfg.rollout.num_engines not in (0, len(places)):
        raise InputError(
            f"rollout.num_engines={cfg.rollout.num_engines}: colocated engines fill the trainer's GPUs, which makes "
            f"{len(places)} here. Set 0, or rollout.placement=separate."
        )
    actors = []
    for node, gpus in places:
        env = {"env_vars": {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
        on_node = NodeAffinitySchedulingStrategy(node, soft=False)
        options = {"num_cpus": 0, "num_gpus": 0, "scheduling_strategy": on_node, "runtime_env": env}
        actors.append(actor.options(**options).remote(cfg, name, device, cfg.trainer.n_gpus_per_node // tp))
    return actors


def reserve_gpus(bundles: list[int], strategy: str, settings: str) -> PlacementGroup:
    """Reserve GPUs. `bundles`: numbers of GPUs, each on one node. `settings`: those that ask for them, for errors.

    Raises InputError, which says what the cluster has, when the GPUs are not free within WAIT_SECONDS.
    """
    group = placement_group([{"GPU": size} for size in bundles], strategy=strategy)
    if not group.wait(timeout_seconds=WAIT_SECONDS):
        remove_placement_group(group)
        nodes = "another node" if strategy == "STRICT_SPREAD" else "one node"
        raise InputError(
            f"{settings} asks for {len(bundles)} times {bundles[0]} GPU(s), each time on {nodes}. After "
            f"{WAIT_SECONDS} s {ray.available_resources().get('GPU', 0):.0f} GPUs are free in the Ray cluster, whose "
            f"nodes have {', '.join(f'{num:.0f}' for num in gpus_of_nodes())} in all. Lower these settings, start more "
            "nodes with `ray start`, or end what holds the GPUs."
        )
    return group


def gpus_of_nodes() -> list[float]:
    """The number of GPUs of each node of the cluster, free or not."""
    return [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]


def share_gpus(trainers: list[tuple[str, list[str]]], tp: int) -> list[tuple[str, list[str]]]:
    """(node, GPUs) of each colocated engine, from (node, GPUs) of each trainer rank.

    Each engine has `tp` GPUs of one node. Raises InputError when the number of a node's GPUs is not a multiple of `tp`.
    """
    by_node: dict[str, list[str]] = {}
    for node, gpus in trainers:
        by_node.setdefault(node, []).extend(gpus)
    for gpus in by_node.values():
        if len(gpus) % tp:
            raise InputError(
                f"rollout.tensor_model_parallel_size={tp} must divide the {len(gpus)} trainer ranks of a node, whose "
                "GPUs the engines share."
            )
    return [(node, gpus[i : i + tp]) for node, gpus in by_node.items() for i in range(0, len(gpus), tp)]
