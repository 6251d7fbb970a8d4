"""The rooms of the library from top to bottom, in one list. The house test, README.md and docs/layout.md use it.

A room imports only rooms that stand below it.
"""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import fill

ROOMS: tuple[tuple[str, str], ...] = (
    ("__main__.py", "the command `timemaster` and its subcommands"),
    ("grpo.py  sft.py  evaluate.py", "the jobs: each loop on one screen"),
    ("cli.py", "command line to typed settings; the only file that imports hydra"),
    ("results/", "predictions, comparison, baselines, pictures, summary; report/ is the page of a run"),
    ("run/", "a run's folder, log, signals, rows and prompts, estimate of memory"),
    ("workers/", "the driver's handle, trainer ranks, engine ranks, their placement; the only room that imports ray"),
    ("rollout/", "engines (vllm, hf), the turn loop around them, weights on their way"),
    ("backends/", "one FSDP2 rank: policy, update, checkpoint"),
    ("tasks/", "what a dataset is; making its data, traces, audit"),
    ("environments/", "what answers the policy's turns midway: the protocol, tools"),
    ("rewards/", "reading answers, parts of a reward, scoring"),
    ("judge/", "OpenAI-compatible models: endpoint, budget, cache, grading"),
    ("metrics/", "what predictions are worth"),
    ("tokens/", "messages to tokens, samples to batches and micro-batches"),
    ("models/", "all that knows a model class; the embedded tiny model"),
    ("data/", "parquet in and out, the dialects of other tools, the order of rows"),
    ("series/", "time-series files, recordings, plots, series as numbers"),
    ("media/", "pictures: decoding, sizes"),
    ("config/", "every setting with its meaning; which values are allowed"),
    ("algo/", "advantages, losses, learning rate: pure functions, each with its settings"),
    ("fields/", "a setting as a dataclass field: default, meaning, rule"),
    ("system/", "locks, signals, console, memory of processes"),
    ("types.py", "the records that cross process boundaries, and errors"),
)


def room_of(path: str) -> int:
    """The place of a file or module in `ROOMS`, 0 at the top. Example: room_of("data/rows.py") == room_of("data.store")"""
    first = path.replace(".py", "").replace(".", "/").split("/")[0]
    for place, (names, _) in enumerate(ROOMS):
        if first in [name.removesuffix(".py").rstrip("/") for name in names.split()]:
            return place
    raise AssertionError(f"{path} is in none of the rooms of tests/rooms.py")


def tree() -> str:
    """The tree of docs/layout.md: a line for each room."""
    return "".join(f"timemaster/{names}".ljust(42) + f"{what}\n" for names, what in ROOMS)


def line() -> str:
    """The rooms of README.md: their names alone, from top to bottom."""
    return fill(" > ".join(names.replace("  ", ", ") for names, _ in ROOMS), width=100, break_long_words=False) + "\n"


PAGES = (("docs/layout.md", "tree", tree), ("README.md", "rooms", line))  # file, mark, what stands below the mark


def block(mark: str, text: str) -> str:
    """What a page holds. Example: block("tree", tree())"""
    return f"<!-- {mark} -->\n```\n{text}```"


if __name__ == "__main__":  # python -m tests.rooms writes the pages anew
    for name, mark, text_of in PAGES:
        page = Path(__file__).resolve().parents[1] / name
        text = page.read_text(encoding="utf-8")
        new = re.sub(rf"<!-- {mark} -->\n```\n.*?```", lambda _: block(mark, text_of()), text, flags=re.DOTALL)  # noqa: B023
        page.write_text(new, encoding="utf-8")
