"""Metrics per token: added up by data source over micro-batches and ranks, then turned into means.

Keys of totals: "name@data_source", and "@data_source" for the number of tokens. A metric whose name ends in _max keeps
its largest value instead of a sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch


def add_up(
    totals: dict[str, torch.Tensor], metrics: Mapping[str, torch.Tensor], sources: Sequence[str], counts: Sequence[int]
) -> None:
    """Add the metrics [N] of a micro-batch to `totals`.

    `sources` has the data source of each sample, `counts` how many of the N tokens belong to it.
    """
    example = next(iter(metrics.values()))
    zero = torch.zeros((), device=example.device)
    for source in set(sources):
        is_source = torch.tensor([name == source for name in sources])
        selected = is_source.repeat_interleave(torch.tensor(counts)).to(example.device)
        for name, values in (dict(metrics) | {"": torch.ones_like(example)}).items():
            key, added = f"{name}@{source}", values.float().where(selected, zero)
            old = totals.get(key, zero)
            totals[key] = torch.maximum(old, added.max()) if name.endswith("_max") else old + added.sum()


def means(totals: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the totals of all ranks: "name" over all tokens, "name@data_source" over the tokens of a data source.

    A metric whose name ends in _max keeps its largest value instead.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for key, value in (item for of_rank in totals for item in of_rank.items()):
        values[key].append(value)
        values[key.partition("@")[0]].append(value)
    out = {}
    for key in sorted(values):
        name, at, source = key.partition("@")
        if name:
            num_tokens = max(sum(values[at + source]), 1.0)
            out[key] = max(values[key]) if name.endswith("_max") else sum(values[key]) / num_tokens
    return out
