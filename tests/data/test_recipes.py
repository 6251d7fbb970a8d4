"""The contract of a recipe. It finds the recipes by itself: a new file in recipes/ is tested without a change here."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHARED_DATA
from timemaster.data.store import plot_row, read_examples, write_rows
from timemaster.judge import Judgement, set_judge
from timemaster.rewards import RewardPart, format_strict, score
from timemaster.series.plot import draw_png
from timemaster.series.splits import Series
from timemaster.tasks import SeriesClassification, demonstration, find_recipes, load_task, load_tasks
from timemaster.tasks.rows import with_task_answers
from timemaster.types import Example, InputError, Rollout

RECIPES = find_recipes()
COMPUTERS = SHARED_DATA / "Computers"
GARBAGE = ("", " \n", "qwerty", "<think></think><class></class>", "<class>none of them</class>", "</class><class>")


class KindJudge:
    """Gives everything that it is asked about the highest score; asks nobody."""

    async def grade(self, rubric: Any, example: Example, answer: Any) -> Judgement:
        return Judgement(1.0)


@pytest.fixture(autouse=True)
def judge() -> Iterator[None]:
    set_judge(KindJudge())  # type: ignore[arg-type]
    yield
    set_judge(None)


@pytest.fixture(params=RECIPES)
def task(request: pytest.FixtureRequest) -> SeriesClassification:
    return load_task(request.param)


def any_series(task: SeriesClassification, label: str) -> Series:
    """As many channels as the plot names, or one, of the recipe's LENGTH, or 720; all zero but for two peaks."""
    values = [0.0] * getattr(importlib.import_module(f"recipes.{task.name}"), "LENGTH", 720)
    values[10], values[19] = 1.0, 2.5
    return Series([values] * (len(task.plot.channels) or 1), label, 3)


def gold(task: SeriesClassification, label: str) -> str:
    """An answer in the form that the question asks for: its tags, in order."""
    tags = dict.fromkeys(tag for tag in re.findall(r"<(\w+)>", task.question) if tag != "image")
    assert {"think", "class"} <= tags.keys()
    return "".join(f"<{tag}>{label if tag == 'class' else 'so'}</{tag}>" for tag in tags)


def rollout(text: str) -> Rollout:
    return Rollout(id="x:0", token_ids=[], mask=[], logprobs=[], versions=[], media=[], text=text, finish_reason="stop")


def example(task: SeriesClassification, label: str) -> Example:
    return Example(id="x:0", messages=[], answer=label, data_source=task.data_source)


def test_the_recipes_that_are_there_are_found():
    six = {f"recipes.{name}" for name in ("ctu", "ecg", "emg", "har", "rcw", "tee")}
    assert six | {"recipes.emg_soft", "recipes.italy_power"} <= set(RECIPES)
    assert len(load_tasks(RECIPES)) == len(RECIPES)  # every data_source is its own


def test_a_gold_answer_scores_one_on_every_part(task: SeriesClassification):
    for label in task.labels:
        result = score(rollout(gold(task, label)), example(task, label), task.rewards)
        assert set(result.parts.values()) == {1.0}
        assert result.total == pytest.approx(sum(part.weight for part in task.rewards))


def test_a_wrong_label_scores_nothing_for_accuracy(task: SeriesClassification):
    right, wrong = task.labels[:2]
    result = score(rollout(gold(task, wrong)), example(task, right), task.rewards)
    assert result.parts["accuracy"] == 0.0
    assert result.total < sum(part.weight for part in task.rewards) / 2


@pytest.mark.parametrize("text", GARBAGE)
def test_empty_and_garbage_text_score_nothing(task: SeriesClassification, text: str):
    result = score(rollout(text), example(task, task.labels[0]), task.rewards)
    assert result.parts["accuracy"] == 0.0
    assert task.evaluation.read(text) is None
    if "none of them" not in text:
        assert result.total == 0.0


def test_the_question_is_well_formed(task: SeriesClassification):
    assert task.question.count("<image>") == 1
    assert len(set(task.labels)) == len(task.labels)
    for label in task.labels:
        assert label in task.question
    # The same rows are also shown as numbers.
    assert not re.search(r"\b(plot|picture|image|line|graph)s?\b", task.question.removeprefix("<image>"), re.IGNORECASE)


def test_a_demonstration_is_a_gold_answer(task: SeriesClassification):
    if task.explain is None:
        pytest.skip("the recipe has no explainer")
    for label in task.labels:
        text = demonstration(task, any_series(task, label))
        result = score(rollout(text), example(task, label), task.rewards)
        assert result.total == pytest.approx(sum(part.weight for part in task.rewards)), text


def test_a_row_goes_through_parquet(task: SeriesClassification, tmp_path: Path):
    series = any_series(task, task.labels[-1])
    png = draw_png(series, task.plot)
    write_rows(tmp_path / "test.parquet", [plot_row(series, png, task.question, task.data_source, "test")])
    examples, _ = read_examples([str(tmp_path / "test.parquet")])
    (message,) = examples[0].messages
    assert "".join("<image>" if part.kind == "image" else part.text for part in message.parts) == task.question
    assert [part.media.data for part in message.parts if part.media] == [png]
    assert with_task_answers(examples, load_tasks(RECIPES))[1] == []


def test_the_published_labels_are_in_the_published_order():
    published = {  # class 0, class 1, … of the released rewards
        "computer_dataset": ("Desktop", "Laptop"),
        "rcw_dataset": ("RightWhale", "NoWhale"),
        "emg_dataset": ("Healthy", "Myopathy", "Neuropathy"),
        "ecg_dataset": ("normal sinus rhythm", "atrial fibrillation", "other cardiac rhythms", "noise"),
        "har_dataset": ("walking", "walking_upstairs", "walking_downstairs", "sitting", "standing", "laying"),
        "lightning_dataset": (
            "CG Positive", "IR Negative", "Subsequent Return Stroke", "Impulsive", "Impulsive Pair",
            "Gradual Intra-Cloud", "Off-record",
        ),
    }  # fmt: skip
    labels = {source: task.labels for source, task in load_tasks(RECIPES).items()}
    assert published.items() <= labels.items()


def test_advice_counts_only_after_a_right_answer_in_the_right_form():
    soft = load_task("recipes.emg_soft")
    answer = "<think>so</think><class>Healthy</class><extension>Rest.</extension>"
    totals = {
        text: score(rollout(text), example(soft, "Healthy"), soft.rewards).total
        for text in (answer, answer.replace("Healthy", "Myopathy"), answer[: answer.index("<extension>")])
    }
    assert list(totals.values()) == pytest.approx([1.5, 0.1, 0.9])  # 0.9 + 0.1 + 0.5; format alone; accuracy alone


def test_the_other_demonstrations_tell_the_truth():
    def facts(name: str, *channels: list[float], small: bool = False) -> str:
        task = load_task(f"recipes.{name}")
        assert task.explain is not None
        task = dataclasses.replace(task, plot=task.small_plot) if small else task
        return task.explain(Series(list(channels), task.labels[0], 0), task)

    # Mean 0, so the deviation is sqrt((0.3^2 + 0.1^2 + 0.2^2) / 1500) = 0.0097; from -0.2 up, then down again.
    assert facts("emg", [0.0] * 700 + [0.3, -0.1, -0.2] + [0.0] * 797) == (
        "The standard deviation is 0.0097 mV. The largest peak is 0.300 mV, at reading 700. "
        "The signal crosses its mean 2 times."
    )
    assert facts("emg", [0.0] * 700 + [0.1, 0.1, -0.26] + [0.0] * 797, small=True) == (
        "The standard deviation is 0.008 mV. The largest peak is 0.26 mV."
    )
    assert facts("ctu", [0.0] * 300 + [4.0] * 20 + [0.0] * 300 + [3.0] * 5 + [0.0] * 95, small=True) == (
        "It rises 2 times, for 25 readings in all."
    )
    beats = [0.0] * 1500
    for i in (100, 400, 650):
        beats[i], beats[i + 5] = 1.0, -0.8  # the second peak is the same beat
    assert facts("ecg", beats) == (
        "The values run from -0.80 to 1.00. Peaks that stand out: 3, 250 to 300 readings apart."
    )
    square = [0.1, 0.1, -0.1, -0.1] * 32
    assert facts("har", square, [0.0] * 128, [v / 2 for v in square]) == (
        "x: spread 0.100 g, 31 swings. y: spread 0.000 g, 0 swings. z: spread 0.050 g, 31 swings. Widest: x, z, y."
    )
    assert facts("har", square, [0.0] * 128, square, small=True) == (  # bare lines show no sizes
        "x: 31 swings. y: 0 swings. z: 31 swings. Widest: x, z, y."
    )
    tone = [math.sin(2 * math.pi * (100 if i < 2000 else 200) * i / 2000) for i in range(4000)]
    assert "between 60 and 250 Hz is 100, 100, 200, 200 Hz" in facts("rcw", tone)
    assert "holds 100, 100, 100, 100 % of the power" in facts("rcw", tone)
    pulse = [0.0] * 100 + [4.0] * 10 + [0.0] * 40 + [3.0] * 5 + [0.0] * 164
    assert facts("tee", pulse) == (
        "The highest value is at reading 100. The series rises above half height 2 times, for 15 readings in all. "
        "It reaches 4.0; the means of its three thirds are 0.2, 0.3, 0.0."  # 6 x 4 / 106; 4 x 4 + 5 x 3 = 31 of 107
    )
    # Bare lines show no sizes.
    assert facts("ecg", beats, small=True) == "Peaks that stand out: 3, 250 to 300 readings apart."
    assert facts("rcw", [(4 - i // 1000) * v for i, v in enumerate(tone)], small=True) == (
        "From quarter to quarter, the line fills 100, 75, 48, 24 % of its whole height."  # sin 72° is 0.951
    )
    assert facts("tee", pulse, small=True) == (
        "The highest value is at reading 100. The series rises above half height 2 times, for 15 readings in all."
    )


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
    test.write_text(
        test.read_text(encoding="utf-8").replace("1.6310162,0.78428487", "1.6310162,0.78438487", 1), encoding="utf-8"
    )
    load(tmp_path)
    assert "differ from those that this recipe was checked with" in caplog.text


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
    ("text", "message"),
    [
        ("import not_installed_anywhere", "importing it failed: .*not_installed_anywhere"),
        ("TASK = ", "importing it failed: SyntaxError"),
        ("TASK = 1 / 0", "importing it failed: ZeroDivisionError"),
    ],
)
def test_a_recipe_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_broken_recipe.py").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"Recipe 'a_broken_recipe': {message}"):
        load_task("a_broken_recipe")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", ("A", "a")),
        ("question", "no marker"),
        ("validation_fraction", 1.0),
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
    heavy = "{'torch', 'numpy', 'pandas', 'matplotlib', 'sktime', 'pyarrow', 'PIL', 'wfdb', 'soundfile'}"
    code = f"import sys, {', '.join(RECIPES)}; sys.exit(len({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
