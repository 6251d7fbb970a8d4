"""The numeric modality and mixtures: what the model is shown, and which rows a step takes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import picture
from timemaster.config import Config, NumericConfig
from timemaster.data.numeric import as_numbers, write_series
from timemaster.data.series import Series
from timemaster.data.store import plot_row, read_examples, write_rows
from timemaster.data.stream import Mixture, make_stream
from timemaster.inputs import in_numbers
from timemaster.tasks import load_tasks
from timemaster.types import InputError

PLAIN = NumericConfig(decimals=1, separator=",", channel="{name}: {values}", channel_separator="\n")


def test_a_single_channel_is_bare_and_several_are_named() -> None:
    assert write_series([[0.12, -0.04, -1.25, 3.0]], (), PLAIN) == "0.1,0.0,-1.2,3.0"
    assert write_series([[1.0], [2.0]], (), PLAIN) == "dim_0: 1.0\ndim_1: 2.0"
    wide = NumericConfig(decimals=0, separator=" ", channel="<{name}>{values}", channel_separator=";")
    assert write_series([[1.4, 2.0], [-0.4, 3.0]], ("x", "y"), wide) == "<x>1 2;<y>0 3"
    with pytest.raises(InputError, match="2 channels, its task names 1: x"):
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
    (without,), _ = read_examples([str(tmp_path / "one.parquet")])
    with pytest.raises(InputError, match="needs the raw series"):
        as_numbers(without, (), PLAIN)


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
