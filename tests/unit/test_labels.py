"""A label that Unicode writes in two ways, or in other letters, is one label wherever labels are compared."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers import picture
from timemaster.data.store import plot_row, read_examples, write_rows
from timemaster.metrics.classification import Classification
from timemaster.results.predictions import read_predictions
from timemaster.results.report.older_rollouts import add_outcomes
from timemaster.rewards import RewardPart, accuracy, format_lenient, format_strict, predict_label
from timemaster.series.labels import label_key
from timemaster.series.plot import PlotStyle
from timemaster.series.splits import Series, read_series
from timemaster.tasks import SeriesClassification
from timemaster.tasks.audit import audit
from timemaster.tasks.rows import with_task_answers
from timemaster.types import Example, InputError, Rollout

ONE = ("Été", "Ångström", "한국", "Straße")  # each letter with its mark is one character
TWO = tuple(unicodedata.normalize("NFD", label) for label in ONE)  # mark and letter are two
WRITINGS = [(ONE, TWO), (TWO, ONE), (ONE, tuple(label.upper() for label in TWO))]


def test_the_two_writings_differ_as_text_and_not_as_labels() -> None:
    assert all(one != two for one, two in zip(ONE[:3], TWO[:3], strict=True))
    assert [label_key(one) for one in ONE] == [label_key(f" {two.upper()}\n") for two in TWO]
    assert label_key("x²") != label_key("x2")  # another sign, not another writing
    assert label_key("ete") != label_key("été")


@pytest.mark.parametrize(("labels", "others"), WRITINGS)
def test_answers_and_rewards(labels: tuple[str, ...], others: tuple[str, ...]) -> None:
    nothing: dict[str, Any] = {name: [] for name in ("token_ids", "mask", "logprobs", "versions", "media")}
    for label, other in zip(labels, others, strict=True):
        text = f"<class>{other}</class>"
        rollout = Rollout(id="x", text=text, finish_reason="stop", **nothing)
        assert predict_label(text, labels) == label
        for truth in (label, other):
            example = Example(id="x", messages=[], answer=truth, data_source="x")
            assert accuracy(labels)(rollout, example) == 1
            assert accuracy(others)(rollout, example) == 1
            assert format_lenient(labels)(rollout, example) == 1
        assert accuracy(labels)(rollout, Example(id="x", messages=[], answer="other", data_source="x")) == 0


def test_a_task_refuses_two_writings_of_a_label() -> None:
    with pytest.raises(InputError, match="must be there and differ"):
        SeriesClassification(
            name="x", data_source="x", labels=(ONE[0], TWO[0]), question="<image>?", load=lambda _: {},
            plot=PlotStyle(), rewards=(RewardPart("format", 1.0, format_strict),),
        )  # fmt: skip


@pytest.mark.parametrize(("labels", "others"), WRITINGS)
def test_rows_take_the_tasks_writing(labels: tuple[str, ...], others: tuple[str, ...], tmp_path: Path) -> None:
    series = [Series([[0.0, 1.0]], other, i) for i, other in enumerate(others)]
    rows = [plot_row(one, picture(one.index).data or b"", "<image>Which?", "x", "train") for one in series]
    write_rows(tmp_path / "a.parquet", rows)
    tasks = {"x": SimpleNamespace(name="x", evaluation=Classification(labels=labels))}
    examples, _ = read_examples([str(tmp_path / "a.parquet")])
    spelled, bad = with_task_answers(examples, tasks)
    assert bad == []
    assert [example.answer for example in spelled] == list(labels)


@pytest.mark.parametrize(("labels", "others"), WRITINGS)
def test_an_archives_classes(labels: tuple[str, ...], others: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "a.ts"
    lines = ["@problemName a", "@timeStamps false", "@univariate true", f"@classLabel true {' '.join(others)}", "@data"]
    file.write_text("\n".join(lines + [f"0.5,1.5:{other}" for other in others]) + "\n", encoding="utf-8")
    found = read_series(file, {label: label for label in labels})
    assert [series.label for series in found] == list(labels)


@pytest.mark.parametrize(("labels", "others"), WRITINGS)
def test_predictions_of_other_tools(labels: tuple[str, ...], others: tuple[str, ...], tmp_path: Path) -> None:
    rows = [{"id": f"t:{i}", "data_source": "x", "truth": other, "prediction": other} for i, other in enumerate(others)]
    file = tmp_path / "predictions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = read_predictions(file, "x", Classification(labels=labels))
    assert [(one.truth, one.prediction) for one in found.values()] == [(label, label) for label in labels]


def test_a_report_of_a_run_without_recipes() -> None:
    row = {"source": "x", "said": ONE[0], "truth": TWO[0], "text": "", "score": None, "parts": {}}
    add_outcomes([row], [])
    assert row["outcome"] == "right"


def test_an_audit_counts_one_class_and_sees_a_leak_in_either_writing(tmp_path: Path) -> None:
    rows = [
        plot_row(Series([[0.0, float(i)]], label, i), picture(i).data or b"", "<image>Which?", "x", "train")
        | {"ability": f"a plot of {other}"}
        for i, (label, other) in enumerate(zip(ONE * 3 + TWO * 3, TWO * 3 + ONE * 3, strict=True))
    ]
    write_rows(tmp_path / "train.parquet", rows)
    report = audit([tmp_path / "train.parquet"])
    assert sum("25.0 %" in line for line in report.lines) == len(ONE)
    assert any("24 rows name their label in ability" in finding for finding in report.serious)
