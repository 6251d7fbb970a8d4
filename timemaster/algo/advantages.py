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


def group_advantages(group: Group, estimator: str, normalise: bool, on_unknown: str) -> list[float]:
    """The advantage of each rollout of a group.

    A rollout with a part that a judge could not settle gets 0 and does not count in its group's mean and deviation
    (`on_unknown` "rollout"), or all rollouts of its group get 0 ("group").
    """
    settled = [i for i, rollout in enumerate(group.rollouts) if rollout.score and not rollout.score.unknown]
    advantages_G = [0.0] * len(group.rollouts)
    if len(settled) < 2 or (on_unknown == "group" and len(settled) < len(group.rollouts)):
        return advantages_G
    scores = [rollout.score.total for i in settled if (rollout := group.rollouts[i]).score]
    for i, advantage in zip(settled, ADVANTAGES[estimator](scores, normalise), strict=True):
        advantages_G[i] = advantage
    return advantages_G


def to_samples(groups: Sequence[Group], estimator: str, normalise: bool, on_unknown: str = "rollout") -> list[Sample]:
    """Scored groups to training samples, in order: each rollout with its advantage and the engine's log-probs."""
    samples = []
    for group in groups:
        advantages_G = group_advantages(group, estimator, normalise, on_unknown)
        for rollout, advantage in zip(group.rollouts, advantages_G, strict=True):
            samples.append(
                Sample(
                    id=rollout.id,
                    token_ids=rollout.token_ids,
                    mask=rollout.mask,
                    media=rollout.media,
                    logprobs=rollout.logprobs,
                    advantage=advantage,
                )
            )
    return samples
