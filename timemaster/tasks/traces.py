"""Demonstrations for SFT: reasoning about training plots by a vision model, or by the recipe's own explainer.

    timemaster traces recipes.ctu --data data/ctu_image/train.parquet --base-url http://host:8000/v1 \\
        --model NAME [--tries 4] [--per-class N] [--max-calls N] --out data/ctu_image/traces.parquet
    timemaster traces recipes.ctu --data data/ctu_image/train.parquet --explainer --out …

The model is asked the rows' own question about the plot, up to --tries times a row (rejection sampling): an answer is
kept when the task's reward parts `accuracy` and `format` both give it 1. Of every class as many are written as the
smallest has, or --per-class. Rows are taken in turn from all classes, so a budget that ends early ends for all alike.
Replies lie in a cache beside --out: the same command, started again, goes on where it stopped. What was rejected, and
why, goes to <out>.rejected.jsonl.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from tqdm import tqdm

from timemaster.judge import BudgetSpent, Chat, Store, add_chat_options, chat_turn, chats_from, settings_of
from timemaster.rewards import RewardPart, score
from timemaster.series.numeric import series_of
from timemaster.series.splits import Series
from timemaster.system.console import print_any_letter
from timemaster.tasks import SeriesClassification, as_series_classification, demonstration, load_task
from timemaster.tasks.prepare import small_variant
from timemaster.tasks.rows import with_task_answers
from timemaster.types import Example, InputError, Rollout

log = logging.getLogger(__name__)

JUDGED = ("accuracy", "format")  # the reward parts that must be 1
SETTINGS = (
    ("--model", "", "name of the vision model"),
    ("--tries", 4, "answers asked for a row at most"),
    ("--per-class", 0, "rows of each class; 0 is as many as the smallest has"),
    ("--seed", 1, "of the rows' order and of the tries"),
)


@dataclass(slots=True, kw_only=True)
class Traces:
    """What was found so far."""

    kept: dict[str, str] = field(default_factory=dict)  # text by the example's id
    rejected: list[dict[str, Any]] = field(default_factory=list)
    per_class: Counter[str] = field(default_factory=Counter)  # of the kept
    stopped: InputError | None = None  # why not all was asked

    def keep(self, example: Example, text: str) -> None:
        self.kept[example.id] = text
        self.per_class[example.answer] += 1

    def reject(self, example: Example, number: int, text: str, reason: str) -> None:
        row = {"id": example.id, "row": example.extra["row"], "try": number, "answer": example.answer}
        self.rejected.append(row | {"reason": reason, "text": text})


def read_questions(task: SeriesClassification, file: str, on_bad_row: str) -> list[Example]:
    """The rows of `file` as questions, with the raw series in `extra`; a demonstration that ends them is taken off."""
    from timemaster.data.store import read_examples, report_bad_rows

    examples, _ = read_examples([file], on_bad_row, task.data_source, with_series=True)
    others = {e.data_source for e in examples} - {task.data_source}
    if others:
        raise InputError(
            f"{file}: rows of {', '.join(sorted(others))}; {task.name}'s data_source is {task.data_source}."
        )
    found, bad = with_task_answers(examples, {task.data_source: task})
    report_bad_rows(bad, len(examples), on_bad_row)
    return [replace(e, messages=e.messages[:-1]) if e.messages[-1].role == "assistant" else e for e in found]


def in_turn(examples: Sequence[Example], seed: int) -> list[Example]:
    """All examples, one of each class after the other, each class in an order of its own."""
    classes: dict[str, list[Example]] = {}
    for example in examples:
        classes.setdefault(example.answer, []).append(example)
    for members in classes.values():
        random.Random(seed).shuffle(members)
    return [e for e in chain.from_iterable(zip_longest(*classes.values())) if e is not None]


def judged_parts(task: SeriesClassification) -> list[RewardPart]:
    """The reward parts that an answer is kept by. InputError where the task does not have them."""
    parts = [part for part in task.rewards if part.name in JUDGED]
    if len(parts) != len(JUDGED):
        names = ", ".join(part.name for part in task.rewards)
        raise InputError(
            f"Task {task.name}: answers are kept by the reward parts {' and '.join(JUDGED)}; it has {names}."
        )
    return parts


async def fault(parts: Sequence[RewardPart], example: Example, text: str) -> str:
    """What is wrong with an answer; "" when nothing is."""
    nothing: dict[str, Any] = {key: [] for key in ("token_ids", "mask", "logprobs", "versions", "media")}
    rollout = Rollout(id=example.id, text=text, finish_reason="stop", **nothing)
    values = (await asyncio.to_thread(score, rollout, example, parts)).parts
    return ", ".join(
        f"{part.name} is {values.get(part.name, 'unknown')}" for part in parts if values.get(part.name) != 1
    )


async def ask_model(
    chat: Chat, task: SeriesClassification, examples: Sequence[Example], options: argparse.Namespace
) -> Traces:
    """Ask about the examples, in order, `options.concurrency` at a time, until `options.per_class` of each are kept."""
    found, parts = Traces(), judged_parts(task)
    with tqdm(total=len(examples), desc="traces", unit="row", disable=None) as bar:
        waiting = iter(examples)
        await asyncio.gather(*(_work(chat, parts, waiting, found, options, bar) for _ in range(options.concurrency)))
    if found.stopped and not isinstance(found.stopped, BudgetSpent):
        raise found.stopped
    return found


async def _work(
    chat: Chat, parts: Sequence[RewardPart], waiting: Any, found: Traces, options: argparse.Namespace, bar: tqdm[Any]
) -> None:
    """One of several that take the next example each until none is left or one of them must stop."""
    for example in waiting:
        enough = options.per_class and found.per_class[example.answer] >= options.per_class
        try:
            if not enough and not found.stopped:
                await _try_example(chat, parts, example, found, options)
        except InputError as error:
            found.stopped = found.stopped or error
        if found.stopped:
            return
        bar.set_postfix(kept=len(found.kept), rejected=len(found.rejected), refresh=False)
        bar.update(1)


async def _try_example(
    chat: Chat, parts: Sequence[RewardPart], example: Example, found: Traces, options: argparse.Namespace
) -> None:
    messages = [chat_turn(message) for message in example.messages]
    for number in range(1, options.tries + 1):
        # The seed tells the tries apart, for the server and for the cache.
        reply = await chat.ask(messages, seed=options.seed * 1000 + number)
        text = reply.text.strip()
        reason = f"no answer: {reply.error}" if reply.error else await fault(parts, example, text)
        if not reason:
            found.keep(example, text)
            return
        found.reject(example, number, text, reason)


async def ask_explainer(task: SeriesClassification, examples: Sequence[Example]) -> Traces:
    """The demonstrations of the recipe's explainer, held to the same rules."""
    from timemaster.tasks.conversations import turns_of

    found, parts, small = Traces(), judged_parts(task), small_variant(task)
    for number, example in enumerate(examples):
        try:
            values = series_of(example)
        except InputError as error:
            found.reject(example, 1, "", str(error))
            continue
        series = Series(values, example.answer, int(example.extra.get("index") or number))
        is_small = turns_of(example)[-1]["content"] == small.question  # a row of `prepare --plot small`
        text = demonstration(small if is_small else task, series)
        reason = await fault(parts, example, text)
        if reason:
            found.reject(example, 1, text, reason)
        else:
            found.keep(example, text)
    return found


def balance(examples: Sequence[Example], found: Traces, per_class: int) -> list[Example]:
    """The examples to write, in their order: of every class the same number, or `per_class` where there are so many."""
    labels = sorted({example.answer for example in examples})
    if not found.kept or (not per_class and any(not found.per_class[label] for label in labels)):
        counts = ", ".join(f"{label} {found.per_class[label]}" for label in labels)
        reasons = Counter(str(row["reason"]) for row in found.rejected).most_common(1)
        raise InputError(
            f"right answers by class: {counts}; every class needs one. "
            + (f"The commonest fault: {reasons[0][0]}. " if reasons else "")
            + "Raise --tries or the budget, ask another model, or give --per-class to write what there is."
        )
    limit = per_class or min(found.per_class[label] for label in labels)
    taken: Counter[str] = Counter()
    chosen = []
    for example in examples:
        if example.id in found.kept and taken[example.answer] < limit:
            taken[example.answer] += 1
            chosen.append(example)
    return chosen


def make_traces(task: SeriesClassification, options: argparse.Namespace) -> None:
    """Find, balance and write the demonstrations, and say what was done."""
    from timemaster.tasks.conversations import write_demonstrations

    out: Path = options.out
    if out.resolve() == options.data.resolve():
        raise InputError(f"--out {out} is --data, which would be overwritten: give another name.")
    questions = in_turn(read_questions(task, str(options.data), options.on_bad_row), options.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    spending = "no model was asked"
    if options.explainer:
        found = asyncio.run(ask_explainer(task, questions))
    else:
        chat = make_chat(options)
        before, _ = chat.store.spent(chat.account)
        found = asyncio.run(ask_model(chat, task, questions, options))
        calls, cost = chat.store.spent(chat.account)
        spending = f"{calls - before} calls now, {calls} with earlier ones, which cost {cost:.2f}"
    rejected = out.with_suffix(".rejected.jsonl")
    lines = sorted(found.rejected, key=lambda row: (row["row"], row["try"]))
    rejected.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    chosen = balance(questions, found, options.per_class)
    write_demonstrations(str(options.data), out, [(example, found.kept[example.id]) for example in chosen])
    written = Counter(example.answer for example in chosen)
    log.info("asked      %s", spending)
    log.info("rejected   %d answers, listed in %s", len(found.rejected), rejected)
    for reason, count in Counter(row["reason"][:80] for row in found.rejected).most_common(5):
        log.info("  %6d   %s", count, reason)
    log.info("kept       %d rows with a right answer, of %d", len(found.kept), len(questions))
    for label, count in sorted(found.per_class.items()):
        log.info("  %6d   %s, %d written", count, label, written[label])
    log.info("written    %d rows to %s", len(chosen), out)
    if found.stopped:
        log.warning("not all rows were asked: %s", found.stopped)


def make_chat(options: argparse.Namespace) -> Chat:
    """The model to ask, with a cache beside the output."""
    if options.temperature == 0 and options.tries > 1:
        raise InputError("--temperature 0 gives the same answer at every try: raise it, or set --tries 1.")
    store = Store(options.cache or options.out.with_suffix(".sqlite"))
    account = str(options.out.absolute()) if options.cache else "traces"  # a file of its own may be moved
    return chats_from(settings_of(options), store, account)[0]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="timemaster traces", description="Demonstrations for SFT.")
    parser.add_argument("recipe", help="module with TASK, as in recipes.ctu")
    parser.add_argument("--data", type=Path, required=True, help="parquet file with the training plots")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    parser.add_argument("--explainer", action="store_true", help="the recipe's own demonstrations; no model is asked")
    parser.add_argument("--cache", type=Path, help="SQLite file of replies and spending (default: beside --out)")
    parser.add_argument("--on-bad-row", choices=("raise", "skip"), default="raise", help="default: raise")
    for name, default, meaning in SETTINGS:
        parser.add_argument(name, type=type(default), default=default, help=f"{meaning} (default: {default!r})")
    add_chat_options(parser, temperature=1.0)
    options = parser.parse_args(arguments)
    if not options.explainer and not options.model:
        parser.error("give --model NAME (and --base-url), or --explainer")
    if min(options.tries, options.concurrency, options.max_tokens) < 1 or options.per_class < 0:
        parser.error("--tries, --concurrency and --max-tokens start at 1, --per-class at 0")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    print_any_letter()
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)  # a line for each call
    try:
        make_traces(as_series_classification(load_task(options.recipe), "traces"), options)
    except (InputError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; what was answered is kept, start the same command again to go on")


if __name__ == "__main__":
    main()
