"""From the scores of a group to the advantage of each rollout. Pure functions on lists of floats.

Axes: G = rollouts of one prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from timemaster.types import Group, Sample

AdvantageFn = Callable[[list[float], bool], list[float]]

EPS = 1e-6


def grpo(scores_G: list[float], normalise: bool) -> list[float]:
    """(score - mean) / (std + 1e-6), std with Bessel's correction; only centred when `normalise` is False.

    A group whose scores are all equal gets exactly zero: found by max == min, since the mean of equal floats may differ
    from them in the last bit and would be blown up by the division. Source: DeepSeekMath
    (https://arxiv.org/abs/2402.03300), section 4.1; without the division: Dr.GRPO (https://arxiv.org/abs/2503.20783).
    """
    if max(scores_G) == min(scores_G):
        return [0.0] * len(scores_G)
    mean = fmean(scores_G)
    if not normalise:
        return [score - mean for score in scores_G]
    std = (sum((score - mean) ** 2 for score in scores_G) / (len(scores_G) - 1)) ** 0.5
    return [(score - mean) / (std + EPS) for score in scores_G]


ADVANTAGES: dict[str, AdvantageFn] = {"grpo": grpo}


def group_advantages(group: Group, estimator: str, normalise: bool, on_unknown: str) -> list[float | None]:
    """The advantage of each rollout of a group; None for one that is not learnt from.

    A rollout with a part that a judge could not settle is left out, of its group's mean and deviation too
    (`on_unknown` "rollout"), or its whole group is ("group"). A rollout whose environment failed is left out alone.
    """
    ended = [rollout for rollout in group.rollouts if not rollout.failure]
    settled = [i for i, rollout in enumerate(group.rollouts) if rollout.score and not rollout.score.unknown]
    advantages_G: list[float | None] = [None] * len(group.rollouts)
    if not settled or (on_unknown == "group" and len(settled) < len(ended)):
        return advantages_G
    scores = [rollout.score.total for i in settled if (rollout := group.rollouts[i]).score]
    for i, advantage in zip(settled, ADVANTAGES[estimator](scores, normalise), strict=True):
        advantages_G[i] = advantage
    return advantages_G


def to_samples(group: Group, advantages_G: Sequence[float | None]) -> list[Sample]:
    """The rollouts that are learnt from as training samples, in order, each with the engine's log-probs."""
    return [
        Sample(
            id=rollout.id,
            token_ids=rollout.token_ids,
            mask=rollout.mask,
            media=rollout.media,
            logprobs=rollout.logprobs,
            temperatures=rollout.temperatures,
            advantage=advantage,
            data_source=group.example.data_source,
        )
        for rollout, advantage in zip(group.rollouts, advantages_G, strict=True)
        if advantage is not None
    ]
