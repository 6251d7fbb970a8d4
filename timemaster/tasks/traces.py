"""Demonstrations for SFT: reasoning about training plots by a vision model, or by the recipe's own explainer.

    timemaster traces recipes.ctu --data data/ctu_image/train.parquet --base-url http://host:8000/v1 \\
        --model NAME [--tries 4] [--per-class N] [--max-calls N] --out data/ctu_image/traces.parquet
    timemaster traces recipes.ctu --data data/ctu_image/train.parquet --explainer --out …

The model is asked the row's own question about the plot, up to --tries times (rejection sampling). An answer is kept
when the task's reward parts `accuracy` and `format` both give it 1. The same number of rows is written for every class:
that of the smallest class, or --per-class. Rows are asked in turn from all classes, so that the classes stay balanced
when the budget ends early. Replies are cached beside --out: the same command, started again, continues where it
stopped. Rejected answers and their reasons are written to <out>.rejected.jsonl.
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
    ("--tries", 4, "most answers asked per row"),
    ("--per-class", 0, "rows of each class; 0: as many as the smallest class has"),
    ("--seed", 1, "of the rows' order and of the tries"),
)


@dataclass(slots=True, kw_only=True)
class Traces:
    """The demonstrations so far."""

    kept: dict[str, str] = field(default_factory=dict)  # text by the example's id
    rejected: list[dict[str, Any]] = field(default_factory=list)
    per_class: Counter[str] = field(default_factory=Counter)  # number of kept rows
    stopped: InputError | None = None  # why some rows were not asked

    def keep(self, example: Example, text: str) -> None:
        self.kept[example.id] = text
        self.per_class[example.answer] += 1

    def reject(self, example: Example, number: int, text: str, reason: str) -> None:
        row = {"id": example.id, "row": example.extra["row"], "try": number, "answer": example.answer}
        self.rejected.append(row | {"reason": reason, "text": text})


def read_questions(task: SeriesClassification, file: str, on_bad_row: str) -> list[Example]:
    """The rows of `file` as questions, with the raw series in `extra`. A demonstration at the end is removed."""
    from timemaster.data.store import read_examples, report_bad_rows

    examples, _ = read_examples([file], on_bad_row, task.data_source, with_series=True)
    others = {e.data_source for e in examples} - {task.data_source}
    if others:
        raise InputError(
            f"{file}: rows of {', '.join(sorted(others))}; {task.name}'s data_source is {task.data_source}."
        )
    usable, bad = with_task_answers(examples, {task.data_source: task})
    report_bad_rows(bad, len(examples), on_bad_row)
    return [replace(e, messages=e.messages[:-1]) if e.messages[-1].role == "assistant" else e for e in usable]


def in_turn(examples: Sequence[Example], seed: int) -> list[Example]:
    """All examples, the classes in turn; the order within a class is drawn by `seed`."""
    classes: dict[str, list[Example]] = {}
    for example in examples:
        classes.setdefault(example.answer, []).append(example)
    for members in classes.values():
        random.Random(seed).shuffle(members)
    return [e for e in chain.from_iterable(zip_longest(*classes.values())) if e is not None]


def judged_parts(task: SeriesClassification) -> list[RewardPart]:
    """The reward parts that decide whether an answer is kept. InputError when the task lacks them."""
    parts = [part for part in task.rewards if part.name in JUDGED]
    if len(parts) != len(JUDGED):
        names = ", ".join(part.name for part in task.rewards)
        raise InputError(
            f"Task {task.name}: answers are kept by the reward parts {' and '.join(JUDGED)}; it has {names}."
        )
    return parts


async def fault(parts: Sequence[RewardPart], example: Example, text: str) -> str:
    """What is wrong with an answer; "" when it is right."""
    empty: dict[str, Any] = {key: [] for key in ("token_ids", "mask", "logprobs", "versions", "media")}
    rollout = Rollout(id=example.id, text=text, finish_reason="stop", **empty)
    values = (await asyncio.to_thread(score, rollout, example, parts)).parts
    return ", ".join(
        f"{part.name} is {values.get(part.name, 'unknown')}" for part in parts if values.get(part.name) != 1
    )


async def ask_model(
    chat: Chat, task: SeriesClassification, examples: Sequence[Example], options: argparse.Namespace
) -> Traces:
    """Ask about the examples in order, `options.concurrency` at a time, until each class has `options.per_class`."""
    traces, parts = Traces(), judged_parts(task)
    with tqdm(total=len(examples), desc="traces", unit="row", disable=None) as bar:
        waiting = iter(examples)
        await asyncio.gather(*(_work(chat, parts, waiting, traces, options, bar) for _ in range(options.concurrency)))
    if traces.stopped and not isinstance(traces.stopped, BudgetSpent):
        raise traces.stopped
    return traces


async def _work(
    chat: Chat, parts: Sequence[RewardPart], waiting: Any, traces: Traces, options: argparse.Namespace, bar: tqdm[Any]
) -> None:
    """One of several workers: take the next example until none is left or a worker must stop."""
    for example in waiting:
        enough = options.per_class and traces.per_class[example.answer] >= options.per_class
        try:
            if not enough and not traces.stopped:
                await _try_example(chat, parts, example, traces, options)
        except InputError as error:
            traces.stopped = traces.stopped or error
        if traces.stopped:
            return
        bar.set_postfix(kept=len(traces.kept), rejected=len(traces.rejected), refresh=False)
        bar.update(1)


async def _try_example(
    chat: Chat, parts: Sequence[RewardPart], example: Example, traces: Traces, options: argparse.Namespace
) -> None:
    messages = [chat_turn(message) for message in example.messages]
    for number in range(1, options.tries + 1):
        # The server and the cache distinguish the tries by their seed.
        reply = await chat.ask(messages, seed=options.seed * 1000 + number)
        text = reply.text.strip()
        reason = f"no answer: {reply.error}" if reply.error else await fault(parts, example, text)
        if not reason:
            traces.keep(example, text)
            return
        traces.reject(example, number, text, reason)


async def ask_explainer(task: SeriesClassification, examples: Sequence[Example]) -> Traces:
    """The demonstrations of the recipe's explainer, checked by the same rules."""
    from timemaster.tasks.conversations import turns_of

    traces, parts, small = Traces(), judged_parts(task), small_variant(task)
    for number, example in enumerate(examples):
        try:
            values = series_of(example)
        except InputError as error:
            traces.reject(example, 1, "", str(error))
            continue
        series = Series(values, example.answer, int(example.extra.get("index") or number))
        is_small = turns_of(example)[-1]["content"] == small.question  # a row of `prepare --plot small`
        text = demonstration(small if is_small else task, series)
        reason = await fault(parts, example, text)
        if reason:
            traces.reject(example, 1, text, reason)
        else:
            traces.keep(example, text)
    return traces


def balance(examples: Sequence[Example], traces: Traces, per_class: int) -> list[Example]:
    """The examples to write, in their order: the same number of every class, or up to `per_class`."""
    labels = sorted({example.answer for example in examples})
    if not traces.kept or (not per_class and any(not traces.per_class[label] for label in labels)):
        counts = ", ".join(f"{label} {traces.per_class[label]}" for label in labels)
        reasons = Counter(str(row["reason"]) for row in traces.rejected).most_common(1)
        raise InputError(
            f"right answers by class: {counts}; every class needs one. "
            + (f"The commonest fault: {reasons[0][0]}. " if reasons else "")
            + "Raise --tries or the budget, ask another model, or give --per-class to write what there is."
        )
    limit = per_class or min(traces.per_class[label] for label in labels)
    taken: Counter[str] = Counter()
    chosen = []
    for example in examples:
        if example.id in traces.kept and taken[example.answer] < limit:
            taken[example.answer] += 1
            chosen.append(example)
    return chosen


def make_traces(task: SeriesClassification, options: argparse.Namespace) -> None:
    """Make, balance and write the demonstrations, and print what was done."""
    from timemaster.tasks.conversations import write_demonstrations

    out: Path = options.out
    if out.resolve() == options.data.resolve():
        raise InputError(f"--out {out} is --data, which would be overwritten: give another name.")
    questions = in_turn(read_questions(task, str(options.data), options.on_bad_row), options.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    spending = "no model was asked"
    if options.explainer:
        traces = asyncio.run(ask_explainer(task, questions))
    else:
        chat = make_chat(options)
        before, _ = chat.store.spent(chat.account)
        traces = asyncio.run(ask_model(chat, task, questions, options))
        calls, cost = chat.store.spent(chat.account)
        spending = f"{calls - before} calls now, {calls} with earlier ones, which cost {cost:.2f}"
    rejected = out.with_suffix(".rejected.jsonl")
    lines = sorted(traces.rejected, key=lambda row: (row["row"], row["try"]))
    rejected.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    chosen = balance(questions, traces, options.per_class)
    write_demonstrations(str(options.data), out, [(example, traces.kept[example.id]) for example in chosen])
    written = Counter(example.answer for example in chosen)
    log.info("asked      %s", spending)
    log.info("rejected   %d answers, listed in %s", len(traces.rejected), rejected)
    for reason, count in Counter(row["reason"][:80] for row in traces.rejected).most_common(5):
        log.info("  %6d   %s", count, reason)
    log.info("kept       %d rows with a right answer, of %d", len(traces.kept), len(questions))
    for label, count in sorted(traces.per_class.items()):
        log.info("  %6d   %s, %d written", count, label, written[label])
    log.info("written    %d rows to %s", len(chosen), out)
    if traces.stopped:
        log.warning("not all rows were asked: %s", traces.stopped)


def make_chat(options: argparse.Namespace) -> Chat:
    """The model to ask, with a cache beside the output."""
    if options.temperature == 0 and options.tries > 1:
        raise InputError("--temperature 0 gives the same answer at every try: raise it, or set --tries 1.")
    store = Store(options.cache or options.out.with_suffix(".sqlite"))
    account = str(options.out.absolute()) if options.cache else "traces"  # the default file may be moved with the run
    return chats_from(settings_of(options), store, account)[0]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="timemaster traces", description="Demonstrations for SFT.")
    parser.add_argument("recipe", help="module with TASK, as in recipes.ctu")
    parser.add_argument("--data", type=Path, required=True, help="parquet file with the training plots")
    parser.add_argument("--out", type=Path, required=True, help="parquet file to write")
    parser.add_argument(
        "--explainer", action="store_true", help="demonstrations of the recipe's own explainer; no model is asked"
    )
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
        logging.getLogger(name).setLevel(logging.WARNING)  # they log every call
    try:
        make_traces(as_series_classification(load_task(options.recipe), "traces"), options)
    except (InputError, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the answers so far are kept: start the same command again to continue")


if __name__ == "__main__":
    main()
