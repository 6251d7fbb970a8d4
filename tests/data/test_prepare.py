"""From a recipe to the folder that training reads."""

from __future__ import annotations

import io
import json
import random
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import SHARED_DATA
from timemaster.data import plot
from timemaster.data import prepare as prepare_module
from timemaster.data.plot import PlotStyle, draw_many, draw_png
from timemaster.data.prepare import main, prepare, small_variant
from timemaster.data.series import Series
from timemaster.data.store import read_examples
from timemaster.rewards import RewardPart, format_strict
from timemaster.tasks import Task
from timemaster.types import InputError

COMPUTERS = SHARED_DATA / "Computers"


def load(source: Path | None) -> dict[str, list[Series]]:
    rng = random.Random(0)
    return {
        split: [Series([[rng.gauss(0, 1) for _ in range(12)]], "Up" if i % 2 else "Down", i) for i in range(size)]
        for split, size in (("train", 20), ("test", 6))
    }


TASK = Task(
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
def test_computers_become_the_ctu_task(tmp_path: Path):
    from recipes.ctu import TASK as ctu

    folder = prepare(ctu, COMPUTERS, tmp_path)
    sizes = {name: len(examples(folder, name)) for name in ("train", "validation", "test", "sft")}
    assert sizes == {"train": 225, "validation": 25, "test": 250, "sft": 225}
    media = [e.messages[0].parts[0].media for e in examples(folder, "test")]
    assert {m.height for m in media} == {230}
    assert all(555 <= m.width <= 595 for m in media)
    assert sum(e.answer == "Laptop" for e in examples(folder, "test")) == 125
