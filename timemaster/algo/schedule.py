"""The learning rate over a run."""

from __future__ import annotations

import math


def lr_factor(kind: str, warmup: int, min_ratio: float, done: int, total: int) -> float:
    """The learning rate's factor after `done` of `total` updates: linear over `warmup` updates, then `kind`.

    `kind` is "constant" or "cosine", which ends at `min_ratio`.
    """
    if done < warmup:
        return (done + 1) / warmup
    if kind == "constant":
        return 1.0
    progress = min((done - warmup) / max(total - warmup, 1), 1.0)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
