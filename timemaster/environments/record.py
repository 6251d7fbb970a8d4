"""What environments did, as a step's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from timemaster.types import Group

# Names of metrics that are not an environment's own numbers.
RESERVED = ("errors", "failures", "turns_mean")


def environment_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Metrics of the rollouts that have an environment; empty when none has.

    environment/<name>       mean of a number, over the rollouts that report it
    environment/errors       replies that report a mistake of the model
    environment/failures     rollouts that a failure of the infrastructure ended
    environment/turns_mean   sampled turns per rollout
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts if rollout.has_environment]
    if not rollouts:
        return {}
    turns = [turn for rollout in rollouts for turn in rollout.turns]
    metrics = {
        "environment/errors": float(sum(bool(turn.error) for turn in turns)),
        "environment/failures": float(sum(bool(rollout.failure) for rollout in rollouts)),
        "environment/turns_mean": sum(turn.kind == "sampled" for turn in turns) / len(rollouts),
    }
    for name in sorted({name for rollout in rollouts for name in rollout.numbers}):
        metrics[f"environment/{name}"] = fmean(r.numbers[name] for r in rollouts if name in r.numbers)
    return metrics
