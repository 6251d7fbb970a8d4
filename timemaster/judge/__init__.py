"""Models as judges: calls to an OpenAI-compatible endpoint, and grading by rubric. Only this package imports openai."""

from timemaster.judge.chat import BudgetSpent, Chat, ChatRefused, ChatReply, Endpoint
from timemaster.judge.grading import Judge, Judgement, Rubric, read_verdict, set_judge, the_judge
from timemaster.judge.options import add_chat_options, chats_from, settings_of
from timemaster.judge.store import Budget, Store
from timemaster.judge.turns import chat_turn, encoded, image_part

__all__ = [
    "Budget",
    "BudgetSpent",
    "Chat",
    "ChatRefused",
    "ChatReply",
    "Endpoint",
    "Judge",
    "Judgement",
    "Rubric",
    "Store",
    "add_chat_options",
    "chat_turn",
    "chats_from",
    "encoded",
    "image_part",
    "read_verdict",
    "set_judge",
    "settings_of",
    "the_judge",
]
