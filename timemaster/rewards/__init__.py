"""Rewards: plain functions of one rollout and its example.

    def short(rollout: Rollout, example: Example) -> float:
        return 1.0 if len(rollout.text) < 500 else 0.0

    RewardPart("short", 0.1, short)

Knows nothing about tokens, engines or datasets. `scoring` also takes functions written for verl.
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
