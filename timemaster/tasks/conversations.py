"""Convert conversations in JSON, as tools for fine-tuning LLaVA and Qwen2.5-VL read them, to a parquet file for SFT.

    timemaster conversations FILE.json --out FILE.parquet [--image-folder DIR] [--data-source NAME]

The file holds a list of entries (a .jsonl file: one entry per line), each in one of two forms:

    {"image": "a.png" or ["a.png"], "conversations": [{"from": "human", "value": "<image>Which?"}, {"from": "gpt", …}]}
    {"images": ["a.png", …], "messages": [{"role": "user", "content": "<image>Which?"}, {"role": "assistant", …}]}

A message's content may also be a list of parts: {"type": "text", "text": …}, {"type": "image", "image": "a.png"} and
OpenAI's {"type": "image_url", "image_url": {"url": "data:image/png;base64,…" or "a.png"}}. A field "system" becomes the
first turn. The answer of an entry is the content of <class> in its last turn, or that whole turn if it has no <class>.
Every `<image>` of a user's turn needs an image. The images are stored in the parquet file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from timemaster.config.registries import ON_BAD_ROW
from timemaster.data.rows import is_empty, read_messages
from timemaster.data.store import (
    EXTRA_INFO,
    PICTURES,
    REWARD_MODEL,
    ROWS_AT_ONCE,
    TURNS,
    BadRow,
    open_parquet,
    report_bad_rows,
    take_rows,
)
from timemaster.judge import encoded
from timemaster.rewards.parse import CUT, THOUGHT, tag_contents
from timemaster.system.console import print_any_letter
from timemaster.types import Example, InputError

logger = logging.getLogger(__name__)

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
ROLES |= {"tool": "tool", "observation": "tool"}
IMAGES_ONLY = "it has a video, and only images can be read"
SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": TURNS,
        "images": PICTURES,
        "ability": pa.string(),
        "reward_model": REWARD_MODEL,
        "extra_info": EXTRA_INFO,
        "answer": pa.string(),
    }
)


def turns_of(example: Example) -> list[dict[str, str]]:
    """The turns of an example as a parquet file holds them, with `<image>` and `<video>` in place of media."""
    return [
        {"role": m.role, "content": "".join(p.text if p.kind == "text" else f"<{p.kind}>" for p in m.parts)}
        for m in example.messages
    ]


def pictures_of(example: Example) -> list[dict[str, Any]]:
    """The images of an example as a parquet file holds them: encoded bytes, no path."""
    media = [part.media for m in example.messages for part in m.parts if part.media and part.media.kind == "image"]
    return [{"bytes": encoded(item), "path": None} for item in media]


def write_demonstrations(file: str, out: Path, texts: Sequence[tuple[Example, str]]) -> None:
    """Write rows of the parquet file `file` to `out`, each with its text as the assistant's turn."""
    texts = sorted(texts, key=lambda pair: pair[0].extra["row"])
    names = [name for name in open_parquet(file).schema_arrow.names if name not in ("prompt", "images", "image")]
    others = take_rows(file, [example.extra["row"] for example, _ in texts], names)
    schema = pa.schema({"prompt": TURNS, "images": PICTURES} | {field.name: field.type for field in others.schema})
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            for start in range(0, len(texts), ROWS_AT_ONCE):
                batch = texts[start : start + ROWS_AT_ONCE]
                turns = [[*turns_of(example), {"role": "assistant", "content": text}] for example, text in batch]
                columns: dict[str, Any] = {
                    "prompt": pa.array(turns, TURNS),
                    "images": pa.array([pictures_of(example) for example, _ in batch], PICTURES),
                }
                columns_kept = others.slice(start, len(batch))
                columns |= {name: columns_kept.column(name) for name in names}
                writer.write_table(pa.table(columns, schema=schema))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def import_conversations(
    file: Path, out: Path, folder: Path, data_source: str = "", answer_tag: str = "class", on_bad_row: str = "raise"
) -> tuple[int, list[BadRow]]:
    """Write the entries of `file` to the parquet file `out`. Returns the number of rows and the bad entries.

    Image paths are relative to `folder`. Raises InputError when the file cannot be read or is `out`, when no entry is
    good, and with on_bad_row="raise" when an entry is bad; "skip" leaves bad entries out.
    """
    if on_bad_row not in ON_BAD_ROW:
        raise InputError(f"on_bad_row is {on_bad_row!r}; allowed: {', '.join(ON_BAD_ROW)}.")
    if out.resolve() == file.resolve():
        raise InputError(f"--out {out} is the file that is read, which would be overwritten: give another name.")
    entries = read_entries(file)
    bad: list[BadRow] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with pq.ParquetWriter(temporary, SCHEMA) as writer:
            rows: list[dict[str, Any]] = []
            for number, entry in enumerate(entries):
                try:
                    rows.append(entry_row(entry, number, folder, data_source, answer_tag))
                except InputError as error:
                    bad.append(BadRow(str(file), number, str(error)))
                if len(rows) == ROWS_AT_ONCE:
                    writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
                    rows = []
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
        report_bad_rows(bad, len(entries), on_bad_row, option="--on-bad-row skip")
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return len(entries) - len(bad), bad


def read_entries(file: Path) -> list[Any]:
    """The entries of a JSON list or of a .jsonl file. Raises InputError when there are none."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}). Give a JSON file of conversations.") from error
    try:
        if file.suffix == ".jsonl":
            # Not splitlines(): it also cuts at U+2028 and U+0085, which may occur inside a string.
            entries = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error}). One entry a line is read from files named .jsonl.") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file}: a list of conversations is needed, with one or more; it holds {entries!r:.80}.")
    return entries


def entry_row(entry: Any, number: int, folder: Path, data_source: str, answer_tag: str) -> dict[str, Any]:
    """The parquet row of one entry. Raises InputError with the reason when the entry is bad."""
    if not isinstance(entry, Mapping):
        raise InputError(f"it is {entry!r:.60}; a dict with conversations or messages is needed")
    if _filled(entry, "videos", "video"):
        raise InputError(IMAGES_ONLY)
    listed = _filled(entry, "images", "image")
    images = listed if isinstance(listed, list) else [] if listed is None else [listed]
    messages = read_messages(_turns(entry), images, [], folder)
    if any(part.kind == "video" for message in messages for part in message.parts):
        raise InputError(IMAGES_ONLY)
    example = Example(id=str(number), messages=messages, answer="", data_source=data_source)
    turns = turns_of(example)
    if any("\ud800" <= letter <= "\udfff" for turn in turns for letter in turn["content"]):
        raise InputError("its text holds half a surrogate pair (\\ud800 to \\udfff alone)")
    if turns[-1]["role"] != "assistant":
        raise InputError(f"the last turn is the {turns[-1]['role']}'s; a demonstration ends with the assistant's")
    answer = _answer(turns[-1]["content"], answer_tag)
    question = next(turn["content"] for turn in turns if turn["role"] != "system")
    return {
        "data_source": data_source,
        "prompt": turns,
        "images": pictures_of(example),
        "ability": "time series",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"answer": answer, "index": number, "question": question, "split": None},  # split: not known
        "answer": answer,
    }


def _filled(fields: Mapping[str, Any], *names: str) -> Any:
    """The first of these fields that is not empty; None if all are."""
    return next((fields[name] for name in names if not is_empty(fields.get(name))), None)


def _turns(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns of an entry in OpenAI's form."""
    listed = _filled(entry, "conversations", "messages")
    if not isinstance(listed, list):
        raise InputError(f"neither conversations nor messages holds a list of turns (its keys: {', '.join(entry)})")
    turns = []
    if isinstance(entry.get("system"), str) and entry["system"]:
        turns.append({"role": "system", "content": entry["system"]})
    for i, turn in enumerate(listed):
        role = _filled(turn, "from", "role") if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or role not in ROLES:
            known = ", ".join(ROLES)
            raise InputError(f"turn {i} is {turn!r:.60}; a dict is needed whose from or role is one of {known}")
        content = turn.get("value") if turn.get("value") is not None else turn.get("content")
        if not isinstance(content, (str, list)):
            raise InputError(f"the content of turn {i} is {content!r:.60}; text or a list of parts is needed")
        turns.append({"role": ROLES[role], "content": content})
    return turns


def _answer(text: str, tag: str) -> str:
    """The content of the last `<tag>` outside of the reasoning; the whole text when there is none."""
    tagged = tag_contents(THOUGHT.sub(CUT, text), tag)
    answer = (tagged[-1] if tagged else text).strip()
    if not answer:
        raise InputError(f"the last turn's {f'<{tag}>' if tagged else 'text'} is empty; an answer is needed")
    return answer


def main(arguments: Sequence[str] | None = None) -> None:
    print_any_letter()
    parser = argparse.ArgumentParser(
        prog="timemaster conversations", description="Conversations in JSON to a parquet file for SFT."
    )
    parser.add_argument("file", type=Path, help="JSON list of conversations, or .jsonl with one per line")
    parser.add_argument("--out", type=Path, required=True, help="the parquet file to write")
    parser.add_argument("--image-folder", type=Path, help="folder of relative image paths (default: that of the file)")
    parser.add_argument("--data-source", default="", help="task of the rows (default: the only task of the run)")
    parser.add_argument("--answer-tag", default="class", help="tag that holds the answer (default: class)")
    parser.add_argument("--on-bad-row", default="raise", choices=ON_BAD_ROW, help="default: raise")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    folder = options.image_folder or options.file.parent
    try:
        num_rows, _ = import_conversations(
            options.file, options.out, folder, options.data_source, options.answer_tag, options.on_bad_row
        )
    except (InputError, OSError) as error:
        parser.exit(1, f"{error}\n")
    logger.info("%s: %d rows", options.out, num_rows)


if __name__ == "__main__":
    main()
