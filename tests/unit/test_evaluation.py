"""The contract of an evaluation with a kind that the library does not have: means, intervals, paired tests, rows."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.height import SOURCE, MeanError
from tests.helpers import answer_of, picture, question
from timemaster.data.store import plot_row, write_rows
from timemaster.metrics.answers import Answer, from_row, to_row
from timemaster.metrics.classification import Classification
from timemaster.metrics.evaluation import Number, answers_of
from timemaster.metrics.intervals import bootstrap
from timemaster.metrics.paired import MAX_EXACT, sign_flip
from timemaster.metrics.summary import headline_of, in_words, summarise, training_numbers, validation_metrics
from timemaster.series.splits import Series
from timemaster.tasks import prepare, traces
from timemaster.tasks.audit import audit
from timemaster.types import Group, InputError, Media, Rollout, Score, Turn

HEIGHT = MeanError()


def answered(truth: str, response: str, name: str = "test.parquet:0", score: float = 0.5) -> Answer:
    answer = Answer(id=name, data_source=SOURCE, truth=truth, prediction=None, response=response, score=score, tokens=4)
    return HEIGHT.read_answer(answer)


def rollout(text: str, turns: list[Turn] | None = None) -> Rollout:
    return Rollout(
        id="r", token_ids=[1, 2, 3], mask=[0, 1, 1], logprobs=[0.0] * 3, versions=[-1, 0, 0], media=[], text=text,
        finish_reason="stop", turns=turns or [], score=Score(total=0.5, parts={"closeness": 0.5}),
    )  # fmt: skip


# ---- commands of one kind of task


def test_commands_of_series_classification_refuse_another_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        prepare.main(["tests.e2e.height"])
    assert stopped.value.code == 1
    assert "Task 'height' is a Task; prepare works with SeriesClassification only" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="traces works with SeriesClassification only"):
        traces.main(["tests.e2e.height", "--data", "a.parquet", "--out", "b.parquet", "--explainer"])


def test_an_audit_lists_no_classes_where_answers_are_numbers(tmp_path: Path) -> None:
    png = picture(1).data or b""
    rows = [plot_row(Series([[float(i), 1.0]], str(i), i), png, "<image>?", SOURCE, "train") for i in range(101)]
    write_rows(tmp_path / "train.parquet", rows)
    report = audit([tmp_path / "train.parquet"])
    assert "101 different answers: no classes" in str(report)
    assert not (tmp_path / "train_sheet.png").exists()
    assert not report.serious


# ---- numbers of an answer, and of all


def test_answers_are_read_and_measured() -> None:
    near, none = answered("4.0", "about 4.5"), answered("4.0", "no idea")
    assert (near.prediction, near.outcome) == ("4.5", "measured")
    assert near.numbers == {"error": pytest.approx(0.05), "close": 1.0}
    assert (none.prediction, none.outcome, none.numbers) == (None, "unparsed", {"error": 1.0, "close": 0.0})


def test_figures_by_hand() -> None:
    got = summarise([[answered("4.0", "4.5")], [answered("4.0", "7.0")], [answered("4.0", "?")]], {SOURCE: HEIGHT})
    assert (got["n"], got["unparsed"], got["unmeasured"]) == (3, 1, 0)
    assert got["error"] == pytest.approx((0.05 + 0.3 + 1.0) / 3)
    assert 0.05 <= got["error_ci95"][0] < got["error"] < got["error_ci95"][1] <= 1.0
    assert got["close"] == pytest.approx(1 / 3)
    # Wilson for 1 of 3: centre (1/3 + 1.2805/2) / 2.2805 = 0.4269, half 1.96 / 2.2805 * sqrt(2/27 + 0.1067) = 0.3654
    assert got["close_ci95"] == pytest.approx([0.0615, 0.7923], abs=2e-4)
    headline = headline_of(got)
    assert headline is not None
    assert (headline.number.name, headline.value, headline.number.higher_is_better) == ("error", got["error"], False)
    assert in_words(got).startswith(f"{headline} of 3 rows, close 0.333, unparsed 1, reward 0.500")
    logged = validation_metrics(got)
    assert (logged["val/error"], logged["val/unparsed"]) == (got["error"], pytest.approx(1 / 3))


def test_samples_of_a_row_are_averaged_before_the_interval() -> None:
    items = [[answered("0.0", "0"), answered("0.0", "10")]] * 8
    got = summarise(items, {SOURCE: HEIGHT})
    assert (got["n"], got["num_samples"], got["error"]) == (8, 2, 0.5)
    assert got["error_ci95"] == [0.5, 0.5]  # each row has the mean 0.5: between the rows nothing varies
    assert HEIGHT.vote(items[0]).numbers == {"error": 0.5, "close": 0.0}  # one of two is no majority


def test_an_evaluation_of_shares_alone_is_tested_by_mcnemar() -> None:
    class Close(MeanError):
        numbers = (Number(name="close", is_share=True),)

    close = Close()
    first = {str(i): close.read_answer(answered("4.0", "4.2", str(i))) for i in range(6)}
    second = {key: close.read_answer(answered("4.0", "9.0", key)) for key in first}
    assert [first["0"].outcome, second["0"].outcome] == ["right", "wrong"]
    assert close.paired_test(first, second).p == 2 / 2**6
    got = summarise([[answer] for answer in first.values()], {SOURCE: close})
    # Wilson for 6 of 6: 6 / (6 + 1.96^2) = 0.6097
    assert (got["close"], got["close_ci95"]) == (1.0, pytest.approx([0.6097, 1.0], abs=1e-4))


def test_kinds_are_not_mixed_in_one_number() -> None:
    items = [[answered("4.0", "4.5")], [answer_of("ctu", "Laptop", "Laptop", ["Desktop", "Laptop"], score=1.0)]]
    got = summarise(items, {SOURCE: HEIGHT, "ctu": Classification(labels=("Desktop", "Laptop"))})
    assert (got["numbers"], headline_of(got), got["reward_mean"]) == ([], None, 0.75)
    assert got["by_data_source"][SOURCE]["error"] == pytest.approx(0.05)
    assert got["by_data_source"]["ctu"]["accuracy"] == 1.0
    logged = validation_metrics(got)
    assert logged[f"val/error@{SOURCE}"] == pytest.approx(0.05)
    assert logged["val/accuracy@ctu"] == 1.0
    assert not {"val/error", "val/accuracy"} & logged.keys()


def test_a_training_step_tells_the_numbers_of_each_kind() -> None:
    example = replace(question("r", [], answer="4.0"), data_source=SOURCE)
    other = replace(question("s", [], answer="x"), data_source="own")
    told = replace(rollout("x"), score=Score(total=0.0, parts={"score": 0.0, "score/acc": 1.0}))
    groups = [Group(example, [rollout("4.5"), rollout("?")]), Group(other, [told])]
    got = training_numbers(groups, {SOURCE: HEIGHT})
    assert got == {"answer/error": pytest.approx(0.525), "answer/close": 0.5, "reward/accuracy": 1.0}


def test_a_number_that_measure_leaves_out_is_named() -> None:
    class Careless(MeanError):
        numbers = (*MeanError.numbers, Number(name="speed"))

    with pytest.raises(InputError, match=r"test.parquet:0: Careless.measure gives no finite speed for .* None"):
        Careless().measured(Answer(id="test.parquet:0", data_source=SOURCE, truth="4.0", prediction=None))


# ---- intervals and paired tests


def test_the_bootstrap_of_a_mean_has_the_width_of_its_standard_error() -> None:
    values = [float(i % 10) for i in range(400)]  # standard deviation sqrt(8.25)
    low, high = bootstrap({"x": values}, seed=1)["x"]
    half = 1.96 * math.sqrt(8.25 / 400)
    assert (low, high) == (pytest.approx(4.5 - half, abs=0.03), pytest.approx(4.5 + half, abs=0.03))
    assert bootstrap({"x": values}, seed=1)["x"] == [low, high]
    assert bootstrap({"x": values}, seed=2)["x"] != [low, high]


def test_sign_flips_of_few_pairs_are_counted_out() -> None:
    first, second = [0.5, 0.7, 0.2, 0.9, 0.4], [0.1, 0.3, 0.4, 0.2, 0.4]  # differences 0.4, 0.4, -0.2, 0.7, none
    differences = [0.4, 0.4, -0.2, 0.7]
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in itertools.product((1, -1), repeat=4)
    ]
    got = sign_flip(first, second)
    assert got.p == pytest.approx(sum(abs(one) >= 1.3 - 1e-9 for one in sums) / 16)
    assert (got.first_larger, got.second_larger) == (3, 1)
    assert sign_flip(second, first).p == got.p
    assert sign_flip(first, first).p == 1.0


def test_sign_flips_of_many_pairs_are_drawn_with_a_seed() -> None:
    n = 10 * MAX_EXACT
    alike = [0.1 if i % 2 else -0.1 for i in range(n)]
    assert sign_flip(alike, [0.0] * n).p == 1.0  # the sum is 0: no flip has a smaller one
    larger = [0.1] * n
    assert sign_flip(larger, [0.0] * n).p == pytest.approx(1 / 10_001)  # the observed one alone
    some = [0.1 if i % 8 else -0.5 for i in range(n)]  # mean 0.025, standard error about 0.016
    assert sign_flip(some, [0.0] * n, seed=1) == sign_flip(some, [0.0] * n, seed=1)
    assert 0.05 < sign_flip(some, [0.0] * n).p < 0.3


def test_pairs_of_real_numbers_are_tested_by_sign_flips() -> None:
    ids = [f"test.parquet:{i}" for i in range(8)]
    good = {name: answered("4.0", "4.5", name) for name in ids}
    bad = {name: answered("4.0", "?", name) for name in ids}
    assert HEIGHT.test_name == "sign-flip permutation test"
    assert HEIGHT.paired_test(good, bad).p == pytest.approx(2 / 2**8)  # all differences have one sign


# ---- the row


def test_a_row_is_read_as_it_was_written() -> None:
    answer = answered("4.0", "about 4.5")
    assert from_row(to_row(answer)) == answer
    unread = replace(answer, is_read=False, prediction=None, numbers={}, outcome="")
    row = to_row(unread)
    assert not {"prediction", "numbers", "outcome", "turns", "choices", "is_read"} & row.keys()
    assert from_row(row) == unread


def test_a_row_of_an_older_version_has_less() -> None:
    answer = from_row({"id": "a", "data_source": "x", "truth": "T", "prediction": None, "score": None, "parts": None})
    assert (answer.prediction, answer.is_read, answer.parts, answer.turns, answer.tokens) == (None, True, {}, [], 0)
    for wrong in ({"id": 3}, {"truth": None}, {"prediction": ["T"]}, {"data_source": None}):
        with pytest.raises(InputError, match=rf"{next(iter(wrong))} is"):
            from_row({"id": "a", "data_source": "x", "truth": "T", "prediction": None} | wrong)


def test_several_turns_stand_in_the_row_and_a_single_one_is_the_response() -> None:
    picture = Media(kind="image", uid="9f2c", data=b"")
    turns = [
        Turn(kind="sampled", text="<crop>", finish_reason="stop_string"),
        Turn(kind="environment", text="here", media=[picture]),
        Turn(kind="sampled", text="4.5", finish_reason="stop"),
    ]
    example = question("r", [], answer="4.0")
    (answer,) = answers_of(Group(example, [rollout("<crop>\n4.5", turns)]), HEIGHT)
    assert to_row(answer)["turns"] == [
        {"kind": "sampled", "text": "<crop>", "media": [], "finish_reason": "stop_string"},
        {"kind": "environment", "text": "here", "media": ["9f2c"], "finish_reason": ""},
        {"kind": "sampled", "text": "4.5", "media": [], "finish_reason": "stop"},
    ]
