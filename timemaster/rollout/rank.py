"""One rollout engine with its scoring threads: what runs inside an engine's process. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timemaster.config import Config, RewardConfig, run_dir
from timemaster.data.media import load_model_config, vision_spec
from timemaster.data.render import Renderer
from timemaster.judge import Judge, Store, chat_from, set_judge
from timemaster.models.folder import local_folder
from timemaster.models.weights import check_weights
from timemaster.rewards.scoring import RewardPart, Scorer, as_reward, load_function
from timemaster.rollout.engine import EngineSpec, make_engine, preload
from timemaster.rollout.loop import RolloutLoop
from timemaster.tasks import Task, load_tasks
from timemaster.types import Example, Group, InputError, Prompt, Sampling


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


def own_reward(reward: RewardConfig) -> tuple[RewardPart, ...] | None:
    """The user's own reward, None when `reward.path` is not set. InputError when it cannot be loaded or called."""
    if not reward.path:
        return None
    try:
        return (RewardPart("score", 1.0, as_reward(load_function(reward.path))),)
    except InputError as error:
        raise InputError(f"reward.path={reward.path}: {error}") from error


def make_scorer(tasks: dict[str, Task], reward: RewardConfig) -> Scorer:
    """How rollouts are scored: by the user's own reward when `reward.path` is set, else by the row's task."""
    own = own_reward(reward)

    def parts_of(example: Example) -> Sequence[RewardPart]:
        if own is None and example.data_source not in tasks:
            known = ", ".join(tasks) or "none"
            raise InputError(
                f"row {example.id}: no task for data_source={example.data_source!r} (known: {known}). "
                "Add its recipe to data.recipes, or set reward.path."
            )
        return own or tasks[example.data_source].rewards

    return Scorer(parts_of, reward.on_error, reward.num_threads, reward.timeout)


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


def check_rewards(cfg: Config) -> None:
    """Load the user's own reward, and ask the judge for one verdict where rewards need one, before anything is started.
    Raises InputError.
    """
    own_reward(cfg.reward)
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

    def __init__(self, cfg: Config, name: str, device: str, sharers: int) -> None:
        """`sharers`: as many processes like this one share the node's cores."""
        self.cfg, self.name = cfg, name
        use_cores(sharers, device)
        if device == "cpu":
            os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling costs seconds at the first answer and gains nothing
        preload(name, device)

    def start(self, spec: EngineSpec, num_engines: int) -> None:
        """Start the engine, one of `num_engines`."""
        cfg = self.cfg
        cfg.model.path = local_folder(cfg.model.path, cfg.model.revision)
        spec = replace(spec, model_path=local_folder(spec.model_path, cfg.model.revision))
        if spec.device == "cuda":
            check_visible_gpus(spec.tensor_parallel)
        tasks = load_tasks(cfg.data.recipes)
        vision = vision_spec(load_model_config(cfg.model.path), spec.min_pixels, spec.max_pixels)
        check_weights(spec.model_path)
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

    def greedy(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """The first tokens of the most likely answer to each prompt, to compare an engine with itself."""
        sampling = Sampling(temperature=0.0, max_tokens=min(self.cfg.data.max_response_length, 32))
        for k, prompt in enumerate(prompts):
            self.engine.submit(str(k), prompt, sampling)
        answers: dict[int, list[int]] = {}
        while self.engine.busy():
            answers |= {int(key): completions[0].token_ids for key, completions in self.engine.step()}
        return [answers[k] for k in range(len(prompts))]

    def own_head(self) -> bool:
        return self.engine.own_head()

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

    def wake(self, tags: list[str]) -> None:
        self.engine.wake(tags)

    def peak_memory(self) -> float:
        return peak_memory_gib()
