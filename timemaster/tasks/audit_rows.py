"""What an audit keeps of each row of a parquet file: digests, lengths, sizes and texts, but not the data."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timemaster.config import DataConfig
from timemaster.data.rows import ANSWERS, PROMPTS, example_from_row
from timemaster.data.store import ROWS_AT_ONCE, open_parquet
from timemaster.models.vision import default_vision_spec, num_tokens
from timemaster.types import Example, InputError

PER_CLASS = 4  # plots per class in the contact sheet
NOT_LEAKS = {*ANSWERS, *PROMPTS, "data", "label", "data_source"}  # columns and fields that may hold a label
WORD_ENDS = r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])"  # sampleWinter, Winter17, 17Winter
Shown = dict[str, list[tuple[str, bytes]]]  # class -> digest and encoded picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, as far as the audit needs it."""

    where: str  # "train.parquet row 17"
    file: str
    split: str
    identity: tuple[Any, ...]  # of the prepared row: the same in train.parquet and sft.parquet
    is_demonstration: bool  # ends with an assistant's turn
    label: str
    source: str
    question: str  # what was asked, in lower case
    texts: tuple[tuple[str, str], ...]  # (where, text) of paths, names and other fields
    series: str = ""  # digest of the values; "" without any
    halves: tuple[str, ...] = ()  # digests of the first and the second half of the values
    lengths: tuple[int, ...] = ()  # of each channel
    has_gaps: bool = False
    is_constant: bool = False  # all channels
    has_constant: bool = False  # at least one channel
    images: tuple[tuple[str, int, int, int], ...] = ()  # digest, width, height, vision tokens


def read_rows(file: Path, shown: Shown, bad: list[str]) -> Iterator[Row]:
    """The rows of a parquet file. Adds pictures for the contact sheet to `shown`, and reasons of bad rows to `bad`."""
    number = 0
    for batch in open_parquet(file).iter_batches(ROWS_AT_ONCE):
        for content in batch.to_pylist():
            where = f"{file.name} row {number}"
            try:
                example = example_from_row(content, where, file.parent)
            except InputError as error:
                bad.append(f"{where}: {error}")
            else:
                yield _row(file, number, content, example, shown)
            number += 1


def _row(file: Path, number: int, content: Mapping[str, Any], example: Example, shown: Shown) -> Row:
    spec = default_vision_spec(DataConfig().min_pixels, DataConfig().max_pixels)
    media = [part.media for message in example.messages for part in message.parts if part.media]
    pictures = [item for item in media if item.kind == "image"]
    label = unicodedata.normalize("NFC", example.answer)
    if pictures:  # keep those with the smallest digests: a random choice that is the same every time
        candidates = [*shown[label], (pictures[0].uid, pictures[0].data or Path(pictures[0].path).read_bytes())]
        shown[label] = sorted(candidates)[:PER_CLASS]
    is_demonstration = example.messages[-1].role == "assistant"
    named_split = example.extra.get("split")  # missing in imported demonstrations
    split = str(named_split or ("train" if is_demonstration else file.stem))
    questions = [part.text for m in example.messages if m.role != "assistant" for part in m.parts if part.text]
    index = example.extra.get("index")
    return Row(
        where=example.id,
        file=str(file.resolve()),
        split=split,
        identity=(example.data_source, split, index) if named_split and index is not None else (file, number),
        is_demonstration=is_demonstration,
        label=label,
        source=example.data_source,
        question=plain("\n".join(questions)),
        texts=(("file name", f"{file.parent.name}/{file.name}"), *_texts(content, "")),
        images=tuple((item.uid, item.width, item.height, num_tokens(item, spec)) for item in pictures),
        **_series_facts(content.get("data")),
    )


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Every text in a nested value, with its place."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in NOT_LEAKS:
                yield from _texts(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, name)


def _series_facts(data: Any) -> dict[str, Any]:
    if not isinstance(data, list) or not data:
        return {}
    channels = data if any(isinstance(item, list) for item in data) else [data]
    readings = [value for channel in channels for value in (channel or [""])]
    if not all(value is None or isinstance(value, (int, float)) for value in readings):
        return {"has_gaps": True}  # a channel is missing, empty, or holds something else than numbers
    values = [[math.nan if v is None else float(v) for v in channel] for channel in channels]
    half = len(values[0]) // 2
    constant = [len(set(channel)) <= 1 for channel in values]
    is_constant = all(constant)
    halves = [[channel[part] for channel in values] for part in (slice(half), slice(-half, None))]
    return {
        "series": _digest(values),
        "halves": () if is_constant or not half else tuple(_digest(part) for part in halves),
        "lengths": tuple(len(channel) for channel in values),
        "has_gaps": not all(math.isfinite(v) for channel in values for v in channel),
        "is_constant": is_constant,
        "has_constant": any(constant),
    }


def _digest(values: list[list[float]]) -> str:
    return hashlib.sha256(b"|".join(array("d", channel).tobytes() for channel in values)).hexdigest()


def plain(text: str) -> str:
    """The text in lower case with single spaces between words. Example: "CG_Positive17.png" is "cg positive 17 png"."""
    return re.sub(rf"[\W_]+|{WORD_ENDS}", " ", unicodedata.normalize("NFC", text)).casefold()
