"""The closing table of the small runs: its figures are those of the evaluations, its picture shows every class."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import picture
from timemaster.data.store import plot_row, write_rows
from timemaster.metrics.answers import Answer
from timemaster.results import plot_results
from timemaster.results.summary import NUM_PLOTS, collect, main, measured, some_of_each, write_picture
from timemaster.series.splits import Series
from timemaster.types import InputError


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    png = picture(1).data
    assert png is not None
    labels = ["A"] * 7 + ["B"] * 2
    rows = [plot_row(Series([[1.0]], label, i), png, "<image>?", "toy", "test") for i, label in enumerate(labels)]
    write_rows(tmp_path / "test.parquet", rows)
    (tmp_path / "peak_memory_gib").write_text("2.5", encoding="utf-8")
    (tmp_path / "seconds").write_text("data 3.5\ngrpo 60\n", encoding="utf-8")
    per_class = {"A": {}, "B": {}}
    for name, accuracy in (("step_0", 0.5), ("step_8", 0.75), ("step_8_blank", 0.25)):
        folder = tmp_path / "grpo" / "eval" / name
        folder.mkdir(parents=True)
        metrics = {"n": 9, "accuracy": accuracy, "accuracy_ci95": [0.1, 0.9], "modality": "image"}
        metrics |= {"files": [str(tmp_path / "test.parquet")], "per_class": per_class}
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        lines = [
            {"id": f"test.parquet:{i}", "data_source": "toy", "truth": label, "prediction": "A"}
            | {"response": "<class>A</class>", "outcome": "right" if label == "A" else "wrong"}
            for i, label in enumerate(labels)
        ]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    step = {"reward/mean": 0.5, "rollout/logprob_diff_mean": 1e-7, "rollout/logprob_diff_max": 1e-6}
    (tmp_path / "grpo" / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, **step}) + "\n" for s in (1, 2)), encoding="utf-8"
    )
    return tmp_path


def test_before_after_and_blank_come_from_the_first_and_last_checkpoint(finished: Path) -> None:
    summary = collect(finished)
    assert [summary[key]["accuracy"] for key in ("before", "after", "blank")] == [0.5, 0.75, 0.25]
    assert summary["seconds"] == {"data": 3.5, "grpo": 60.0}
    assert summary["peak_memory_gib"] == 2.5


def test_a_run_without_blanked_images_has_none_in_figures_and_table(
    finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys
) -> None:
    shutil.rmtree(finished / "grpo" / "eval" / "step_8_blank")  # numbers have no image to blank
    monkeypatch.setattr(sys, "argv", ["summary", str(finished)])
    main()
    assert "blank" not in json.loads((finished / "summary.json").read_text(encoding="utf-8"))
    printed = caplog.text + "".join(capsys.readouterr())
    assert "after RL" in printed
    assert "blanked images" not in printed


def test_every_class_is_shown_even_where_there_are_more_than_plots() -> None:
    labels = [*"AAAABCDEFG", "A"]  # seven classes
    chosen = some_of_each(rows(*((label, "right", 1) for label in labels)))
    assert [one.truth for one in chosen] == list("ABCDEFG")


def rows(*groups: tuple[str, str, int]) -> list[Answer]:
    """(truth, outcome, count), in order."""
    return [
        Answer(id="row", data_source="toy", truth=truth, prediction=None, outcome=outcome)
        for truth, outcome, count in groups
        for _ in range(count)
    ]


def test_classes_and_outcomes_take_turns() -> None:
    chosen = some_of_each(rows(("A", "right", 7), ("B", "right", 5), ("B", "wrong", 1), ("A", "unparsed", 1)))
    assert [(one.truth, one.outcome) for one in chosen] == [
        ("A", "right"), ("B", "right"), ("A", "unparsed"), ("B", "wrong"), ("A", "right"), ("B", "right"),
    ]  # fmt: skip
    chosen = some_of_each(rows(("A", "right", 9), ("B", "wrong", 2)))
    assert [one.truth for one in chosen] == ["A", "B", "A", "B", "A", "A"]
    assert len(chosen) == NUM_PLOTS


def test_one_wrong_answer_is_shown_however_many_classes_and_right_ones_there_are() -> None:
    groups = [(label, "right", 9) for label in "ABCDEFG"]
    chosen = some_of_each(rows(*groups, ("F", "wrong", 1)))
    assert [(one.truth, one.outcome) for one in chosen if one.outcome != "right"] == [("F", "wrong")]
    assert [one.truth for one in chosen] == list("ABCDEFG")
    assert {one.outcome for one in some_of_each(rows(*groups))} == {"right"}


def test_where_nothing_was_read_the_rewards_say_what_is_right() -> None:
    def outcome(**fields: Any) -> str:
        return measured(Answer(id="row", data_source="verl", truth="4.5", prediction=None, **fields)).outcome

    assert outcome(score=0.1, parts={"accuracy": 1.0}) == "right"
    assert outcome(score=0.0) == "wrong"
    assert outcome(score=0.1) == outcome() == "unscored"  # a scaled reward does not say it
    assert outcome(outcome="unparsed") == "unparsed"


def test_real_numbers_have_their_headline_and_plots_from_best_to_worst(
    finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys
) -> None:
    error = {"name": "error", "title": "mean error", "is_share": False, "higher_is_better": False}
    answers = [
        {"id": f"test.parquet:{i}", "data_source": "toy", "truth": f"0.{i}", "prediction": "0.1" if i else None}
        | {"response": "0.1", "numbers": {"error": abs(i - 1) / 10}, "outcome": "measured" if i else "unparsed"}
        for i in range(9)
    ]
    for path in (finished / "grpo" / "eval").iterdir():
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        metrics = {"n": 9, "numbers": [error], "error": 0.25, "error_ci95": [0.2, 0.3], "files": metrics["files"]}
        (path / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        lines = "".join(json.dumps(line) + "\n" for line in answers)
        (path / "predictions.jsonl").write_text(lines, encoding="utf-8")
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(plot_results, "overview_png", lambda run, chosen, title: drawn.update(c=chosen, t=title) or b"")
    monkeypatch.setattr(sys, "argv", ["summary", str(finished)])
    main()
    assert json.loads((finished / "summary.json").read_text(encoding="utf-8"))["after"] == {
        "error": 0.25, "ci95": [0.2, 0.3],
    }  # fmt: skip
    assert "mean error on 9 test rows" in caplog.text + "".join(capsys.readouterr())
    # by error: rows 1 (0), 0 and 2 (0.1), 3 (0.2), … 8 (0.7); of these nine numbers 0, 1.6, 3.2, 4.8, 6.4 and 8
    assert [one.truth for one in drawn["c"]] == ["0.1", "0.2", "0.3", "0.5", "0.6", "0.8"]
    assert [one.value for one in drawn["c"]][::5] == ["error 0", "error 0.7"]
    assert drawn["t"] == "Greedy answers after step 8: mean error 0.250 [0.200, 0.300], 1 unparsed of 9 test rows"


def test_what_was_not_evaluated_is_absent(finished: Path) -> None:
    for name in ("step_8", "step_8_blank"):
        shutil.rmtree(finished / "grpo" / "eval" / name)
    assert {"before", "n"} <= collect(finished).keys()
    assert not {"after", "blank"} & collect(finished).keys()
    assert write_picture(finished).exists()
    shutil.rmtree(finished / "grpo" / "eval" / "step_0")
    with pytest.raises(InputError, match="EVAL=True"):
        collect(finished)


def test_the_command_writes_figures_and_picture(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["summary", str(finished)])
    main()
    assert json.loads((finished / "summary.json").read_text(encoding="utf-8"))["after"]["accuracy"] == 0.75
    assert (finished / "overview.png").read_bytes().startswith(b"\x89PNG")
