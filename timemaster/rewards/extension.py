"""The soft reward: the run's judge (judge.*) grades the text in `<extension>`: advice in addition to the decision.

RewardPart("accuracy", 0.9, accuracy(LABELS)),
RewardPart("format", 0.1, format_tags(TAGS)),
RewardPart("extension", 0.5, extension(), only_if=("accuracy", "format")),
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from timemaster.judge import Rubric, the_judge
from timemaster.rewards.parse import tag_contents
from timemaster.types import Example, Rollout

ADVICE = Rubric(
    "what a specialist adds to a diagnosis made from a plot: an explanation of the case and advice on what to do next",
    {
        "specificity": "speaks of this very case and its signs, not of such cases in general",
        "appropriateness": "is right and safe to act on, given the decision",
        "relevance": "follows from the reasoning and serves the person who asked",
        "depth": "gives reasons and consequences beyond the decision itself",
    },
)
GENERIC = re.compile(
    r"""\b(?:
        further\s+(?:diagnostic\s+)?test(?:s|ing)?
        | clinical\s+histor(?:y|ies)
        | physical(?:\s+exam(?:s|inations?)?|ly\s+examin(?:e[sd]?|ing))
        | refer(?:s|red|ring|rals?)?\s+(?:(?:(?:of\s+)?(?:the|this|your)\s+(?:patient|person)|him|her|them)\s+)?
            to\s+(?:(?:an?|the)\s+)?specialists?
        | confirm(?:s|ed|ing|ation\s+of)?\s+(?:(?:an?|the)\s+)?diagnos[ei]s
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
GENERIC_CAP = 0.4
TAGS = ("think", "class", "extension")  # the blocks of an answer, in this order
JUDGED = {"reasoning": "think", "decision": "class", "extension": "extension"}  # the judge's name of a block -> its tag


def extension(
    *, rubric: Rubric = ADVICE, generic: re.Pattern[str] = GENERIC
) -> Callable[[Rollout, Example], Awaitable[Mapping[str, Any]]]:
    """The judge's score of the text in `<extension>`, 0 to 1; 0.0 for an answer that lacks one of the three blocks.

    The paper asks the judge only about answers with the right class and format: `only_if=("accuracy", "format")`.
    Advice that matches `generic` scores at most 0.4. An unknown judgement is {"score": None, "reason": …}.
    Source: the soft reward of the TimeMaster paper (arXiv 2506.13705), with its four criteria.
    """
    fn = partial(_extension, rubric=rubric, generic=generic)
    fn.asks_judge = True  # type: ignore[attr-defined]  # see RewardPart
    return fn


async def _extension(rollout: Rollout, example: Example, rubric: Rubric, generic: re.Pattern[str]) -> Mapping[str, Any]:
    blocks = {name: tag_contents(rollout.text, tag) for name, tag in JUDGED.items()}
    if not all(blocks.values()):
        return {"score": 0.0}
    answer = {name: contents[0].strip() for name, contents in blocks.items()}
    judgement = await the_judge().grade(rubric, example, answer)
    if judgement.score is None:
        return {"score": None, "reason": judgement.reason}
    is_generic = generic.search(answer["extension"]) is not None
    return {"score": min(judgement.score, GENERIC_CAP) if is_generic else judgement.score}
