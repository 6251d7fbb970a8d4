"""The rewards that recipes combine. Each takes a rollout and its example and returns 0.0 or 1.0.

`format_strict` is a reward itself. The other functions make rewards, from labels or tags:
`RewardPart("accuracy", 0.9, accuracy(LABELS))`. The rewards that they return can be pickled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

from timemaster.rewards.parse import predict_label
from timemaster.series.labels import label_key
from timemaster.types import Example, Rollout

TAGS = ("think", "class")


def format_strict(rollout: Rollout, example: Example) -> float:
    """1.0 when the text is one think block, then one class block, neither of them empty, and whitespace otherwise.

    The class block may contain any word: `accuracy` tells whether it is the right one.
    Source: the format reward of the TimeMaster paper (arXiv 2506.13705).
    """
    return _has_blocks(rollout, example, TAGS)


def format_tags(tags: Sequence[str]) -> Callable[[Rollout, Example], float]:
    """`format_strict` with other blocks, in this order. Example: format_tags(("think", "class", "extension"))"""
    return partial(_has_blocks, tags=tuple(tags))


def format_lenient(labels: Sequence[str]) -> Callable[[Rollout, Example], float]:
    """1.0 when one of `labels` stands in class tags anywhere. Source: the released code of the TimeMaster paper."""
    return partial(_has_label, labels=tuple(labels))


def accuracy(labels: Sequence[str]) -> Callable[[Rollout, Example], float]:
    """1.0 when the text chooses the example's answer (see `predict_label`); 0.0 for another label or none."""
    return partial(_is_right, labels=tuple(labels))


def _has_blocks(rollout: Rollout, example: Example, tags: tuple[str, ...]) -> float:
    blocks = r"\s*".join(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>" for tag in tags)
    match = re.fullmatch(rf"\s*{blocks}\s*", rollout.text, flags=re.DOTALL)
    if match is None:
        return 0.0
    # A lazy group also matches across further tags when nothing else matches: then it contains a second block.
    any_tag = rf"</?(?:{'|'.join(map(re.escape, tags))})>"
    return float(all(block.strip() and not re.search(any_tag, block) for block in match.groups()))


def _has_label(rollout: Rollout, example: Example, labels: tuple[str, ...]) -> float:
    choices = "|".join(re.escape(label_key(label)) for label in labels)
    return float(re.search(rf"<class>\s*(?:{choices})\s*</class>", label_key(rollout.text)) is not None)


def _is_right(rollout: Rollout, example: Example, labels: tuple[str, ...]) -> float:
    label = predict_label(rollout.text, labels)
    return float(label is not None and label_key(label) == label_key(example.answer))
