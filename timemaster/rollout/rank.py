"""One rollout engine with its scoring threads: what runs inside an engine's process. Knows nothing of Ray."""

from __future__ import annotations

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from timemaster.config import Config, RewardConfig
from timemaster.data.media import load_model_config, vision_spec
from timemaster.data.render import Renderer
from timemaster.rewards.scoring import RewardPart, as_reward, load_function, score
from timemaster.rollout.engine import EngineSpec, make_engine, preload
from timemaster.rollout.loop import RolloutLoop, ScoreFn
from timemaster.tasks import Task, load_tasks
from timemaster.types import Example, Group, InputError, Prompt, Rollout, Sampling, Score


def peak_memory_gib() -> float:
    """Highest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def use_cores(sharers: int) -> None:
    """Give this process its share of the machine's cores. Call before torch is imported; Ray allows one core only."""
    os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // sharers, 1))


def make_scorer(tasks: dict[str, Task], reward: RewardConfig) -> ScoreFn:
    """How rollouts are scored: by the user's own reward when `reward.path` is set, else by the row's task."""
    own = (RewardPart("score", 1.0, as_reward(load_function(reward.path))),) if reward.path else None

    def score_one(rollout: Rollout, example: Example) -> Score:
        if own is None and example.data_source not in tasks:
            known = ", ".join(tasks) or "none"
            raise InputError(
                f"row {example.id}: no task for data_source={example.data_source!r} (known: {known}). "
                "Add its recipe to data.recipes, or set reward.path."
            )
        return score(rollout, example, own or tasks[example.data_source].rewards, reward.on_error)

    return score_one


class EngineRank:
    """The remote methods of an engine. The weight verbs are vLLM's."""

    def __init__(self, cfg: Config, name: str, device: str) -> None:
        self.cfg, self.name = cfg, name
        if device == "cpu":
            use_cores(1)
            os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling costs seconds at the first answer and gains nothing
        preload(name, device)

    def start(self, spec: EngineSpec) -> None:
        """Start the engine."""
        cfg = self.cfg
        tasks = load_tasks(cfg.data.recipes)
        vision = vision_spec(load_model_config(cfg.model.path), spec.min_pixels, spec.max_pixels)
        self.engine = make_engine(self.name, spec)
        self.loop = RolloutLoop(
            engine=self.engine,
            renderer=Renderer(cfg.model.path, vision),
            score=make_scorer(tasks, cfg.reward),
            respond=lambda example: tasks[example.data_source].respond if example.data_source in tasks else None,
            pool=ThreadPoolExecutor(cfg.reward.num_threads),
            max_model_len=spec.max_model_len,
        )

    def rollout(self, jobs: list[tuple[Example, Prompt]], sampling: Sampling, version: int, seed: str) -> list[Group]:
        return self.loop.run(jobs, sampling, version, seed)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.engine.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self.engine.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.engine.update_weights(update_info)

    def finish_weight_update(self) -> None:
        self.engine.finish_weight_update()

    def checksums(self) -> dict[str, str]:
        return self.engine.checksums()

    def wipe_weights(self) -> None:
        self.engine.wipe_weights()

    def sleep(self) -> None:
        self.engine.sleep()

    def wake(self, tags: list[str] | None) -> None:
        self.engine.wake(tags)

    def peak_memory(self) -> float:
        return peak_memory_gib()
