"""From the scores of a group to the advantage of each rollout. Pure functions on lists of floats.

Axes: G = rollouts of one prompt.

To add an advantage: write a function like `grpo`, add a line to `ADVANTAGES`, and a field to `AlgorithmConfig` for each
coefficient that it reads. `--help`, the checks and the training loop follow from these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from timemaster.fields import one_of, setting
from timemaster.types import Group, Sample

EPS = 1e-6


def grpo(scores_G: list[float], cfg: AlgorithmConfig) -> list[float]:
    """(score - mean) / (std + 1e-6), std with Bessel's correction; score - mean if norm_adv_by_std_in_grpo is false.

    A group whose scores are all equal gets exactly 0.0. It is recognised by max == min: the mean of equal floats may
    differ from them in the last bit, and the division would enlarge that. Source: DeepSeekMath
    (https://arxiv.org/abs/2402.03300), section 4.1; without the division: Dr.GRPO (https://arxiv.org/abs/2503.20783).
    """
    if max(scores_G) == min(scores_G):
        return [0.0] * len(scores_G)
    mean = fmean(scores_G)
    if not cfg.norm_adv_by_std_in_grpo:
        return [score - mean for score in scores_G]
    std = (sum((score - mean) ** 2 for score in scores_G) / (len(scores_G) - 1)) ** 0.5
    return [(score - mean) / (std + EPS) for score in scores_G]


def without_unknown(known: list[bool]) -> list[bool]:
    """Train on the rollouts whose score is known."""
    return known


def complete_only(known: list[bool]) -> list[bool]:
    """Train on all rollouts of a group if all their scores are known, else on none of them."""
    return [all(known)] * len(known)


ADVANTAGES: dict[str, Callable[[list[float], AlgorithmConfig], list[float]]] = {"grpo": grpo}
ON_UNKNOWN: dict[str, Callable[[list[bool]], list[bool]]] = {"rollout": without_unknown, "group": complete_only}


@dataclass(kw_only=True, slots=True)
class AlgorithmConfig:
    """How rewards become advantages."""

    adv_estimator: str = setting("grpo", "advantage of each answer from the scores of its group", one_of(ADVANTAGES))
    norm_adv_by_std_in_grpo: bool = setting(True, "divide by the standard deviation; false centres only (Dr.GRPO)")


def group_advantages(group: Group, cfg: AlgorithmConfig, on_unknown: str) -> list[float | None]:
    """The advantage of each rollout of a group, None for a rollout that is not trained on.

    A rollout whose environment failed is not trained on, and does not count in its group. A rollout with a part that a
    judge could not score is not trained on, either: `on_unknown` says whether this excludes the rollout alone
    ("rollout") or its whole group ("group"). Mean and standard deviation are those of the rollouts that are trained on.
    """
    finished = [i for i, rollout in enumerate(group.rollouts) if not rollout.failure]
    known = [(score := group.rollouts[i].score) is not None and not score.unknown for i in finished]
    used = [i for i, is_used in zip(finished, ON_UNKNOWN[on_unknown](known), strict=True) if is_used]
    advantages_G: list[float | None] = [None] * len(group.rollouts)
    scores = [score.total for i in used if (score := group.rollouts[i].score)]
    for i, advantage in zip(used, ADVANTAGES[cfg.adv_estimator](scores, cfg) if used else [], strict=True):
        advantages_G[i] = advantage
    return advantages_G


def to_samples(group: Group, advantages_G: Sequence[float | None]) -> list[Sample]:
    """The rollouts that have an advantage as training samples, in order, each with the engine's log-probs."""
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
