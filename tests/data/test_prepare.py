"""From a recipe to the folder that training reads."""

from __future__ import annotations

import errno
import io
import json
import random
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT, SHARED_DATA
from timemaster.data.store import read_examples
from timemaster.rewards import RewardPart, format_strict
from timemaster.series import plot
from timemaster.series.plot import PlotStyle, draw_many, draw_png
from timemaster.series.splits import Series
from timemaster.tasks import SeriesClassification
from timemaster.tasks import prepare as prepare_module
from timemaster.tasks.prepare import main, prepare, small_variant
from timemaster.types import InputError

COMPUTERS = SHARED_DATA / "Computers"


def load(source: Path | None) -> dict[str, list[Series]]:
    rng = random.Random(0)
    return {
        split: [Series([[rng.gauss(0, 1) for _ in range(12)]], "Up" if i % 2 else "Down", i) for i in range(size)]
        for split, size in (("train", 20), ("test", 6))
    }


TASK = SeriesClassification(
    name="toy",
    data_source="toy_dataset",
    labels=("Up", "Down"),
    question="<image>Up or Down?",
    load=load,
    plot=PlotStyle(width=56, height=56, axes=False),
    rewards=(RewardPart("format", 1.0, format_strict),),
    explain=lambda series, task: f"It starts at {series.values[0][0]:.1f}.",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(TASK, None, tmp_path_factory.mktemp("data"), num_workers=1)


def examples(folder: Path, name: str):
    return read_examples([str(folder / f"{name}.parquet")])[0]


def test_the_tree_is_complete_and_nothing_else_is_left(folder: Path):
    assert sorted(p.name for p in folder.iterdir()) == [
        "dataset_dict.json",
        "images",
        "sft.parquet",
        "test",
        "test.parquet",
        "train",
        "train.parquet",
        "validation.parquet",
    ]
    assert [p.name for p in folder.parent.iterdir()] == ["toy_image"]
    assert json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8")) == {"splits": ["train", "test"]}


TAGS = "Give <think>why</think>, then <class>one</class>."


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ("", "Up or Down?"),
        ("Answer in <class></class>.", "Up or Down? Use <class>."),
        (f"{TAGS} <extension>more</extension>", "Up or Down? Use <think>, <class> and <extension>."),
    ],
)
def test_the_short_question_asks_for_the_questions_own_tags(tags: str, says: str):
    assert small_variant(replace(TASK, question=f"<image>{tags}")).question == f"<image>{says}"


def test_the_small_variant_has_its_own_plot_and_a_short_question(tmp_path: Path):
    task = replace(
        TASK, small_plot=PlotStyle(width=84, height=28, axes=False), question="<image>" + "Look! " * 50 + TAGS
    )
    small = prepare(task, None, tmp_path, num_workers=1, plot="small")
    assert small.name == "toy_small"
    (message,) = examples(small, "train")[0].messages
    assert [(p.media.width, p.media.height) if p.media else p.text for p in message.parts] == [
        (84, 28),
        "Up or Down? Use <think> and <class>.",
    ]


def test_validation_is_cut_from_train_by_class(folder: Path):
    train, validation, test = (examples(folder, name) for name in ("train", "validation", "test"))
    assert [len(train), len(validation), len(test)] == [18, 2, 6]  # a tenth of 20 is 2
    assert sorted(e.answer for e in validation) == ["Down", "Up"]
    indices = [e.extra["index"] for e in [*train, *validation]]
    assert sorted(indices) == list(range(20))
    assert {e.extra["split"] for e in validation} == {"validation"}


def test_each_row_has_its_own_plot_and_no_name_tells_the_label(folder: Path):
    for split, series in load(None).items():
        files = sorted((folder / "images" / split).iterdir())
        assert [f.name for f in files] == [f"{split}_sample_{s.index:05d}.png" for s in series]
    for name, split in (("train", "train"), ("validation", "train"), ("test", "test"), ("sft", "train")):
        for example in examples(folder, name):
            media = example.messages[0].parts[0].media
            assert (
                media.data
                == (folder / "images" / split / f"{split}_sample_{example.extra['index']:05d}.png").read_bytes()
            )
            assert Image.open(io.BytesIO(media.data)).size == (56, 56)
            assert media.path == ""


def test_plots_follow_their_series_whatever_the_indices_say(tmp_path: Path):
    def shuffled(source: Path | None) -> dict[str, list[Series]]:
        return {split: series[::-1] for split, series in load(source).items()}

    made = prepare(replace(TASK, load=shuffled), None, tmp_path, num_workers=1)
    for name, split in (("train", "train"), ("validation", "train"), ("test", "test")):
        for example in examples(made, name):
            item = load(None)[split][example.extra["index"]]
            assert item.index == example.extra["index"]
            assert example.answer == item.label
            assert example.messages[0].parts[0].media.data == draw_png(item, TASK.plot)


def test_indices_that_repeat_within_a_split_are_refused(tmp_path: Path):
    def joined(source: Path | None) -> dict[str, list[Series]]:
        splits = load(source)
        return splits | {"train": splits["train"] + splits["test"]}  # two files, each numbered from 0

    with pytest.raises(InputError, match=r"6 indices repeat in the train split \(first: 0\)"):
        prepare(replace(TASK, load=joined), None, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [("train",), ("train", "test", "valid"), ()])
def test_only_known_splits_are_taken(tmp_path: Path, names: tuple[str, ...]):
    task = replace(TASK, load=lambda source: dict.fromkeys(names, load(None)["test"]))
    with pytest.raises(InputError, match="give train, test and, if any, validation"):
        prepare(task, None, tmp_path)


def test_all_splits_are_drawn_in_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    def draw(series: list[Series], style: PlotStyle, num_workers: int) -> list[bytes]:
        calls.append(len(series))
        return draw_many(series, style, 1)

    monkeypatch.setattr(plot, "draw_many", draw)
    prepare(TASK, None, tmp_path)
    assert calls == [26]  # 20 + 6: each split alone could be too few for several processes


def test_a_validation_split_of_the_recipe_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def own(source: Path | None) -> dict[str, list[Series]]:
        splits = load(source)
        return splits | {"validation": [replace(s, values=[[1.0, 2.0] * 6]) for s in splits["test"][:5]]}

    with caplog.at_level("INFO"):
        made = prepare(replace(TASK, load=own), None, tmp_path, num_workers=1)
    assert [len(examples(made, name)) for name in ("train", "validation", "test", "sft")] == [20, 5, 6, 20]
    rows = examples(made, "validation")
    assert {e.extra["split"] for e in rows} == {"validation"}
    assert {e.messages[0].parts[0].media.data for e in rows} == {
        path.read_bytes() for path in (made / "images" / "validation").iterdir()
    }
    assert json.loads((made / "dataset_dict.json").read_text(encoding="utf-8")) == {
        "splits": ["train", "test", "validation"]
    }
    assert "validation is the recipe's own split" in caplog.text


def test_validation_is_cut_by_whole_groups_where_there_are_some(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def people(source: Path | None) -> dict[str, list[Series]]:
        splits = load(source)
        return splits | {"train": [replace(s, meta={"group": f"person {s.index // 4}"}) for s in splits["train"]]}

    with caplog.at_level("INFO"):
        made = prepare(replace(TASK, load=people, validation_fraction=0.2), None, tmp_path, num_workers=1)
    train, validation = ({e.extra["index"] for e in examples(made, name)} for name in ("train", "validation"))
    assert (len(train), len(validation)) == (16, 4)  # a fifth of 20: one person of five
    assert not {index // 4 for index in train} & {index // 4 for index in validation}
    assert "validation is cut from the train split, seed 1, 1 of 5 whole groups" in caplog.text
    other = prepare(replace(TASK, load=people, validation_fraction=0.2), None, tmp_path / "b", num_workers=1, seed=3)
    assert {e.extra["index"] for e in examples(other, "validation")} != validation


def test_sft_rows_are_the_train_rows_with_a_true_answer(folder: Path):
    series = load(None)["train"]
    for plain, shown in zip(examples(folder, "train"), examples(folder, "sft"), strict=True):
        assert shown.messages[0] == plain.messages[0]
        item = series[plain.extra["index"]]
        expected = f"<think>It starts at {item.values[0][0]:.1f}.</think><class>{item.label}</class>"
        assert [part.text for part in shown.messages[1].parts] == [expected]


def test_the_datasets_library_loads_the_folder(folder: Path):
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    assert {split: rows.column_names for split, rows in loaded.items()} == {
        split: ["problem", "answer", "data", "image"] for split in ("train", "test")
    }
    assert loaded["train"].num_rows == 20
    row, series = loaded["test"][4], load(None)["test"][4]
    assert row == {
        "problem": TASK.question,
        "answer": series.label,
        "data": series.values[0],
        "image": "test_sample_00004.png",
    }


def test_the_seed_chooses_the_validation_rows(folder: Path, tmp_path: Path):
    same = prepare(TASK, None, tmp_path / "same", num_workers=1)
    other = prepare(TASK, None, tmp_path / "other", num_workers=1, seed=3)
    index = [[e.extra["index"] for e in examples(f, "validation")] for f in (folder, same, other)]
    assert index[0] == index[1] != index[2]


def test_a_rerun_replaces_and_a_failed_one_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = prepare(TASK, None, tmp_path, num_workers=1)
    (made / "stray.txt").touch()
    prepare(TASK, None, tmp_path, num_workers=1)
    assert not (made / "stray.txt").exists()
    (made / "mark.txt").touch()

    def fail(*arguments: object):
        raise InputError("no space")

    monkeypatch.setattr(prepare_module, "_save_parquet", fail)
    with pytest.raises(InputError):
        prepare(TASK, None, tmp_path, num_workers=1)
    assert (made / "mark.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["toy_image"]


def test_the_command_makes_the_folder_and_sums_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    module = types.ModuleType("toy_recipe")
    module.TASK = TASK  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_recipe", module)
    with caplog.at_level("INFO"):
        main(["toy_recipe", "--out", str(tmp_path), "--workers", "1"])
    assert "train.parquet          18 rows  (Down 9, Up 9)" in caplog.text
    assert "validation is cut from the train split, seed 1, shares of the classes kept" in caplog.text
    assert "26 plots (56 x 56 pixels)" in caplog.text
    assert (tmp_path / "toy_image" / "test.parquet").is_file()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["recipes.ctu", "--source", str(tmp_path / "nowhere"), "--out", str(tmp_path)])
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert f"no such folder or file: {tmp_path / 'nowhere'}" in message
    assert "Traceback" not in message


@pytest.mark.skipif(not COMPUTERS.is_dir(), reason=f"no folder {COMPUTERS}: see CONTRIBUTING.md, Tests")
@pytest.mark.slow
def test_computers_become_the_ctu_task(tmp_path: Path):
    from recipes.ctu import TASK as ctu

    folder = prepare(ctu, COMPUTERS, tmp_path)
    sizes = {name: len(examples(folder, name)) for name in ("train", "validation", "test", "sft")}
    assert sizes == {"train": 225, "validation": 25, "test": 250, "sft": 225}
    media = [e.messages[0].parts[0].media for e in examples(folder, "test")]
    assert {m.height for m in media} == {230}
    assert all(555 <= m.width <= 595 for m in media)
    assert sum(e.answer == "Laptop" for e in examples(folder, "test")) == 125


# ---- classes, two preparations, kills, disks


def with_labels(train: str, test: str = "Up Down Up Down", validation: str = "") -> SeriesClassification:
    """The toy task with series of these labels, one a word."""

    def labelled(source: Path | None) -> dict[str, list[Series]]:
        splits = {"train": train, "test": test} | ({"validation": validation} if validation else {})
        return {
            split: [Series([[float(i), 1.0]], label, i) for i, label in enumerate(labels.split())]
            for split, labels in splits.items()
        }

    return replace(TASK, load=labelled)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (with_labels("Up " * 8, "Up Down"), "train.parquet has no row of Down; the source has 1 of Down"),
        (with_labels("Up " * 8, "Up"), "train.parquet has no row of Down; the source has 0 of Down"),
        (with_labels("Up Down Side"), r"train has \['Side'\]; its labels are Up, Down"),
        (with_labels("Up Down", ""), "the test split has no series"),
        (
            with_labels("Down Up", "Up Down"),
            "train.parquet has no row of Down; the source has 2 of Down",
        ),  # one cut off
    ],
)
def test_a_class_that_training_would_not_see_is_an_error(task: SeriesClassification, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        prepare(task, None, tmp_path, num_workers=1)
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_only_a_test_lacks_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    prepare(with_labels("Up Down " * 4, "Up", "Down"), None, tmp_path, num_workers=1)
    assert "test.parquet has no row of Down" in caplog.text
    assert "validation.parquet has no row of Up" in caplog.text


CHILD = """
import sys, time
from pathlib import Path
from tests.data.test_prepare import TASK
from timemaster.tasks import prepare as module

def wait(what):
    (Path(sys.argv[1]) / "at").write_text(what, encoding="utf-8")
    time.sleep(60)

if sys.argv[2] == "drawn":
    module._save_dataset_dict = lambda *given: wait("drawn")
if sys.argv[2] == "between":
    rename = Path.rename
    Path.rename = lambda path, to: wait("between") if path.name == "new" else rename(path, to)
module.prepare(TASK, None, Path(sys.argv[1]) / "data", 1)
"""


def start_and_stop(tmp_path: Path, where: str) -> subprocess.Popen[bytes]:
    """A preparation in another process that has come to `where` and stays there."""
    (tmp_path / "at").unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), where], cwd=ROOT)
    while not (tmp_path / "at").exists():
        assert process.poll() is None
        time.sleep(0.05)
    return process


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("where", ["drawn", "between"])
def test_a_second_preparation_is_refused_and_a_killed_one_leaves_no_half_folder(where: str, tmp_path: Path):
    made = prepare(TASK, None, tmp_path / "data", num_workers=1)
    (made / "mark.txt").touch()
    before = contents(made)
    process = start_and_stop(tmp_path, where)
    try:
        with pytest.raises(
            InputError, match=f"in use by the preparation of .*toy_image: process {process.pid} on host"
        ):
            prepare(TASK, None, tmp_path / "data", num_workers=1)
        other = prepare(replace(TASK, name="other"), None, tmp_path / "data", num_workers=1)
        assert other.is_dir()
    finally:
        process.kill()
        process.wait()
    assert contents(made) == (before if where == "drawn" else {})  # the whole old one, or none for a moment

    def fail(source: Path | None) -> dict[str, list[Series]]:
        raise InputError("no source")

    with pytest.raises(InputError, match="no source"):
        prepare(replace(TASK, load=fail), None, tmp_path / "data")
    assert contents(made) == before
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["other_image", "toy_image"]


def test_a_link_in_the_folders_place_is_replaced_and_its_target_left_alone(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").touch()
    (tmp_path / "toy_image").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        made = prepare(TASK, None, tmp_path, num_workers=1)
    assert (made / "train.parquet").is_file()
    assert (tmp_path / "elsewhere" / "mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "toy_image"]


def full(*arguments: object, **others: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "what",
    ["pathlib.Path.write_bytes", "datasets.DatasetDict.save_to_disk", "pyarrow.parquet.ParquetWriter.write_table"],
)
def test_a_full_disk_is_said_with_advice(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(what, full)
    with pytest.raises(
        InputError, match=r"cannot be written: No space left on device.* choose another folder: --out DIR"
    ):
        prepare(TASK, None, tmp_path, num_workers=1)
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_is_a_file_is_said_with_advice(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match=r"cannot be written: Not a directory\. Choose another folder"):
        prepare(TASK, None, tmp_path / "out", num_workers=1)
