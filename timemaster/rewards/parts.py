"""The reward parts that recipes combine. Each takes a rollout and its example and gives 0.0 or 1.0.

`format_strict` is a reward itself; `accuracy` and `format_lenient` need the labels, `format_tags` the tags, and are
made by a factory: `RewardPart("accuracy", 0.9, accuracy(LABELS))`. What a factory returns can be pickled.
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
    """1.0 when the text is one think block, then one class block, both with content, and nothing else but whitespace.

    Source: the format reward of the TimeMaster paper (arXiv 2506.13705). Any word in the class block will do: whether
    it is the right one is `accuracy`'s business.
    """
    return _has_blocks(rollout, example, TAGS)


def format_tags(tags: Sequence[str]) -> Callable[[Rollout, Example], float]:
    """`format_strict` with other blocks: format_tags(("think", "class", "extension")) asks for these, in this order."""
    return partial(_has_blocks, tags=tuple(tags))


def format_lenient(labels: Sequence[str]) -> Callable[[Rollout, Example], float]:
    """The rule of TimeMaster's released code: one of `labels` in class tags anywhere; think is not asked."""
    return partial(_has_label, labels=tuple(labels))


def accuracy(labels: Sequence[str]) -> Callable[[Rollout, Example], float]:
    """1.0 when the label that the text chooses (`predict_label`) is the example's answer; no readable choice is 0.0."""
    return partial(_is_right, labels=tuple(labels))


def _has_blocks(rollout: Rollout, example: Example, tags: tuple[str, ...]) -> float:
    blocks = r"\s*".join(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>" for tag in tags)
    match = re.fullmatch(rf"\s*{blocks}\s*", rollout.text, flags=re.DOTALL)
    if match is None:
        return 0.0
    # The lazy groups stretch over further tags when that is the only way to match: a second block ends up inside.
    any_tag = rf"</?(?:{'|'.join(map(re.escape, tags))})>"
    return float(all(block.strip() and not re.search(any_tag, block) for block in match.groups()))


def _has_label(rollout: Rollout, example: Example, labels: tuple[str, ...]) -> float:
    choices = "|".join(re.escape(label_key(label)) for label in labels)
    return float(re.search(rf"<class>\s*(?:{choices})\s*</class>", label_key(rollout.text)) is not None)


def _is_right(rollout: Rollout, example: Example, labels: tuple[str, ...]) -> float:
    label = predict_label(rollout.text, labels)
    return float(label is not None and label_key(label) == label_key(example.answer))
