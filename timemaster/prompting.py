"""Any OpenAI-compatible vision model as a classifier: a dataset's own question, zero-shot or after a few examples.

Few-shot is VL-Time's way (https://github.com/AdityaLab/DeepTime): the examples are turns of the same conversation, a
plot with the question and an answer with nothing but the label. Answers are read like a policy's own.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from timemaster.judge import Chat, Reply, chat_turn
from timemaster.predictions import prediction_row
from timemaster.tasks import Task, predict
from timemaster.types import Example, InputError

log = logging.getLogger(__name__)

NUM_PREPARED = 256  # requests that exist at once, pictures included; the chat sends fewer at a time


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
    """The lines of predictions.jsonl for `examples`. A call that failed for good counts as an answer not read.

    Replies are kept in the chat's cache: the same call asks again only for what failed. Raises BudgetSpent.
    """
    replies = asyncio.run(_ask_all(chat, examples, shot_turns(shots), label))
    failed = [reply.error for reply in replies if reply.error]
    if failed:
        log.warning(
            "%s: %d of %d calls failed and count as unparsed (%s, …); start again to ask again for these",
            label, len(failed), len(replies), failed[0],
        )  # fmt: skip
    return [
        prediction_row(example, predict(task, reply.text), reply.text, reply.error)
        for example, reply in zip(examples, replies, strict=True)
    ]


async def _ask_all(
    chat: Chat, examples: Sequence[Example], before: Sequence[dict[str, Any]], label: str
) -> list[Reply]:
    """The replies in order, with a progress bar. The first call that raises ends the others."""
    prepared = asyncio.Semaphore(NUM_PREPARED)

    async def ask(example: Example) -> Reply:
        async with prepared:
            reply = await chat.ask([*before, *(chat_turn(message) for message in example.messages)])
        bar.update(1)
        return reply

    with tqdm(total=len(examples), desc=label, unit="row", leave=False, disable=None) as bar:
        tasks = [asyncio.create_task(ask(example)) for example in examples]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
