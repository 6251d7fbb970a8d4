"""Do two sets of answers to the same items differ? Exact tests of pairs; both are two-sided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from timemaster.metrics.answers import Answer
from timemaster.types import InputError

MAX_EXACT = 16  # up to this many differing pairs, all 2**n sign changes are tried
NUM_FLIPS = 10_000  # random sign changes beyond that


@dataclass(frozen=True, slots=True)
class Paired:
    """The outcome of a paired test. Example: Paired(first_larger=31, second_larger=12, p=0.0054)"""

    first_larger: int  # items whose number is larger in the first set (for right and wrong: right only in the first)
    second_larger: int
    p: float  # probability of a difference at least as large if both sets were equally good


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """McNemar's exact test of whether two sets are right equally often. Both hold the items in the same order.

    p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2), where b items are right only in the first set
    and c only in the second.
    Source: McNemar (1947), https://doi.org/10.1007/BF02295996
    """
    b = sum(in_first and not in_second for in_first, in_second in zip(first, second, strict=True))
    c = sum(in_second and not in_first for in_first, in_second in zip(first, second, strict=True))
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return Paired(b, c, min(1.0, 2 * tail / 2 ** (b + c)))


def sign_flip(first: Sequence[float], second: Sequence[float], seed: int = 1) -> Paired:
    """Permutation test of the mean difference of pairs of real numbers. Both hold the items in the same order.

    If both sets were equally good, each difference could have had the other sign. p is the share of all sign changes
    whose |sum of differences| is at least the observed one. With up to MAX_EXACT differing pairs, all sign
    changes are tried; with more, NUM_FLIPS seeded random ones and the observed one.
    Sources: Fisher (1935), The Design of Experiments, section 21; Phipson and Smyth (2010), arXiv 1603.05766
    """
    import numpy as np

    differences = np.array([a - b for a, b in zip(first, second, strict=True) if a != b], dtype=float)
    larger = int((differences > 0).sum())
    n = len(differences)
    if n <= MAX_EXACT:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        signs, observed = 1 - 2 * bits, 0
    else:
        signs, observed = np.random.default_rng(seed).choice([-1, 1], size=(NUM_FLIPS, n)), 1
    limit = abs(differences.sum()) * (1 - 1e-12)  # rounding must not hide an equal sum
    reached = int((np.abs(signs @ differences) >= limit).sum())
    return Paired(larger, n - larger, (reached + observed) / (len(signs) + observed))


def check_pairs(
    first: Mapping[str, Answer], second: Mapping[str, Answer], names: tuple[str, str] = ("first", "second")
) -> None:
    """InputError unless both hold the same ids with the same truths."""
    alone = [sorted(first.keys() - second.keys()), sorted(second.keys() - first.keys())]
    if alone[0] or alone[1]:
        each = (f"{len(ids)} are only in {name} {ids[:1]}" for ids, name in zip(alone, names, strict=True))
        raise InputError(
            f"{names[0]} and {names[1]} cannot be paired: of their examples, {' and '.join(each)}. Answer the same "
            "rows of the same file with both, without leaving any out."
        )
    different = [key for key, answer in first.items() if answer.truth != second[key].truth]
    if different:
        key = different[0]
        raise InputError(
            f"{names[0]} and {names[1]} cannot be paired: {len(different)} examples have different truths, such as "
            f"{key}: {first[key].truth!r} and {second[key].truth!r}. One of them answered another file of that name."
        )
