"""95 % intervals: Wilson's for a share, a seeded bootstrap for a mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

NUM_RESAMPLES = 2000


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion. Source: Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953"""
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(columns: Mapping[str, Sequence[float]], seed: int) -> dict[str, list[float]]:
    """95 % intervals of the columns' means: percentiles over NUM_RESAMPLES resamples of the items.

    Each resample draws the same items for all columns, so that their intervals can be compared. The interval of
    a constant column has no width. Source: Efron (1979), https://doi.org/10.1214/aos/1176344552
    """
    import numpy as np

    if not columns:
        return {}
    rng = np.random.default_rng(seed)
    values = np.array(list(columns.values())).T  # [items, columns]
    means = (values[rng.integers(0, len(values), len(values))].mean(axis=0) for _ in range(NUM_RESAMPLES))
    ends = np.percentile(np.array(list(means)), [2.5, 97.5], axis=0)
    return {name: [float(low), float(high)] for name, low, high in zip(columns, *ends, strict=True)}


def bootstrap_shares(columns: Mapping[str, Sequence[float]], seed: int) -> dict[str, list[float]]:
    """`bootstrap` of shares. A column of only 0 or only 1 gets Wilson's interval: its resamples are all equal."""
    intervals = bootstrap(columns, seed)
    constant = {name: column for name, column in columns.items() if set(column) in ({0.0}, {1.0})}
    return intervals | {name: list(wilson(round(sum(column)), len(column))) for name, column in constant.items()}
