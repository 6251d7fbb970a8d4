"""Per-token metrics, summed by data source over micro-batches and ranks, and their means.

Keys of sums: "name@data_source", and "@data_source" for the number of tokens. Of names in _max the largest is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch


def add_up(
    sums: dict[str, torch.Tensor], metrics: Mapping[str, torch.Tensor], sources: Sequence[str], counts: Sequence[int]
) -> None:
    """Add metrics [N] of a micro-batch to `sums`; each sample has its data source and its count of the N tokens."""
    some = next(iter(metrics.values()))
    zero = torch.zeros((), device=some.device)
    for source in set(sources):
        is_own = torch.tensor([one == source for one in sources])
        own = is_own.repeat_interleave(torch.tensor(counts)).to(some.device)
        for name, values in (dict(metrics) | {"": torch.ones_like(some)}).items():
            key, mine = f"{name}@{source}", values.float().where(own, zero)
            old = sums.get(key, zero)
            sums[key] = torch.maximum(old, mine.max()) if name.endswith("_max") else old + mine.sum()


def means(sums: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """From the sums of each rank: means over all tokens by name, over those of a data source by name@data_source."""
    found: dict[str, list[float]] = defaultdict(list)
    for key, value in (item for one in sums for item in one.items()):
        found[key].append(value)
        found[key.partition("@")[0]].append(value)
    out = {}
    for key in sorted(found):
        name, at, source = key.partition("@")
        if name:
            num_tokens = max(sum(found[at + source]), 1.0)
            out[key] = max(found[key]) if name.endswith("_max") else sum(found[key]) / num_tokens
    return out
