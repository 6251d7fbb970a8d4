"""Reads and writes parquet files of examples. Written files can be read by verl, EasyR1 and TimeMaster.

Columns: `data_source, prompt, images, videos, ability, reward_model, extra_info` as in verl, `problem` and `answer` as
in EasyR1, and `data` with the raw series. Images are PNG bytes inside the file, without a path, so that no file name
reveals the answer. `rows` reads the formats of other tools.
"""

from __future__ import annotations

import logging
import os
import stat
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from timemaster.config.registries import ON_BAD_ROW
from timemaster.data.rows import ANSWERS, IMAGES, PROMPTS, VIDEOS, example_from_row
from timemaster.series.splits import Series
from timemaster.system.files import replacing
from timemaster.types import Example, InputError

logger = logging.getLogger(__name__)

ROWS_PER_GROUP = 256  # rows in each row group that `write_rows` writes
# Limits for reading: few rows at once, because an Arrow list of images cannot exceed 2 GiB; and few bytes at once,
# because otherwise a whole row group would be held in memory.
ROWS_AT_ONCE, BYTES_AT_ONCE = 32, 1 << 20
NUM_LISTED = 5  # bad rows named in a message
COLUMNS_READ = (*PROMPTS, *ANSWERS, *IMAGES, *VIDEOS, "data_source", "extra_info")

TURNS = pa.list_(pa.struct({"content": pa.string(), "role": pa.string()}))
PICTURES = pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
REWARD_MODEL = pa.struct({"ground_truth": pa.string(), "style": pa.string()})
EXTRA_INFO = pa.struct({"answer": pa.string(), "index": pa.int64(), "question": pa.string(), "split": pa.string()})


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. Example: BadRow("data/train.parquet", 17, "corrupt image (80 bytes): …")"""

    file: str
    row: int  # from 0
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"


def plot_row(
    series: Series, png: bytes, question: str, data_source: str, split: str, demonstration: str = ""
) -> dict[str, Any]:
    """Return the parquet row that asks `question` about the plot `png`.

    A `demonstration` is added as an assistant turn.
    """
    turns = [{"role": "user", "content": question}]
    if demonstration:
        turns.append({"role": "assistant", "content": demonstration})
    return {
        "data_source": data_source,
        "prompt": turns,
        "images": [{"bytes": png, "path": None}],
        "videos": None,  # not []: some versions of verl pass an empty list to the processor, which fails
        "ability": "time series",
        "reward_model": {"ground_truth": series.label, "style": "rule"},
        "extra_info": {"answer": series.label, "index": series.index, "question": question, "split": split},
        "problem": question,
        "answer": series.label,
        "data": series.values[0] if len(series.values) == 1 else series.values,
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` (of `plot_row`) to a parquet file. If writing fails, the file does not change."""
    if not rows:
        raise InputError(f"{path}: no rows to write.")
    values = pa.list_(pa.float64())
    schema = pa.schema(
        {
            "data_source": pa.string(),
            "prompt": TURNS,
            "images": PICTURES,
            "videos": pa.list_(pa.string()),
            "ability": pa.string(),
            "reward_model": REWARD_MODEL,
            "extra_info": EXTRA_INFO,
            "problem": pa.string(),
            "answer": pa.string(),
            "data": pa.list_(values) if isinstance(rows[0]["data"][0], list) else values,
        }
    )
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(rows), ROWS_PER_GROUP):
            writer.write_table(pa.Table.from_pylist(list(rows[start : start + ROWS_PER_GROUP]), schema=schema))


def read_examples(
    files: Sequence[str], on_bad_row: str = "raise", default_source: str = "", with_series: bool = False
) -> tuple[list[Example], list[BadRow]]:
    """Return all examples of parquet `files`, and the rows that could not be used.

    An example's id is "<file name>:<row>", with folders before the name if two files have the same name. Its `extra`
    is the row's extra_info with `file` and `row` added. `with_series` also adds the column `data` as `series`, which is
    not checked here: see `numeric.series_of`. `default_source` is the data_source of files without that column.

    Raises InputError for a file that is missing, unreadable or empty or that lacks a column. A row that cannot be used
    raises InputError if `on_bad_row` is "raise"; if it is "skip", the row is logged and returned.
    """
    if on_bad_row not in ON_BAD_ROW:
        raise InputError(f"on_bad_row is {on_bad_row!r}; allowed: {', '.join(ON_BAD_ROW)}.")
    examples: list[Example] = []
    bad: list[BadRow] = []
    for file, name in zip(files, _unique_names(files), strict=True):
        for number, row in enumerate(_rows(file, with_series)):
            try:
                example = example_from_row(row, f"{name}:{number}", Path(file).parent, default_source)
            except InputError as error:
                bad.append(BadRow(file, number, str(error)))
            else:
                series = {"series": row.get("data")} if with_series else {}
                examples.append(replace(example, extra={**example.extra, "file": file, "row": number, **series}))
    report_bad_rows(bad, len(examples) + len(bad), on_bad_row)
    return examples, bad


def report_bad_rows(
    bad: Sequence[BadRow], num_rows: int, on_bad_row: str, option: str = "data.on_bad_row=skip"
) -> None:
    """Report rows that cannot be used: raise InputError (`on_bad_row` is "raise", or no row is left) or log a warning.

    The message lists the first of `bad`. `option` is the setting by which a user can skip them.
    """
    if not bad:
        return
    listed = "".join(f"\n  {row}" for row in bad[:NUM_LISTED])
    rest = f"\n  and {len(bad) - NUM_LISTED} more" if len(bad) > NUM_LISTED else ""
    message = f"{len(bad)} of {num_rows} rows cannot be used:{listed}{rest}"
    if len(bad) == num_rows:
        raise InputError(f"{message}\nNo row is left: correct the file.")
    if on_bad_row == "raise":
        raise InputError(f"{message}\nCorrect them, or leave them out with {option}.")
    logger.warning("%s\nThey are left out.", message)


def bad_row(example: Example, reason: str) -> BadRow:
    """Return the row that `example` was read from, as a BadRow with this reason."""
    name, _, number = example.id.rpartition(":")
    return BadRow(str(example.extra.get("file", name)), int(example.extra.get("row", number)), reason)


def count_rows(files: Sequence[str]) -> int:
    """Count the rows of all `files`, usable or not. Reads only the footers; raises InputError like `read_examples`."""
    return sum(_open(file).metadata.num_rows for file in files)


def _rows(file: str, with_series: bool) -> Iterator[dict[str, Any]]:
    parquet = _open(file)
    wanted = (*COLUMNS_READ, "data") if with_series else COLUMNS_READ
    columns = [name for name in wanted if name in parquet.schema_arrow.names]
    for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=columns):
        yield from batch.to_pylist()


def open_parquet(file: str | Path) -> pq.ParquetFile:
    """Open a parquet file so that `iter_batches(ROWS_AT_ONCE)` needs little memory.

    Raises InputError if it is missing or not a readable parquet file.
    """
    try:
        if not stat.S_ISREG(os.stat(file).st_mode):
            kind = "folder" if os.path.isdir(file) else "device or pipe"
            raise InputError(
                f"Data file {str(file)!r} is a {kind}. Name parquet files; several are a list: [a.parquet,b.parquet]."
            )
        return pq.ParquetFile(file, buffer_size=BYTES_AT_ONCE, pre_buffer=False)
    except FileNotFoundError as error:
        several = " Several files are a list: [a.parquet,b.parquet]." if "," in str(file) else ""
        raise InputError(
            f"Data file {str(file)!r} does not exist (looked from {Path.cwd()}). Make it with a script of "
            f"example/data_preprocess/, or correct it.{several}"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"Data file {str(file)!r} is not a readable parquet file: {error}") from error


def take_rows(file: str | Path, numbers: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Return the rows of a parquet file with the given `numbers`: at least one, counted from 0, in ascending order."""
    parts, start = [], 0
    for batch in open_parquet(file).iter_batches(ROWS_AT_ONCE, columns=list(columns)):
        in_batch = numbers[bisect_left(numbers, start) : bisect_left(numbers, start + len(batch))]
        if in_batch:
            parts.append(batch.take(pa.array([number - start for number in in_batch])))
        start += len(batch)
    return pa.Table.from_batches(parts)


def _open(file: str) -> pq.ParquetFile:
    parquet = open_parquet(file)
    if parquet.metadata.num_rows == 0:
        raise InputError(f"Data file {file!r} has no rows. Prepare the data again.")
    columns = parquet.schema_arrow.names
    for what, names in (("prompt", PROMPTS), ("answer", ANSWERS)):
        if not set(names) & set(columns):
            raise InputError(f"Data file {file!r} has no {what} column (one of {', '.join(names)}); it has {columns}.")
    return parquet


def _unique_names(files: Sequence[str]) -> list[str]:
    """Return the shortest path endings that differ from each other: file names, with parent folders where needed."""
    paths = [Path(file).resolve().parts for file in files]
    repeated = [file for file, count in Counter(paths).items() if count > 1]
    if repeated:
        raise InputError(f"Data file {str(Path(*repeated[0]))!r} is given twice.")
    length = 1
    while len({path[-length:] for path in paths}) < len(paths):
        length += 1
    return ["/".join(path[-length:]) for path in paths]
