"""The contract of a recipe. It finds the recipes by itself: a new file in recipes/ is tested without a change here."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHARED_DATA
from timemaster.data.plot import draw_png
from timemaster.data.series import Series
from timemaster.data.store import check_labels, plot_row, read_examples, write_rows
from timemaster.rewards import RewardPart, format_strict, score
from timemaster.tasks import Task, demonstration, find_recipes, load_task, load_tasks, predict
from timemaster.types import Example, InputError, Rollout

RECIPES = find_recipes()
COMPUTERS = SHARED_DATA / "Computers"
GARBAGE = ("", " \n", "qwerty", "<think></think><class></class>", "<class>none of them</class>", "</class><class>")


@pytest.fixture(params=RECIPES)
def task(request: pytest.FixtureRequest) -> Task:
    return load_task(request.param)


def any_series(task: Task, label: str) -> Series:
    """720 readings in as many channels as the plot names, or three; all zero but for two peaks."""
    values = [0.0] * 720
    values[10], values[19] = 1.0, 2.5
    return Series([values] * (len(task.plot.channels) or 3), label, 3)


def rollout(text: str) -> Rollout:
    return Rollout(id="x:0", token_ids=[], mask=[], logprobs=[], versions=[], media=[], text=text, finish_reason="stop")


def example(task: Task, label: str) -> Example:
    return Example(id="x:0", messages=[], answer=label, data_source=task.data_source)


def test_the_recipes_that_are_there_are_found():
    assert {"recipes.ctu", "recipes.italy_power"} <= set(RECIPES)
    assert len(load_tasks(RECIPES)) == len(RECIPES)  # every data_source is its own


def test_a_gold_answer_scores_one_on_every_part(task: Task):
    for label in task.labels:
        result = score(rollout(f"<think>so</think><class>{label}</class>"), example(task, label), task.rewards)
        assert result.parts["accuracy"] == result.parts["format"] == 1.0
        assert result.total == pytest.approx(sum(part.weight for part in task.rewards))


def test_a_wrong_label_scores_nothing_for_accuracy(task: Task):
    right, wrong = task.labels[:2]
    result = score(rollout(f"<think>so</think><class>{wrong}</class>"), example(task, right), task.rewards)
    assert result.parts["accuracy"] == 0.0


@pytest.mark.parametrize("text", GARBAGE)
def test_empty_and_garbage_text_score_nothing(task: Task, text: str):
    result = score(rollout(text), example(task, task.labels[0]), task.rewards)
    assert result.parts["accuracy"] == 0.0
    assert predict(task, text) is None
    if "none of them" not in text:
        assert result.total == 0.0


def test_the_question_is_well_formed(task: Task):
    assert task.question.count("<image>") == 1
    assert len(set(task.labels)) == len(task.labels)
    for label in task.labels:
        assert label in task.question


def test_a_demonstration_is_a_gold_answer(task: Task):
    if task.explain is None:
        pytest.skip("the recipe has no explainer")
    for label in task.labels:
        text = demonstration(task, any_series(task, label))
        result = score(rollout(text), example(task, label), task.rewards)
        assert result.total == pytest.approx(sum(part.weight for part in task.rewards)), text


def test_a_row_goes_through_parquet(task: Task, tmp_path: Path):
    series = any_series(task, task.labels[-1])
    png = draw_png(series, task.plot)
    write_rows(tmp_path / "test.parquet", [plot_row(series, png, task.question, task.data_source, "test")])
    examples, _ = read_examples([str(tmp_path / "test.parquet")])
    (message,) = examples[0].messages
    assert "".join("<image>" if part.kind == "image" else part.text for part in message.parts) == task.question
    assert [part.media.data for part in message.parts if part.media] == [png]
    assert check_labels(examples, load_tasks(RECIPES)) == []


def test_italy_power_demonstrations_tell_the_truth():
    values = [0.0] * 24
    values[3], values[10], values[19] = -1.0, 1.0, 2.0
    text = demonstration(load_task("recipes.italy_power"), Series([values], "Winter", 0))
    expected = "Low at 3, peaks at 10 and 19."
    assert text == f"<think>{expected}</think><class>Winter</class>"


def test_ctu_demonstrations_tell_the_truth():
    values = [-0.5] * 720
    values[100:110] = [3.5] * 10  # above the middle, (-0.5 + 4.5) / 2 = 2
    values[300] = 4.5
    values[0] = -0.75
    text = demonstration(load_task("recipes.ctu"), Series([values], "Laptop", 0))
    assert "rests at -0.5 and reaches its highest value 4.5 at reading 300" in text
    assert "2 times and stays there for 11 of the 720 readings" in text
    assert "lowest value is -0.8" in text


@pytest.mark.skipif(not COMPUTERS.is_dir(), reason=f"no folder {COMPUTERS}: see CONTRIBUTING.md, Tests")
def test_ctu_is_the_published_set_and_another_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    load = load_task("recipes.ctu").load
    assert [len(series) for series in load(COMPUTERS).values()] == [250, 250]
    assert not caplog.text
    for name in ("Computers_TRAIN.ts", "Computers_TEST.ts"):
        shutil.copyfile(COMPUTERS / name, tmp_path / name)
    test = tmp_path / "Computers_TEST.ts"
    test.write_text(test.read_text().replace("1.6310162,0.78428487", "1.6310162,0.78438487", 1))
    load(tmp_path)
    assert "not the ones this recipe was checked with" in caplog.text


def test_italy_power_pools_the_archive_and_splits_it_again():
    splits = load_task("recipes.italy_power").load(None)
    assert {name: len(series) for name, series in splits.items()} == {"train": 768, "test": 328}
    origins = {(s.meta["archive_split"], s.meta["archive_index"]) for series in splits.values() for s in series}
    assert len(origins) == 1096  # 67 + 1029, each once
    assert sum(s.label == "Winter" for s in splits["test"]) == 164  # half of 328
    winter = [s.values[0] for s in splits["train"] if s.label == "Winter"]
    summer = [s.values[0] for s in splits["train"] if s.label == "Summer"]
    at_19, at_21 = ([sum(v[h] for v in half) / len(half) for half in (winter, summer)] for h in (19, 21))
    assert at_19[0] > at_19[1]  # dark early: the evening peak at 19 hours is winter's
    assert at_21[0] < at_21[1]


@pytest.mark.parametrize(
    ("module", "message"),
    [("recipes.nothing", r"No recipe 'recipes.nothing'; there are \['recipes.ctu'"), ("timemaster.types", "no TASK")],
)
def test_other_modules_are_no_recipes(module: str, message: str):
    with pytest.raises(InputError, match=message):
        load_task(module)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", ("A", "a")),
        ("question", "no marker"),
        ("validation_fraction", 1.0),
        ("max_new_images", -1),
        ("rewards", ()),
        ("rewards", (RewardPart("format", 1.0, format_strict), RewardPart("format", 0.5, format_strict))),
        ("rewards", (RewardPart("mean", 1.0, format_strict),)),
        ("rewards", (RewardPart("format", math.nan, format_strict),)),
    ],
)
def test_a_task_checks_itself(field: str, value: Any):
    with pytest.raises(InputError, match="Task 'ctu'"):
        dataclasses.replace(load_task("recipes.ctu"), **{field: value})


def test_importing_a_recipe_is_light():
    heavy = "{'torch', 'numpy', 'pandas', 'matplotlib', 'sktime', 'pyarrow', 'PIL'}"
    code = f"import sys, {', '.join(RECIPES)}; sys.exit(len({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
