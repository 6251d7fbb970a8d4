"""How a mini-batch is distributed over trainer ranks and cut into micro-batches. Pure arithmetic on lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from timemaster.config import Config, attention
from timemaster.types import Sample

DENSE_MASK_TOKENS = 4096  # masked attention is a fifth of a 3B model's layer FLOPs here, 9/10 at 16,384 tokens


def micro_batch_tokens(cfg: Config, device: str) -> int:
    """The limit of tokens in one micro-batch, padding included. A longer sequence gets a micro-batch of its own.

    On GPU, every attention except flash-attn needs a dense [T, T] mask for several sequences in one row, so T is kept
    small. A single sequence needs no mask.
    """
    limit = cfg.actor.ppo_max_token_len_per_gpu
    masked = device == "cuda" and attention(cfg, device) != "flash_attention_2"
    return min(limit, DENSE_MASK_TOKENS) if masked else limit


def describe_micro_batches(cfg: Config, device: str) -> str:
    """One line about the size of micro-batches, for the table of derived sizes."""
    limit, tokens = cfg.actor.ppo_max_token_len_per_gpu, micro_batch_tokens(cfg, device)
    text = f"up to {tokens} tokens a rank, attention by {attention(cfg, device)}"
    if tokens < limit:
        text += f" (not actor.ppo_max_token_len_per_gpu={limit}: this attention needs a dense mask, flash-attn none)"
    return text


def spread(samples: Sequence[Sample], num_ranks: int, max_tokens: int, padded: bool) -> list[list[list[int]]]:
    """Indices of samples by rank and micro-batch: `spread(...)[rank][micro]` is a list of indices, which may be empty.

    Ranks get about the same number of tokens. Sequences of one prompt stay together where possible, because they share
    images. Every rank has the same number of micro-batches, so that collectives match.
    """
    groups: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.id, []).append(i)
    units = list(groups.values()) if len(groups) >= 2 * num_ranks else [[i] for i in range(len(samples))]
    loads: list[int] = [0] * num_ranks
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    sizes = [sum(len(samples[i].token_ids) for i in unit) for unit in units]
    for u in sorted(range(len(units)), key=lambda u: -sizes[u]):
        target = min(range(num_ranks), key=lambda r: (loads[r], r))
        loads[target] += sizes[u]
        ranks[target] += units[u]
    plans = [_cut([(i, len(samples[i].token_ids)) for i in sorted(rank)], max_tokens, padded) for rank in ranks]
    most = max(len(plan) for plan in plans)
    return [plan + [[] for _ in range(most - len(plan))] for plan in plans]


def _cut(items: list[tuple[int, int]], max_tokens: int, padded: bool) -> list[list[int]]:
    micros: list[list[int]] = []
    cost: Callable[[list[int]], int] = (lambda lens: max(lens) * len(lens)) if padded else sum
    lengths: list[int] = []
    for index, length in items:
        if micros and cost([*lengths, length]) <= max_tokens:
            micros[-1].append(index)
            lengths.append(length)
        else:
            micros.append([index])
            lengths = [length]
    return micros
