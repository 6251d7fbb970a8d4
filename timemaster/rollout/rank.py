"""One rollout engine with its scoring threads: what runs inside an engine's process. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from timemaster.config import Config, RewardConfig, run_dir
from timemaster.data.media import load_model_config, vision_spec
from timemaster.data.render import Renderer
from timemaster.judge import Judge, Store, chat_from, set_judge
from timemaster.models.weights import Shapes, check_weights, compare_weights
from timemaster.rewards.scoring import RewardPart, Scorer, as_reward, load_function
from timemaster.rollout.engine import EngineSpec, make_engine, preload
from timemaster.rollout.loop import RolloutLoop
from timemaster.tasks import Task, load_tasks
from timemaster.types import Example, Group, InputError, Prompt, Sampling


def peak_memory_gib() -> float:
    """Highest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def use_cores(sharers: int) -> None:
    """Give this process its share of the machine's cores. Call before torch is imported; Ray allows one core only."""
    os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // sharers, 1))


def make_scorer(tasks: dict[str, Task], reward: RewardConfig) -> Scorer:
    """How rollouts are scored: by the user's own reward when `reward.path` is set, else by the row's task."""
    own = (RewardPart("score", 1.0, as_reward(load_function(reward.path))),) if reward.path else None

    def parts_of(example: Example) -> Sequence[RewardPart]:
        if own is None and example.data_source not in tasks:
            known = ", ".join(tasks) or "none"
            raise InputError(
                f"row {example.id}: no task for data_source={example.data_source!r} (known: {known}). "
                "Add its recipe to data.recipes, or set reward.path."
            )
        return own or tasks[example.data_source].rewards

    return Scorer(parts_of, reward.on_error, reward.num_threads)


def make_judge(cfg: Config, sharers: int = 1) -> Judge | None:
    """The judge of judge.*, None without a model. `sharers` processes share its calls in flight, and by the cache file
    its budget; an evaluation has a budget of its own.
    """
    j, folder = cfg.judge, run_dir(cfg)
    if not j.model:
        return None
    store = Store(Path(j.cache or f"{folder}/judge.sqlite"), several_hosts=cfg.trainer.nnodes > 1)
    account = folder if j.cache else "run"  # a run's own file may be moved with it
    account += " evaluation" if cfg.trainer.val_only else ""
    concurrency = max(j.concurrency // (sharers * len(j.model)), 1)
    chats = [
        chat_from(j, store, account, concurrency, model=model, base_url=url, api_key_env=key)
        for model, url, key in zip(j.model, j.base_url, j.api_key_env, strict=True)
    ]
    return Judge(chats=chats, include_image=j.include_image, include_truth=j.include_truth)


def check_judge(cfg: Config) -> None:
    """Ask the judge once, where rewards need one, before anything is started. Raises InputError."""
    tasks = load_tasks(cfg.data.recipes).values()
    asking = [t.name for t in tasks if not cfg.reward.path and any(part.asks_judge for part in t.rewards)]
    if asking and not cfg.judge.model:
        raise InputError(
            f"the rewards of {', '.join(asking)} ask a judge: set judge.model, and judge.base_url and "
            "judge.api_key_env as it needs them."
        )
    judge = make_judge(cfg) if asking or cfg.reward.path else None
    if judge:
        asyncio.run(judge.check())


class EngineRank:
    """The remote methods of an engine. The weight verbs are vLLM's."""

    def __init__(self, cfg: Config, name: str, device: str) -> None:
        self.cfg, self.name = cfg, name
        if device == "cpu":
            use_cores(1)
            os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling costs seconds at the first answer and gains nothing
        preload(name, device)

    def start(self, spec: EngineSpec, num_engines: int) -> None:
        """Start the engine, one of `num_engines`."""
        cfg = self.cfg
        tasks = load_tasks(cfg.data.recipes)
        vision = vision_spec(load_model_config(cfg.model.path), spec.min_pixels, spec.max_pixels)
        wanted = check_weights(spec.model_path)
        self._wanted = {n: shape for n, shape in wanted.items() if not any(fnmatch(n, p) for p in spec.preserve)}
        self.engine = make_engine(self.name, spec)
        set_judge(make_judge(cfg, num_engines))
        self.loop = RolloutLoop(
            engine=self.engine,
            renderer=Renderer(cfg.model.path, vision),
            score=make_scorer(tasks, cfg.reward).submit,
            respond=lambda example: tasks[example.data_source].respond if example.data_source in tasks else None,
            max_model_len=spec.max_model_len,
        )

    def rollout(self, jobs: list[tuple[Example, Prompt]], sampling: Sampling, version: int, seed: str) -> list[Group]:
        return self.loop.run(jobs, sampling, version, seed)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.engine.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._came: Shapes = {}
        self.engine.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._came |= {name: shape for name, _, shape, _ in update_info.get("chunk", [])}
        self.engine.update_weights(update_info)

    def finish_weight_update(self) -> None:
        if self._came:  # the wires between GPUs do not show what they carry
            asked = {name: shape for name, shape in self._came.items() if name in self._wanted}
            compare_weights("an update of the engine's weights", asked, self._wanted)
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
