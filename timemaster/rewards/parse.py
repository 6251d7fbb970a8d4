"""Reading an answer: the contents of its tags, and the label that it chooses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from timemaster.series.labels import label_key

THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", flags=re.DOTALL)
CUT = "\0"  # replaces a thought; it occurs in no tag or label, so the texts around the thought are not joined


def tag_contents(text: str, tag: str) -> list[str]:
    """The texts between each `<tag>` and the next `</tag>`, in order, not stripped.

    Example: tag_contents("<class>A</class> <class> B </class>", "class") == ["A", " B "]
    """
    return re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, flags=re.DOTALL)


def predict_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that `text` chooses, spelled as in `labels`; None when it chooses none or more than one.

    The reasoning is removed first: `<think>…</think>`, or everything from `<think>` on when it is not closed. A label
    that occurs only there is not an answer. The rest must contain exactly one `<class>` and one `</class>`, with one of
    the labels between them; `label_key` compares labels.
    """
    outside = THOUGHT.sub(CUT, text)
    if outside.count("<class>") != 1 or outside.count("</class>") != 1:
        return None
    spelling = {label_key(label): label for label in labels}
    answers = tag_contents(outside, "class")
    return spelling.get(label_key(answers[0])) if answers else None
