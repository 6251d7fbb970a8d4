"""Rewards: plain functions of a rollout and its example, combined into a score by weights.

    def short(rollout: Rollout, example: Example) -> float:
        return 1.0 if len(rollout.text) < 500 else 0.0

    RewardPart("accuracy", 0.9, accuracy(LABELS)),
    RewardPart("short", 0.1, short, only_if="accuracy"),

`reward_part` lists all forms that a function may have, including verl's. Knows nothing about engines or datasets.
"""

from timemaster.rewards.extension import extension
from timemaster.rewards.load import load_function
from timemaster.rewards.parse import predict_label, tag_contents
from timemaster.rewards.parts import accuracy, format_lenient, format_strict, format_tags
from timemaster.rewards.reward_part import RewardFn, RewardPart, as_reward, check_parts
from timemaster.rewards.scoring import Scorer, score

__all__ = [
    "RewardFn",
    "RewardPart",
    "Scorer",
    "accuracy",
    "as_reward",
    "check_parts",
    "extension",
    "format_lenient",
    "format_strict",
    "format_tags",
    "load_function",
    "predict_label",
    "score",
    "tag_contents",
]
