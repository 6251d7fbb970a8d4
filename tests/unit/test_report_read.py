"""What the report reads from a run's folder: which answers are right, which classes there are, what is no run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from timemaster.report.read import changed_settings, flatten, read_run
from timemaster.types import InputError


def write_run(folder: Path, *rows: dict[str, Any], evaluations: dict[str, dict[str, Any]] | None = None) -> Path:
    """A run's folder with one step of rollouts."""
    (folder / "rollouts").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n', encoding="utf-8")
    (folder / "rollouts" / "step_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, metrics in (evaluations or {}).items():
        (folder / "eval" / name).mkdir(parents=True)
        (folder / "eval" / name / "metrics.json").write_text(
            json.dumps({"n": 2, "accuracy": 0.5} | metrics), encoding="utf-8"
        )
    return folder


def row(truth: str, said: str, source: str = "toy", **more: Any) -> dict[str, Any]:
    return {"data_source": source, "truth": truth, "response": f"<class>{said}</class>", "score": 0.0} | more


def outcomes(folder: Path) -> list[str]:
    return [one["outcome"] for one in read_run(folder, 100)["rollouts"]]


def test_with_classes_an_answer_is_right_when_it_says_the_truth_whatever_it_scores(tmp_path: Path) -> None:
    rows = [row("A", "A", score=1 - 0.001 * 20), row("B", "A", score=1.2), row("A", "?"), row("A", "a", score=None)]
    assert outcomes(write_run(tmp_path / "read_again", *rows)) == ["right", "wrong", "unparsed", "right"]
    rows = [one | {"prediction": said} for one, said in zip(rows, ("A", "A", None, "A"), strict=True)]
    assert outcomes(write_run(tmp_path / "logged", *rows)) == ["right", "wrong", "unparsed", "right"]


def test_without_classes_the_accuracy_part_or_the_score_decides(tmp_path: Path) -> None:
    rows = [
        row("42", "none", score=1.0),
        row("43", "none", score=1.5, parts={"accuracy": 0.5}),
        row("44", "none", score=None),
    ]
    assert outcomes(write_run(tmp_path / "run", *rows)) == ["right", "wrong", "unscored"]
    rows = [  # a scaled reward does not say what is right; its dictionary may
        row("45", "none", score=0.5),
        row("46", "none", score=0.5, parts={"score": 0.5, "score/acc": 1.0}),
        row("47", "none", score=0.5, parts={"score": 0.5, "score/acc": 0.0}),
    ]
    assert outcomes(write_run(tmp_path / "scaled", *rows)) == ["unscored", "right", "wrong"]


def test_a_label_that_was_no_truth_so_far_is_read_where_the_row_holds_it(tmp_path: Path) -> None:
    rows = [row("A", "A"), row("A", "C")]  # the task has C, too
    assert outcomes(write_run(tmp_path / "old", *rows)) == ["right", "unparsed"]
    rows = [row("A", "A", prediction="A"), row("A", "C", prediction="C")]
    shown = read_run(write_run(tmp_path / "new", *rows), 100)["rollouts"]
    assert [(one["said"], one["outcome"]) for one in shown] == [("A", "right"), ("C", "wrong")]


def test_in_a_mixture_each_source_has_its_own_labels(tmp_path: Path) -> None:
    rows = [row("A", "A", "one"), row("A", "C", "one"), row("C", "D", "two"), row("C", "B", "two")]
    per_class = {source: {"per_class": dict.fromkeys(labels)} for source, labels in (("one", "AB"), ("two", "CD"))}
    both = {"per_class": dict.fromkeys("ABCD"), "by_data_source": per_class}
    folder = write_run(tmp_path / "run", *rows, evaluations={"step_1": both})
    assert outcomes(folder) == ["right", "unparsed", "wrong", "unparsed"]
    apart = {f"step_{i}": per_class[source] for i, source in enumerate(per_class)}  # evaluated one by one
    assert outcomes(write_run(tmp_path / "apart", *rows, evaluations=apart)) == outcomes(folder)


def test_the_command_has_the_mixture_whole() -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    config = yaml.safe_load("data: {mixture: {har_dataset: 2.0, ecg_dataset: 1.0}, seed: 1}")
    (word,) = changed_settings(config)
    (override,) = OverridesParser.create().parse_overrides([word.strip("'")])
    assert override.key_or_group == "data.mixture"
    assert override.value() == {"har_dataset": 2.0, "ecg_dataset": 1.0}
    assert changed_settings({"data": {"mixture": {}}}) == []
    assert flatten({"a": {"b": {}, "c": {"d": 1}}}) == {"a.b": {}, "a.c.d": 1}


def test_a_folder_of_evaluations_alone_is_a_runs(tmp_path: Path) -> None:
    (tmp_path / "eval" / "step_0").mkdir(parents=True)
    with pytest.raises(InputError, match="nor evaluations"):
        read_run(tmp_path, 100)
    (tmp_path / "eval" / "step_0" / "metrics.json").write_text('{"n": 2, "accuracy": 0.5, "step": 0}', encoding="utf-8")
    data = read_run(tmp_path, 100)
    assert data["kind"] == "evaluation"
    assert [one["accuracy"] for one in data["evaluations"]] == [0.5]
    assert data["last_write"]
