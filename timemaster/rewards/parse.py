"""Reading an answer: what stands inside the tags, and which label was chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence

from timemaster.series.labels import label_key

THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", flags=re.DOTALL)
CUT = "\0"  # where a thought stood: no part of a tag or a label, so what stood around it never joins


def tag_contents(text: str, tag: str) -> list[str]:
    """Everything that stands between `<tag>` and the next `</tag>`, in order, not stripped.

    Example: tag_contents("<class>A</class> <class> B </class>", "class") == ["A", " B "]
    """
    return re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, flags=re.DOTALL)


def predict_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that `text` chooses, spelled as in `labels`; None when it chooses none or more than one.

    The reasoning (`<think>…</think>`, or to the end where it is not closed) is cut out first, so a label weighed there
    is not an answer, and what stands on both sides of it is not read as one word. What is left must hold exactly one
    `<class>` and one `</class>`, with one of the labels between them, as `label_key` compares them.
    """
    outside = THOUGHT.sub(CUT, text)
    if outside.count("<class>") != 1 or outside.count("</class>") != 1:
        return None
    spelling = {label_key(label): label for label in labels}
    answers = tag_contents(outside, "class")
    return spelling.get(label_key(answers[0])) if answers else None
