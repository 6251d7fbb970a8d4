"""The learning rate over a run."""

from __future__ import annotations

import math

from timemaster.config import OptimConfig


def lr_factor(optim: OptimConfig, done: int, total: int) -> float:
    """The learning rate's factor after `done` of `total` updates: linear warm-up, then constant or cosine."""
    if done < optim.lr_warmup_steps:
        return (done + 1) / optim.lr_warmup_steps
    if optim.lr_scheduler_type == "constant":
        return 1.0
    progress = min((done - optim.lr_warmup_steps) / max(total - optim.lr_warmup_steps, 1), 1.0)
    return optim.min_lr_ratio + (1 - optim.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
