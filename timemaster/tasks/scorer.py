"""How a run scores rollouts: by the rewards of the row's task or by the user's own, and with the judge of judge.*."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from timemaster.config import Config, RewardConfig, run_dir
from timemaster.judge import Judge, Store, chats_from
from timemaster.rewards import RewardPart, Scorer, as_reward, check_parts, load_function
from timemaster.tasks import Task, load_tasks
from timemaster.types import Example, InputError


def own_reward(reward: RewardConfig) -> tuple[RewardPart, ...] | None:
    """The user's own reward; None when `reward.path` is not set. InputError when it cannot be loaded or called."""
    if not reward.path:
        return None
    try:
        parts = (RewardPart("score", 1.0, as_reward(load_function(reward.path))),)
        check_parts(parts)
        return parts
    except InputError as error:
        raise InputError(f"reward.path={reward.path}: {error}") from error


def make_scorer(tasks: dict[str, Task], reward: RewardConfig) -> Scorer:
    """A scorer with the user's own reward when `reward.path` is set, else with the rewards of each row's task."""
    user_parts = own_reward(reward)

    def parts_of(example: Example) -> Sequence[RewardPart]:
        if user_parts is None and example.data_source not in tasks:
            known = ", ".join(tasks) or "none"
            raise InputError(
                f"row {example.id}: no task for data_source={example.data_source!r} (known: {known}). "
                "Add its recipe to data.recipes, or set reward.path."
            )
        return user_parts or tasks[example.data_source].rewards

    return Scorer(parts_of, reward.on_error, reward.num_threads, reward.timeout)


def make_judge(cfg: Config, sharers: int = 1) -> Judge | None:
    """The judge of judge.*; None when judge.model is not set.

    `sharers`: this many processes share judge.concurrency, and through the cache file also the budget. An evaluation
    has its own budget.
    """
    settings, folder = cfg.judge, run_dir(cfg)
    if not settings.model:
        return None
    store = Store(Path(settings.cache or f"{folder}/judge.sqlite"), several_hosts=cfg.trainer.nnodes > 1)
    account = folder if settings.cache else "run"  # a cache in the run's folder may be moved with the run
    account += " evaluation" if cfg.trainer.val_only else ""
    concurrency = max(settings.concurrency // (sharers * len(settings.model)), 1)
    chats = chats_from(settings, store, account, concurrency)
    return Judge(chats=chats, include_image=settings.include_image, include_truth=settings.include_truth)


def check_rewards(cfg: Config) -> None:
    """Load the user's own reward and, where rewards need a judge, ask it for one verdict, before anything is started.

    Raises InputError.
    """
    own_reward(cfg.reward)
    tasks = load_tasks(cfg.data.recipes).values()
    names = [t.name for t in tasks if not cfg.reward.path and any(part.asks_judge for part in t.rewards)]
    if names and not cfg.judge.model:
        raise InputError(
            f"the rewards of {', '.join(names)} ask a judge: set judge.model, and judge.base_url and "
            "judge.api_key_env as it needs them."
        )
    judge = make_judge(cfg) if names or cfg.reward.path else None
    if judge:
        asyncio.run(judge.check())
