"""Any OpenAI-compatible vision model as a classifier: a dataset's own question, zero-shot or after a few examples.

Few-shot is VL-Time's way (https://github.com/AdityaLab/DeepTime): the examples are turns of the same conversation, a
plot with the question and an answer with nothing but the label. Answers are read like a policy's own.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from timemaster.judge import Chat, ChatReply, chat_turn
from timemaster.results.predictions import prediction_row
from timemaster.tasks import Task, predict
from timemaster.types import Example, InputError


def choose_shots(examples: Sequence[Example], labels: Sequence[str], per_class: int, seed: int) -> list[Example]:
    """`per_class` examples of every label, drawn and mixed by `seed`. InputError where a class has too few."""
    rng = random.Random(seed)
    chosen = []
    for label in labels:
        own = [example for example in examples if example.answer == label]
        if len(own) < per_class:
            raise InputError(f"--few-shot {per_class}: the class {label} has {len(own)} rows to choose from; ask less.")
        chosen += rng.sample(own, per_class)
    rng.shuffle(chosen)  # in the order of the labels, the last class would be the nearest
    return chosen


def shot_turns(shots: Sequence[Example]) -> list[dict[str, Any]]:
    """Each of `shots` as the dataset asks it, answered with its label."""
    turns = []
    for shot in shots:
        turns += [chat_turn(message) for message in shot.messages]
        turns.append({"role": "assistant", "content": f"<class>{shot.answer}</class>"})
    return turns


def ask_model(
    chat: Chat, task: Task, examples: Sequence[Example], shots: Sequence[Example], label: str
) -> list[dict[str, Any]]:
    """The lines of predictions.jsonl for `examples`, asked as many at a time as the chat allows.

    Replies are kept in the chat's cache: the same call asks again only for what failed. Raises ChatRefused, of which
    BudgetSpent is one, and InputError when calls failed for good: their rows would be measured as wrong answers.
    """
    replies = asyncio.run(_ask_all(chat, examples, shot_turns(shots), label))
    failed = [reply.error for reply in replies if reply.error]
    if failed:
        raise InputError(
            f"{label}: {len(failed)} of {len(replies)} calls failed for good (the first: {failed[0]}), which measures "
            f"nothing. The other replies are kept in {chat.store.path}: start again, and only the rest is asked."
        )
    return [
        prediction_row(example, predict(task, reply.text), reply.text)
        for example, reply in zip(examples, replies, strict=True)
    ]


async def _ask_all(
    chat: Chat, examples: Sequence[Example], before: Sequence[dict[str, Any]], label: str
) -> list[ChatReply]:
    """The replies in order, with a progress bar. When a call raises, those in flight are waited for: they are paid."""
    waiting = deque(enumerate(examples))
    replies: dict[int, ChatReply] = {}

    async def work() -> None:
        while waiting:
            number, example = waiting.popleft()
            try:
                replies[number] = await chat.ask([*before, *(chat_turn(message) for message in example.messages)])
            finally:
                if number not in replies:
                    waiting.clear()  # nothing new is asked
            bar.update(1)

    with tqdm(total=len(examples), desc=label, unit="row", leave=False, disable=None) as bar:
        ended = await asyncio.gather(*(work() for _ in range(chat.concurrency)), return_exceptions=True)
    for error in ended:
        if error is not None:
            raise error
    return [replies[number] for number in range(len(examples))]
