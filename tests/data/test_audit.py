"""The audit finds what it promises to find, and nothing in sound data."""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from timemaster.series.sheet import contact_sheet
from timemaster.series.splits import Series
from timemaster.tasks import as_series_classification, load_task
from timemaster.tasks.audit import audit, main
from timemaster.tasks.prepare import prepare

SPLITS = ("train", "validation", "test")


def load(source: Path | None) -> dict[str, list[Series]]:
    rng = random.Random(0)
    return {
        split: [Series([[rng.gauss(0, 1) for _ in range(8)]], ("Winter", "Summer")[i % 2], i) for i in range(size)]
        for split, size in (("train", 20), ("test", 6))
    }


TASK = replace(
    as_series_classification(load_task("recipes.italy_power"), "test"), load=load, explain=lambda series, task: "So."
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return prepare(TASK, None, tmp_path, num_workers=1)


def files(data: Path, *names: str) -> list[Path]:
    return [data / f"{name}.parquet" for name in names or SPLITS]


def change(file: Path, how: Callable[[list[dict[str, Any]]], None]) -> None:
    """Rewrite a parquet file after `how` has changed its rows in place."""
    table = pq.read_table(file)
    rows = table.to_pylist()
    how(rows)
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_sound_data_are_described_and_not_complained_about(data: Path):
    report = audit(files(data, *SPLITS, "sft"))
    text = str(report)
    assert report.serious == report.notes == []
    assert "Summer                        9   50.0 %" in text  # of 18: a tenth of 20 went to validation
    assert "1 channel(s) of 8 readings" in text
    assert "112 x 112 pixels, 16 vision tokens" in text  # (112 / 28)^2
    assert "no findings" in text


def test_the_contact_sheet_has_a_row_for_each_class(data: Path, tmp_path: Path):
    audit(files(data), tmp_path / "sheets")
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == [f"{name}_sheet.png" for name in sorted(SPLITS)]
    sheet = Image.open(tmp_path / "sheets" / "train_sheet.png")
    assert sheet.width == 4 * (112 + 12) + 12  # four plots, gaps of 12 between and beside them
    assert sheet.height == 18 + 24 + 2 * (14 + 24 + 112)


def test_wide_plots_are_made_smaller_and_small_ones_stay():
    def png(width: int, height: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (width, height), "red").save(file, "PNG")
        return file.getvalue()

    sheet = Image.open(io.BytesIO(contact_sheet("t", {"A": [png(720, 230)], "B": [png(50, 20)]})))
    assert sheet.width == 360 + 24  # 720 x 230 becomes 360 x 115
    assert sheet.height == 18 + 24 + (14 + 24 + 115) + (14 + 24 + 20)


def test_a_series_in_two_splits_is_found_by_values_and_by_picture(data: Path):
    stolen: list[dict[str, Any]] = []
    change(data / "train.parquet", lambda rows: stolen.append(rows[0]))

    def put(rows: list[dict[str, Any]]) -> None:
        rows[2]["data"], rows[2]["images"] = stolen[0]["data"], stolen[0]["images"]

    change(data / "test.parquet", put)
    report = audit(files(data))
    assert report.serious == [
        "1 series in two splits or files: train.parquet row 0 = test.parquet row 2",
        "1 pictures in two splits or files: train.parquet row 0 = test.parquet row 2",
    ]
    assert not audit(files(data, "test")).serious  # one file cannot tell


def test_a_file_passed_off_as_another_is_found(data: Path):
    shutil.copyfile(data / "train.parquet", data / "exam.parquet")
    for order in (("train", "exam"), ("sft", "train", "exam"), ("train", "sft", "exam"), ("train", "exam", "sft")):
        report = audit(files(data, *order))
        assert report.serious[0].startswith(
            "18 series in two splits or files: train.parquet row 0 = exam.parquet row 0"
        )
    assert audit([*files(data, "train"), data / ".." / data.name / "train.parquet"]).serious == []  # one file


def test_demonstrations_of_test_rows_are_found_and_those_of_training_rows_are_not(data: Path):
    def learn(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["prompt"].append({"role": "assistant", "content": f"<class>{row['answer']}</class>"})

    shutil.copyfile(data / "train.parquet", data / "traces.parquet")
    change(data / "traces.parquet", learn)
    assert audit(files(data, "train", "sft", "traces")).serious == []
    shutil.copyfile(data / "test.parquet", data / "traces.parquet")
    change(data / "traces.parquet", learn)
    assert "6 series in two splits or files" in audit(files(data, "test", "traces")).serious[0]


def test_imported_demonstrations_count_as_training_rows(data: Path):
    """They do not know their split, as those of `timemaster.tasks.conversations`."""
    shutil.copyfile(data / "sft.parquet", data / "talk.parquet")
    change(data / "talk.parquet", lambda rows: [row["extra_info"].update(split=None) for row in rows] and None)
    report = audit(files(data, "train", "talk"))
    assert report.serious == []
    assert report.notes[0].startswith("18 series twice in a split: train.parquet row 0 = talk.parquet row 0")
    shutil.copyfile(data / "talk.parquet", data / "more.parquet")
    assert "18 series twice in a split" in audit(files(data, "talk", "more")).notes[0]
    shutil.copyfile(data / "test.parquet", data / "talk.parquet")

    def learn(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["extra_info"]["split"] = None
            row["prompt"].append({"role": "assistant", "content": f"<class>{row['answer']}</class>"})

    change(data / "talk.parquet", learn)
    assert "6 series in two splits or files" in audit(files(data, "test", "talk")).serious[0]


def test_duplicates_within_a_split_are_a_note_and_so_are_their_labels(data: Path):
    def copy(rows: list[dict[str, Any]]) -> None:
        rows[1]["data"] = rows[0]["data"]

    change(data / "test.parquet", copy)
    report = audit(files(data))
    where = "test.parquet row 0 = test.parquet row 1"
    assert report.notes == [f"1 series twice in a split: {where}", f"1 series with different labels: {where}"]
    assert not report.serious


def test_overlapping_windows_in_two_splits_are_noted(data: Path):
    ends: list[list[float]] = []
    change(data / "train.parquet", lambda rows: ends.append(rows[3]["data"][4:]))

    def begin(rows: list[dict[str, Any]]) -> None:
        rows[0]["data"] = ends[0] + rows[0]["data"][4:]

    change(data / "validation.parquet", begin)
    assert audit(files(data)).notes == [
        "1 series begin as one of another split ends (windows overlap): validation.parquet row 0 = train.parquet row 3"
    ]


def test_missing_values_are_serious_and_constant_series_a_note(data: Path):
    def spoil(rows: list[dict[str, Any]]) -> None:
        rows[0]["data"] = [float("nan"), *rows[0]["data"][1:]]
        rows[1]["data"] = [1.5] * 8

    change(data / "test.parquet", spoil)
    report = audit(files(data))
    assert report.serious == ["1 series have missing values: test.parquet row 0"]
    assert report.notes == ["1 series are constant: test.parquet row 1"]


def test_a_dead_channel_is_a_note(data: Path):
    def add(rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows):
            row["data"] = [row["data"], [0.0] * 8 if i < 2 else row["data"][::-1]]

    change(data / "test.parquet", add)
    assert audit(files(data, "test")).notes == [
        "2 series have a constant channel: test.parquet row 0, test.parquet row 1"
    ]


def name_image(row: dict[str, Any]) -> None:
    row["images"] = [{"bytes": row["images"][0]["bytes"], "path": f"plots/test_{row['answer'].lower()}_7.png"}]


def tell_in_extra(row: dict[str, Any]) -> None:
    row["extra_info"] |= {"source_file": f"/data/{row['answer']}/7.csv"}


def tell_in_column(row: dict[str, Any]) -> None:
    row["note"] = f"a day in {row['answer']}"


def tell_in_question(row: dict[str, Any]) -> None:
    row["prompt"][0]["content"] += f" Hint: {row['answer']}."


@pytest.mark.parametrize(
    ("leak", "place"),
    [
        (name_image, "images.path"),
        (tell_in_extra, "extra_info.source_file"),
        (tell_in_column, "note"),
        (tell_in_question, "the question"),
    ],
)
def test_a_label_that_leaks_is_found_where_it_stands(data: Path, leak: Callable[[dict[str, Any]], None], place: str):
    change(data / "test.parquet", lambda rows: [leak(row) for row in rows] and None)
    (found,) = audit(files(data)).serious
    assert found.startswith(f"6 rows name their label in {place}: test.parquet row 0")
    assert found.endswith(", and 3 more")


@pytest.mark.parametrize("name", ["Winter17.png", "sampleWinter.png", "17Winter_a.png", "winter.csv"])
def test_a_label_ends_where_a_word_does(data: Path, name: str):
    def tell(rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows):
            row["file"] = f"{i}/" + name.replace("Winter", row["answer"]).replace("winter", row["answer"].lower())

    change(data / "test.parquet", tell)
    assert audit(files(data, "test")).serious[0].startswith("6 rows name their label in file")


@pytest.mark.parametrize(("num_right", "is_leak"), [(10, False), (12, False), (18, True)])  # of 20; by chance 10 +- 2.2
def test_a_place_that_is_right_more_often_than_by_chance_leaks(data: Path, num_right: int, is_leak: bool):
    def tell(rows: list[dict[str, Any]]) -> None:
        rows[:] = [{**rows[i % 2], "extra_info": {"index": i, "split": "test"}} for i in range(20)]
        for i, row in enumerate(rows):
            right = i < num_right
            row["file"] = f"{i} " + (
                row["answer"] if right else {"Winter": "Summer", "Summer": "Winter"}[row["answer"]]
            )

    change(data / "test.parquet", tell)
    assert any("name their label in file" in text for text in audit(files(data, "test")).serious) == is_leak


def test_a_label_inside_a_longer_one_hides_no_leak(data: Path):
    def rename(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["answer"] = {"Winter": "walking", "Summer": "walking_upstairs"}[row["answer"]]
            row["reward_model"]["ground_truth"] = row["answer"]
            row["prompt"][0]["content"] = "<image>walking or walking_upstairs? It is " + row["answer"]

    change(data / "test.parquet", rename)
    assert "6 rows name their label in the question" in audit(files(data, "test")).serious[0]


def test_labels_that_are_numbers_may_stand_anywhere(data: Path):
    def renumber(rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows):
            row["answer"] = row["reward_model"]["ground_truth"] = str(i % 2)
            row["file"] = f"recording_{i // 2 % 2}.csv"

    change(data / "test.parquet", renumber)
    assert audit(files(data, "test")).serious == []


def test_a_number_that_is_right_once_is_no_leak(data: Path):
    def number(rows: list[dict[str, Any]]) -> None:
        for i, row in enumerate(rows):
            row["answer"] = row["reward_model"]["ground_truth"] = str(i % 2)
            row["file"] = f"rec{i}.csv"  # rec0 is of class 0 and rec1 of class 1

    change(data / "test.parquet", number)
    report = audit(files(data, "test"))
    assert report.serious == report.notes == []


def test_a_word_that_is_right_once_is_a_note(data: Path):
    change(
        data / "test.parquet",
        lambda rows: [row.update(note=row["answer"] if i == 0 else "") for i, row in enumerate(rows)] and None,
    )
    report = audit(files(data, "test"))
    assert report.serious == []
    assert report.notes[0].startswith("1 rows name their label in note: test.parquet row 0")


def test_rows_that_cannot_be_read_are_serious(data: Path):
    def spoil(rows: list[dict[str, Any]]) -> None:
        rows[0]["images"] = []

    change(data / "test.parquet", spoil)
    (found,) = audit(files(data)).serious
    assert found.startswith("1 rows cannot be used: test.parquet row 0: 1 <image> markers in the prompt, 0 images")


def test_the_command_prints_a_report_and_tells_by_its_exit_code(data: Path, capsys: pytest.CaptureFixture[str]):
    def run(*names: str) -> int:
        with pytest.raises(SystemExit) as stop:
            main([str(path) for path in files(data, *names)])
        return int(str(stop.value.code))

    assert run() == 0
    assert "no findings" in capsys.readouterr().out
    assert (data / "test_sheet.png").is_file()
    shutil.copyfile(data / "test.parquet", data / "copy.parquet")
    assert run("test", "copy") == 1
    assert "MUST BE FIXED: 6 series in two splits or files" in capsys.readouterr().out
    (data / "text.parquet").write_text("no", encoding="utf-8")
    assert run("text") == 2
    assert "text.parquet' is not a readable parquet file" in capsys.readouterr().err
