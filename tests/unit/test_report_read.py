"""What the report reads from a run's folder: which answers are right, which classes there are, what is no run's."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from timemaster.results.report.read import answers_sampled, flatten, given_settings, read_run
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


def test_settings_that_were_given_are_words_for_a_shell_the_last_of_each(tmp_path: Path) -> None:
    notes: list[str] = []
    assert given_settings(tmp_path / "overrides.yaml", notes) is None
    words = ["rollout.n=5", "+judge.extra_body.top_p=0.9", "model.path=a b's\n(\u00fc)", "rollout.n=8", "~data.mixture"]
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump(words), encoding="utf-8")
    given = given_settings(tmp_path / "overrides.yaml", notes)
    assert given is not None
    assert shlex.split(" ".join(given)) == ["rollout.n=8", *words[1:3], words[4]]
    assert notes == []
    for broken in ("a: 1", "[", "text"):
        (tmp_path / "overrides.yaml").write_text(broken, encoding="utf-8")
        assert given_settings(tmp_path / "overrides.yaml", notes) is None
    assert len(notes) == 3


def test_what_answers_are_called(tmp_path: Path) -> None:
    assert answers_sampled({"temperature": 0.0, "top_p": 1.0, "top_k": -1}) == "greedy"
    assert answers_sampled({"temperature": 1, "n": 5}) == "sampled at temperature 1"
    for unknown in (None, {}, "x", {"temperature": None}, {"temperature": True}):
        assert answers_sampled(unknown) is None
    folder = write_run(tmp_path / "run", row("A", "A"))
    assert read_run(folder, 100)["sampling"] == {"training": None, "validation": None}
    (folder / "config.yaml").write_text("{rollout: {temperature: 0.7}, eval: {temperature: 0}}", encoding="utf-8")
    data = read_run(folder, 100)
    assert data["sampling"] == {"training": "sampled at temperature 0.7", "validation": "greedy"}
    assert flatten({"a": {"b": {}, "c": {"d": 1}}}) == {"a.b": {}, "a.c.d": 1}


def test_a_folder_of_evaluations_alone_is_a_runs(tmp_path: Path) -> None:
    (tmp_path / "eval" / "step_0").mkdir(parents=True)
    with pytest.raises(InputError, match="nor evaluations"):
        read_run(tmp_path, 100)
    (tmp_path / "eval" / "step_0" / "metrics.json").write_text('{"n": 2, "accuracy": 0.5, "step": 0}', encoding="utf-8")
    data = read_run(tmp_path, 100)
    assert data["kind"] == "evaluation"
    assert [(own["name"], own["value"]) for one in data["evaluations"] for own in one["numbers"]] == [("accuracy", 0.5)]
    assert data["last_write"]


def test_numbers_are_those_of_the_evaluations_else_of_the_rollouts(tmp_path: Path) -> None:
    error = {"name": "error", "title": "mean error", "is_share": False, "higher_is_better": False}
    rows = [
        row("0.5", "0.4", prediction="0.4", numbers={"error": 0.1}, outcome="measured"),
        row("0.5", "none", prediction=None, numbers={"error": 1.0}, outcome="unparsed"),
        row("A", "A", "classes", prediction="A", numbers={"accuracy": 1.0}, outcome="right"),
    ]
    metrics = {"numbers": [error], "error": 0.3, "error_ci95": [0.1, 0.5]}
    evaluated = read_run(write_run(tmp_path / "a", *rows, evaluations={"step_1": metrics}), 100)
    assert [(one["name"], one["heading"], one["is_share"]) for one in evaluated["numbers"]] == [
        ("error", "mean error", False), ("accuracy", "accuracy", True),
    ]  # fmt: skip
    (shown,) = evaluated["evaluations"][0]["numbers"]
    assert (shown["value"], shown["ci95"], shown["higher_is_better"]) == (0.3, [0.1, 0.5], False)
    alone = read_run(write_run(tmp_path / "b", *rows), 100)
    assert [(one["name"], one["is_share"]) for one in alone["numbers"]] == [("error", False), ("accuracy", True)]
    # right or wrong tells the accuracy already
    assert [one["numbers"] for one in alone["rollouts"]] == [{"error": 0.1}, {"error": 1.0}, {}]
    assert [one["name"] for one in read_run(write_run(tmp_path / "c"), 100)["numbers"]] == ["accuracy"]


def test_pictures_that_turns_brought_are_not_the_prompts(tmp_path: Path) -> None:
    def turn(kind: str, *media: str) -> dict[str, Any]:
        return {"kind": kind, "text": "", "media": list(media), "finish_reason": ""}

    rows = [
        row("A", "A", media=["p", "q", "x"], turns=[turn("sampled"), turn("environment", "x"), turn("sampled")]),
        # the last reply ended the rollout: the policy never saw its picture
        row("A", "A", media=["p", "x"], turns=[turn("environment", "x"), turn("sampled"), turn("environment", "y")]),
        row("A", "A", media=["p", "q"]),
    ]
    shown = read_run(write_run(tmp_path / "run", *rows), 100)["rollouts"]
    assert [one["prompt_media"] for one in shown] == [["p", "q"], ["p"], ["p", "q"]]
    assert [turn["media"] for turn in shown[1]["turns"]] == [["x"], [], ["y"]]
