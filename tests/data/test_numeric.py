"""The numeric modality and mixtures: what the model is shown, and which rows a step takes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import picture
from timemaster.config import Config, NumericConfig
from timemaster.data.store import plot_row, read_examples, write_rows
from timemaster.data.stream import Mixture, make_stream
from timemaster.results.baselines import classify
from timemaster.results.modalities import token_costs
from timemaster.run.inputs import in_numbers, load_prompts, read_rows
from timemaster.series.numeric import as_numbers, write_series
from timemaster.series.splits import Series
from timemaster.tasks import load_task, load_tasks
from timemaster.tasks.audit import audit
from timemaster.tasks.traces import ask_explainer
from timemaster.types import Example, InputError, Prompt

DOUBLES = pa.list_(pa.float64())
CHANNELS = pa.list_(DOUBLES)
GOOD: dict[pa.DataType, list[Any]] = {DOUBLES: [[1.0, 2.0]] * 2, CHANNELS: [[[1.0, 2.0], [3.0, 4.0]]] * 2}
PLAIN = NumericConfig(decimals=1, separator=",", channel="{name}: {values}", channel_separator="\n")


def test_a_single_channel_is_bare_and_several_are_named() -> None:
    assert write_series([[0.12, -0.04, -1.25, 3.0]], (), PLAIN) == "0.1,0.0,-1.2,3.0"
    assert write_series([[1.0], [2.0]], (), PLAIN) == "dim_0: 1.0\ndim_1: 2.0"
    wide = NumericConfig(decimals=0, separator=" ", channel="<{name}>{values}", channel_separator=";")
    assert write_series([[1.4, 2.0], [-0.4, 3.0]], ("x", "y"), wide) == "<x>1 2;<y>0 3"
    with pytest.raises(InputError, match="2 channels, but its task has names for 1: x"):
        write_series([[1.0], [2.0]], ("x",), PLAIN)


@pytest.mark.parametrize("values", [[[0.5, -1.0]], [[0.5, -1.0], [2.0, 3.0]]])
def test_the_series_of_a_row_takes_the_place_of_its_plot(tmp_path: Path, values: list[list[float]]) -> None:
    png = picture(1).data
    assert png is not None
    rows = [plot_row(Series(values, "Laptop", 0), png, "Look: <image> Which?", "ctu", "train")]
    write_rows(tmp_path / "one.parquet", rows)
    (example,), _ = read_examples([str(tmp_path / "one.parquet")], with_series=True)
    parts = as_numbers(example, (), PLAIN).messages[0].parts
    numbers = "0.5,-1.0" if len(values) == 1 else "dim_0: 0.5,-1.0\ndim_1: 2.0,3.0"
    assert "".join(part.text for part in parts) == f"Look: {numbers} Which?"
    assert as_numbers(example, (), PLAIN).extra["series"] == values
    (without,), _ = read_examples([str(tmp_path / "one.parquet")])
    with pytest.raises(InputError, match=r"the raw series .* is needed"):
        as_numbers(without, (), PLAIN)


ODD_SERIES = {
    "a gap": (DOUBLES, [0.0, None], "channel 0 of the raw series, reading 1, is missing; expected a finite number"),
    "nan": (DOUBLES, [math.nan, 1.0], "reading 0, is nan"),
    "infinity": (DOUBLES, [0.0, -math.inf], "reading 1, is -inf"),
    "too large to write": (DOUBLES, [0.0, 1e300], r"a reading is 1e\+300, which cannot be written with 2 decimals"),
    "no series": (DOUBLES, None, "the row has none"),
    "an empty series": (DOUBLES, [], r"channel 0 of the raw series is \[\]"),
    "a missing channel": (CHANNELS, [[1.0, 2.0], None], "channel 1 of the raw series is None"),
    "the first channel missing": (CHANNELS, [None, [1.0, 2.0]], "channel 0 of the raw series is None"),
    "an empty channel": (CHANNELS, [[1.0, 2.0], []], r"channel 1 of the raw series is \[\]"),
    "ragged channels": (CHANNELS, [[1.0, 2.0], [1.0]], r"have \[2, 1\] readings; all must have the same number"),
    "a gap in a channel": (CHANNELS, [[1.0, 2.0], [1.0, None]], "channel 1 of the raw series, reading 1, is missing"),
    "nested too deep": (pa.list_(CHANNELS), [[[1.0, 2.0]]], r"channel 0 .* reading 0, is \[1.0, 2.0\]"),
    "a bare number": (pa.float64(), 1.5, "the raw series is 1.5; expected a list of numbers"),
    "a text": (pa.string(), "[1.0, 2.0]", r"the raw series is '\[1.0, 2.0\]'; expected a list of numbers"),
    "texts": (pa.list_(pa.string()), ["1.0", "2.0"], "reading 0, is '1.0'; expected a finite number"),
    "truths": (pa.list_(pa.bool_()), [True, False], "reading 0, is True"),
}


@pytest.mark.parametrize("name", ODD_SERIES)
def test_odd_series_are_bad_rows_with_their_reasons(name: str, tmp_path: Path) -> None:
    kind, data, reason = ODD_SERIES[name]
    file = write_data(tmp_path, kind, [data, *GOOD.get(kind, [data])])
    cfg = Config()
    cfg.data.modality, cfg.data.recipes = "numeric", ["recipes.ctu"]
    with pytest.raises(InputError, match=rf"1.parquet, row 0: .*{reason}"):
        read_rows(cfg, [file], tmp_path, lambda example: example, scored=False)
    cfg.data.on_bad_row = "skip"
    if kind not in GOOD:
        with pytest.raises(InputError, match="No row is left"):
            read_rows(cfg, [file], tmp_path, lambda example: example, scored=False)
        return
    rows = read_rows(cfg, [file], tmp_path, lambda example: example, scored=False)
    assert [example.id for example, _ in rows] == ["1.parquet:1", "1.parquet:2"]
    (skipped,) = [
        json.loads(line) for line in (tmp_path / "skipped_rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert (skipped["file"], skipped["row"]) == (file, 0)
    assert re.search(reason, skipped["reason"])


def write_data(folder: Path, kind: pa.DataType, column: list[Any]) -> str:
    """A parquet file of CTU's rows with this column `data`: a desktop, and desktops and laptops in turn."""
    image = [{"bytes": picture(1).data, "path": None}]
    answers = ["Desktop", *("Desktop", "Laptop") * len(column)][: len(column)]
    columns = {"problem": ["<image>Which?"] * len(column), "images": [image] * len(column), "answer": answers}
    table = pa.table(columns | {"data": pa.array(column, kind)})
    pq.write_table(table, folder / "1.parquet")
    return str(folder / "1.parquet")


def test_numbers_of_any_type_are_written(tmp_path: Path) -> None:
    cfg = Config()
    cfg.data.modality, cfg.data.recipes = "numeric", ["recipes.ctu"]
    for kind in (pa.int64(), pa.float32(), pa.float16(), pa.decimal128(5, 2)):
        file = write_data(tmp_path, pa.list_(kind), [[kind_of(kind, 1), kind_of(kind, 2)]])
        ((example, _),) = read_rows(cfg, [file], tmp_path, lambda example: example, scored=False)
        assert example.messages[0].parts[0].text == "1.00,2.00"


def kind_of(kind: pa.DataType, value: int) -> Any:
    import numpy as np

    return np.float16(value) if kind == pa.float16() else Decimal(value) if pa.types.is_decimal(kind) else value


def test_rows_left_out_must_leave_some_of_every_class(tmp_path: Path) -> None:
    cfg = Config()
    cfg.data.modality, cfg.data.recipes, cfg.data.on_bad_row = "numeric", ["recipes.ctu"], "skip"
    file = write_data(tmp_path, DOUBLES, [[1.0], [1.0], [None], [1.0], [math.nan]])  # both laptops are bad
    with pytest.raises(InputError, match="All 2 rows of class 'Laptop' of computer_dataset cannot be used"):
        read_rows(cfg, [file], tmp_path, lambda example: example, scored=False)


class LongLaptops:
    """A renderer whose prompts of laptops are long."""

    def prompt(self, example: Example) -> Prompt:
        return Prompt(id=example.id, token_ids=[0] * (9 if example.answer == "Laptop" else 3), media=[])


def test_rows_that_are_too_long_must_leave_some_of_every_class(tmp_path: Path) -> None:
    cfg = Config()
    cfg.data.recipes, cfg.data.max_prompt_length = ["recipes.ctu"], 5
    file = write_data(tmp_path, DOUBLES, [[1.0]] * 4)
    with pytest.raises(InputError, match=r"All 1 rows of class 'Laptop' .* too long: raise data.max_prompt_length"):
        load_prompts(cfg, [file], LongLaptops(), tmp_path)  # type: ignore[arg-type]


def test_the_other_readers_of_series_say_which_row_is_odd(tmp_path: Path) -> None:
    file = Path(write_data(tmp_path, CHANNELS, [[[1.0, 2.0], None], *GOOD[CHANNELS]]))
    examples, _ = read_examples([str(file)], default_source="computer_dataset", with_series=True)
    with pytest.raises(InputError, match=r"1.parquet:0: channel 1 of the raw series is None.* leave out --baselines"):
        classify("1nn_euclid", examples, examples)
    with pytest.raises(InputError, match=r"1.parquet:0: channel 1 of the raw series is None"):
        token_costs(str(file), PLAIN, 784)
    found = asyncio.run(ask_explainer(load_task("recipes.ctu"), examples))
    assert [(row["id"], row["reason"][:9]) for row in found.rejected] == [("1.parquet:0", "channel 1")]
    report = audit([file])
    assert any("1 series have missing values: 1.parquet row 0" in line for line in report.serious)


def test_decimals_are_the_tasks_unless_the_run_says_others(tmp_path: Path) -> None:
    png = picture(1).data
    assert png is not None
    cfg, tasks = Config(), load_tasks(["recipes.emg", "recipes.ctu"])

    def shown(source: str) -> str:
        row = plot_row(Series([[0.0012, -0.03]], "A", 0), png, "<image>Which?", source, "train")
        write_rows(tmp_path / "one.parquet", [row])
        (example,), _ = read_examples([str(tmp_path / "one.parquet")], with_series=True)
        return "".join(part.text for part in in_numbers(cfg, example, tasks).messages[0].parts).removesuffix("Which?")

    assert [shown(source) for source in ("emg_dataset", "computer_dataset", "of no task")] == [
        "0.0012,-0.0300", "0.00,-0.03", "0.00,-0.03",
    ]  # fmt: skip
    cfg.data.numeric.decimals = 1
    assert shown("emg_dataset") == "0.0,0.0"
    with pytest.raises(InputError, match="decimals is -1"):
        dataclasses.replace(tasks["emg_dataset"], decimals=-1)


SOURCES = ["a"] * 30 + ["b"] * 10 + ["c"] * 7


def test_every_batch_has_the_shares_and_no_row_twice() -> None:
    order = make_stream(SOURCES, 8, seed=1, shuffle=True, weights={"a": 1, "b": 2, "c": 1})
    assert isinstance(order, Mixture)
    seen: Counter[int] = Counter()
    for step in range(20):
        batch = order.batch(step)
        assert Counter(SOURCES[i] for i in batch) == {"a": 2, "b": 4, "c": 2}
        assert len(set(batch)) == 8
        seen.update(batch)
    assert {SOURCES[i] for i in seen} == {"a", "b", "c"}
    rows_of_b = [seen[i] for i in range(30, 40)]
    assert max(rows_of_b) - min(rows_of_b) <= 1  # 80 draws of 10 rows
    again = make_stream(SOURCES, 8, seed=1, shuffle=True, weights={"a": 1, "b": 2, "c": 1})
    assert again.batch(13) == order.batch(13)


def test_shares_are_rounded_to_whole_rows() -> None:
    order = make_stream(SOURCES, 10, seed=1, shuffle=True, weights={"a": 1, "b": 1, "c": 1})
    assert isinstance(order, Mixture)
    assert sorted(order.counts.values()) == [3, 3, 4]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1, "b": 1}, r"rows are of \['a', 'b', 'c'\]"),
        ({"a": 1, "b": 1, "c": 1, "d": 1}, "Give each of these a weight"),
        ({"a": 1, "b": 1, "c": 0}, "greater than 0"),
        ({"a": 100, "b": 1, "c": 1}, "each needs one"),
    ],
)
def test_weights_that_cannot_be_followed_are_refused(weights: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_stream(SOURCES, 8, seed=1, shuffle=True, weights=weights)


def test_a_share_of_more_rows_than_a_source_has_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"'c' gets 8 of the data.train_batch_size=10 rows, but has only 7"):
        make_stream(SOURCES, 10, seed=1, shuffle=True, weights={"a": 1, "b": 1, "c": 8})
