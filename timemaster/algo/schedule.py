"""The learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from timemaster.fields import at_least, between, one_of, setting


def constant(progress: float, cfg: ScheduleConfig) -> float:
    """1.0 always."""
    return 1.0


def cosine(progress: float, cfg: ScheduleConfig) -> float:
    """From 1.0 down to min_lr_ratio along half a cosine."""
    return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


# name -> factor of the learning rate at a progress from 0.0 (end of the warm-up) to 1.0 (last update)
SCHEDULES: dict[str, Callable[[float, ScheduleConfig], float]] = {"constant": constant, "cosine": cosine}


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """The settings that the schedule reads: a part of actor.optim."""

    lr_warmup_steps: int = setting(0, "optimizer steps of linear warm-up", at_least(0))
    lr_scheduler_type: str = setting("constant", "learning rate after the warm-up", one_of(SCHEDULES))
    min_lr_ratio: float = setting(0.0, "where cosine ends, as a share of lr", between(0, 1))


def lr_factor(cfg: ScheduleConfig, done: int, total: int) -> float:
    """The factor of the learning rate after `done` of `total` updates: a linear warm-up, then the schedule."""
    warmup = cfg.lr_warmup_steps
    if done < warmup:
        return (done + 1) / warmup
    return SCHEDULES[cfg.lr_scheduler_type](min((done - warmup) / max(total - warmup, 1), 1.0), cfg)
