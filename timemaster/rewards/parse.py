"""Reading an answer: what stands inside the tags, and which label was chosen."""

from __future__ import annotations

import re
from collections.abc import Sequence


def tag_contents(text: str, tag: str) -> list[str]:
    """Everything that stands between `<tag>` and the next `</tag>`, in order, not stripped.

    Example: tag_contents("<class>A</class> <class> B </class>", "class") == ["A", " B "]
    """
    return re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, flags=re.DOTALL)


def predict_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that `text` chooses, spelled as in `labels`; None when it chooses none or more than one.

    The reasoning (`<think>…</think>`) is dropped first, so a label weighed there is not an answer. What is left must
    hold exactly one `<class>…</class>` whose content is one of the labels (case and outer spaces do not matter).
    """
    outside = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    answers = tag_contents(outside, "class")
    if len(answers) != 1:
        return None
    spelling = {label.casefold(): label for label in labels}
    return spelling.get(answers[0].strip().casefold())
