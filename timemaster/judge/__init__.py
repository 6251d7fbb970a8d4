"""Models as judges: asking an OpenAI-compatible endpoint, and grading by rubric. The door to the openai package."""

from timemaster.judge.chat import (
    Budget,
    BudgetSpent,
    Chat,
    ChatRefused,
    Endpoint,
    Reply,
    Store,
    chat_turn,
    encoded,
    image_part,
)
from timemaster.judge.grading import Judge, Judgement, Rubric, read_verdict, set_judge, the_judge

__all__ = [
    "Budget",
    "BudgetSpent",
    "Chat",
    "ChatRefused",
    "Endpoint",
    "Judge",
    "Judgement",
    "Reply",
    "Rubric",
    "Store",
    "chat_turn",
    "encoded",
    "image_part",
    "read_verdict",
    "set_judge",
    "the_judge",
]
