"""Any OpenAI-compatible vision model asked a dataset's own question, zero-shot or after a few examples.

Few-shot prompts are built as VL-Time does (https://github.com/AdityaLab/DeepTime): the examples are turns of the same
conversation, a plot with the question and an answer with nothing but the class. Answers are read like the policy's.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from timemaster.judge import Chat, ChatReply, chat_turn
from timemaster.metrics.answers import Answer
from timemaster.tasks import Task
from timemaster.types import Example, InputError


def choose_shots(examples: Sequence[Example], classes: Sequence[str], per_class: int, seed: int) -> list[Example]:
    """`per_class` examples of every class, drawn and shuffled by `seed`. InputError when a class has too few."""
    rng = random.Random(seed)
    chosen = []
    for name in classes:
        rows = [example for example in examples if example.answer == name]
        if len(rows) < per_class:
            raise InputError(f"--few-shot {per_class}: the class {name} has {len(rows)} rows to choose from; ask less.")
        chosen += rng.sample(rows, per_class)
    rng.shuffle(chosen)  # otherwise the last class would always be nearest to the question
    return chosen


def shot_turns(task: Task, shots: Sequence[Example]) -> list[dict[str, Any]]:
    """Each of `shots` as the dataset asks it, with its answer."""
    turns = []
    for shot in shots:
        turns += [chat_turn(message) for message in shot.messages]
        turns.append({"role": "assistant", "content": task.evaluation.demonstrated(shot.answer)})
    return turns


def ask_model(chat: Chat, task: Task, examples: Sequence[Example], shots: Sequence[Example], name: str) -> list[Answer]:
    """The measured answers to `examples`; as many calls at a time as the chat allows. `name` is for messages.

    Replies are kept in the chat's cache: the same call asks again only what failed. Raises ChatRefused (BudgetSpent is
    one), and InputError when calls failed for good: otherwise their rows would count as wrong answers.
    """
    replies = asyncio.run(_ask_all(chat, examples, shot_turns(task, shots), name))
    failed = [reply.error for reply in replies if reply.error]
    if failed:
        raise InputError(
            f"{name}: {len(failed)} of {len(replies)} calls failed for good (the first: {failed[0]}), so the "
            f"answers are incomplete. The others are kept in {chat.store.path}: start again to ask only the rest."
        )
    return [
        task.evaluation.outside_answer(example, reply.text, task.evaluation.read(reply.text))
        for example, reply in zip(examples, replies, strict=True)
    ]


async def _ask_all(
    chat: Chat, examples: Sequence[Example], before: Sequence[dict[str, Any]], name: str
) -> list[ChatReply]:
    """The replies in order, with a progress bar. When a call raises, calls in flight are awaited: they cost money."""
    waiting = deque(enumerate(examples))
    replies: dict[int, ChatReply] = {}

    async def work() -> None:
        while waiting:
            number, example = waiting.popleft()
            try:
                replies[number] = await chat.ask([*before, *(chat_turn(message) for message in example.messages)])
            finally:
                if number not in replies:
                    waiting.clear()  # no further calls
            bar.update(1)

    with tqdm(total=len(examples), desc=name, unit="row", leave=False, disable=None) as bar:
        ended = await asyncio.gather(*(work() for _ in range(chat.concurrency)), return_exceptions=True)
    for error in ended:
        if error is not None:
            raise error
    return [replies[number] for number in range(len(examples))]
