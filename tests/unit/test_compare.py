"""Several samples per row, paired tests, and the table of `timemaster.results.compare`, with a local server for API models."""

from __future__ import annotations

import asyncio
import csv
import json
import math
import sqlite3
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.helpers import answer_of
from tests.servers import ChatServer, completion, says
from timemaster.config import Config
from timemaster.config.resolve import resolve
from timemaster.data.store import plot_row, read_examples, write_rows
from timemaster.evaluate import Target, write_results
from timemaster.metrics.answers import Answer
from timemaster.metrics.classification import majority_label, pass_at_k
from timemaster.metrics.summary import summarise
from timemaster.results.compare import compare, main, names_of_runs, parser, run_entries
from timemaster.results.predictions import read_predictions, write_predictions
from timemaster.results.prompting import choose_shots
from timemaster.series.plot import draw_png
from timemaster.series.splits import Series
from timemaster.tasks import load_task
from timemaster.types import Group, InputError, Rollout, Score

TASK = load_task("recipes.ctu")
D, L = TASK.labels  # Desktop, Laptop


def answer(truth: str, predicted: str | None) -> Answer:
    score = float(truth == predicted)
    return answer_of(TASK.data_source, truth, predicted, [D, L], score=score, tokens=3, prompt_tokens=100)


# ---- several samples of a row


@pytest.mark.parametrize(
    ("predicted", "winner"),
    [
        ([D, L, L], L),
        ([D, L, L, D], L),  # two each: Laptop had two first
        ([None, None, D], D),  # unparsed answers do not vote
        ([None, None], None),
    ],
)
def test_majority_vote(predicted: list[str | None], winner: str | None) -> None:
    assert majority_label(predicted) == winner


def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_answer() -> None:
    right = [True, True, False, False, False]
    for k in range(1, 6):
        subsets = list(combinations(right, k))
        assert pass_at_k(5, 2, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_at_k(8, 0, 8) == 0.0


def test_figures_of_samples_by_hand() -> None:
    items = [
        [answer(D, D), answer(D, D), answer(D, L)],  # 2 of 3 right, vote right
        [answer(L, None), answer(L, D), answer(L, L)],  # 1 of 3, vote D (first), wrong
        [answer(L, None), answer(L, None), answer(L, None)],  # vote unparsed
    ]
    got = summarise(items, {})
    assert (got["n"], got["num_samples"], got["unparsed"]) == (3, 3, 4)
    assert got["accuracy"] == pytest.approx(3 / 9)
    assert got["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert got["majority"]["unparsed"] == 1
    at_2 = ((1 - 0 / 3) + (1 - 1 / 3) + 0) / 3  # C(1, 2) = 0, C(2, 2) = 1, C(3, 2) = 3, each over C(3, 2) = 3
    assert {k: one["value"] for k, one in got["pass_at_k"].items()} == pytest.approx(
        {"1": 1 / 3, "2": at_2, "3": 2 / 3}
    )


def test_the_bootstrap_draws_items_and_is_seeded() -> None:
    items = [[answer(D, D)] * 4 if i % 2 else [answer(D, L)] * 4 for i in range(100)]
    got = summarise(items, {}, seed=1)
    half = 1.96 * math.sqrt(0.25 / 100)  # 100 items, not 400 answers: 0.098
    assert got["accuracy_ci95"] == pytest.approx([0.5 - half, 0.5 + half], abs=0.02)
    assert got == summarise(items, {}, seed=1)
    assert got["majority"]["accuracy_ci95"] == got["accuracy_ci95"]  # the same draws of items for all


def test_figures_without_spread_keep_an_honest_interval() -> None:
    got = summarise([[answer(D, D)] * 2] * 12, {})
    # Wilson for 12 of 12: 12 / (12 + 1.96^2) = 0.7575
    assert got["accuracy_ci95"] == pytest.approx([0.7575, 1.0], abs=1e-4)


def test_sampling_several_needs_a_temperature(cfg: Config) -> None:
    cfg.data.test_files, cfg.data.recipes, cfg.eval.n = ["test.parquet"], ["recipes.ctu"], 8
    with pytest.raises(InputError, match=r"eval\.n=8: must be 1 with eval\.temperature=0\. .*eval\.temperature too"):
        resolve(cfg, "eval")
    cfg.eval.temperature = 0.7
    assert resolve(cfg, "eval").eval.n == 8


def rollout(name: str, label: str | None) -> Rollout:
    text = f"<think>so</think><class>{label}</class>" if label else "I cannot tell"
    parts = {"accuracy": float(label == D), "format": float(label is not None)}
    return Rollout(
        id=name, token_ids=[0] * 9, mask=[0] * 7 + [1, 1], logprobs=[0.0] * 9, versions=[0] * 9, media=[], text=text,
        finish_reason="stop", score=Score(total=parts["accuracy"], parts=parts),
    )  # fmt: skip


# ---- a folder of data and predictions about it


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six test rows, Desktop and Laptop in turns, and a training split of twelve; a laptop's line rises."""
    folder = tmp_path_factory.mktemp("data")
    for split, size in (("train", 8), ("validation", 4), ("test", 6)):
        rows = []
        for i in range(size):
            values = [math.sin(t * (i + 2)) * 0.1 + (t / 20 if i % 2 else 0) for t in range(40)]
            series = Series([values], TASK.labels[i % 2], i)
            rows.append(plot_row(series, draw_png(series, TASK.plot), TASK.question, TASK.data_source, split))
        write_rows(folder / f"{split}.parquet", rows)
    return folder


def predictions_file(data: Path, folder: Path, said: str) -> Path:
    """Answers to the test rows: D, L, or anything else for unparsed."""
    examples, _ = read_examples([str(data / "test.parquet")])
    label = {"D": D, "L": L}
    outside = TASK.evaluation.outside_answer
    return write_predictions(folder, [[outside(e, c, label.get(c))] for e, c in zip(examples, said, strict=True)])


def options(data: Path, *more: str) -> Any:
    return parser().parse_args(["recipes.ctu", "--data", str(data), *more])


def test_an_evaluation_with_samples_writes_a_line_each(cfg: Config, data: Path, tmp_path: Path) -> None:
    cfg.data.test_files, cfg.data.recipes = [str(data / "test.parquet")], ["recipes.ctu"]
    cfg.eval.temperature, cfg.eval.n = 0.7, 3
    target = Target(40, "model", False, cfg.eval.temperature, cfg.eval.n)
    assert target.name == "step_40_t0.7_n3"
    assert Target(40, "model", True, 0.0, rows="validation").name == "step_40_validation_blank"
    example = read_examples(cfg.data.test_files)[0][0]
    groups = [Group(example, [rollout(example.id, label) for label in (L, D, D)])]
    metrics = write_results(tmp_path / target.name, cfg, target, groups)
    assert json.loads((tmp_path / target.name / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert metrics["majority"]["accuracy"] == 1.0
    assert metrics["prompt_tokens_mean"] == 7.0  # the mask's zeros before the first sampled token
    path = tmp_path / target.name / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["sample"], line["prediction"]) for line in lines] == [(0, L), (1, D), (2, D)]
    assert read_predictions(path, TASK.data_source, TASK.evaluation)[example.id].prediction == D
    one = write_results(
        tmp_path / "one", cfg, Target(40, "model", False, 0.0), [Group(example, groups[0].rollouts[:1])]
    )
    assert not {"majority", "pass_at_k", "num_samples"} & set(one)
    assert "sample" not in json.loads((tmp_path / "one" / "predictions.jsonl").read_text(encoding="utf-8"))


def test_evaluations_of_other_rows_are_no_rows_of_the_table(tmp_path: Path) -> None:
    names = ("step_4", "step_4_blank", "step_40_t0.7_n8", "step_4_validation", "step_4_t0.7_short_blank")
    for name in names:
        (tmp_path / "eval" / name).mkdir(parents=True)
        (tmp_path / "eval" / name / "predictions.jsonl").write_text("", encoding="utf-8")
    assert [entry.name for entry in run_entries(tmp_path, "mine")] == [f"mine/{name}" for name in names[:3]]
    for name in names[:3]:
        (tmp_path / "eval" / name / "predictions.jsonl").unlink()
    with pytest.raises(InputError, match=r"only of other rows: step_4_t0\.7_short_blank, step_4_validation\)"):
        run_entries(tmp_path, "mine")


def test_runs_are_called_by_as_many_folders_as_tell_them_apart(tmp_path: Path) -> None:
    one, two, three = tmp_path / "ctu" / "grpo", tmp_path / "ctu_numeric" / "grpo", tmp_path / "ctu" / "sft"
    assert list(names_of_runs([one, three]).values()) == ["grpo", "sft"]
    assert list(names_of_runs([one, two, three]).values()) == ["ctu/grpo", "ctu_numeric/grpo", "ctu/sft"]
    assert names_of_runs([]) == {}


def test_options_that_are_given_twice_add_up() -> None:
    given = [
        "recipes.ctu",
        "--data",
        "d",
        "--runs",
        "x",
        "--runs",
        "y",
        "z",
        "--predictions",
        "a=1",
        "--predictions",
        "b=2",
    ]
    options = parser().parse_args(given)
    assert (options.runs, options.predictions) == (["x", "y", "z"], ["a=1", "b=2"])


# ---- McNemar


def test_mcnemar_by_hand() -> None:
    truth = {str(i): D for i in range(12)}
    first = {key: answer(D, L if key in ("0", "1") else D) for key in truth}  # 10 right
    second = {key: answer(D, D if key in ("0", "2", "3") else None) for key in truth}  # 3 right: 0, 2, 3
    got = TASK.evaluation.paired_test(first, second)
    # only the first: 4 to 11, eight; only the second: 0. p = 2 (C(9, 0) + C(9, 1)) / 2^9 = 20 / 512
    assert (got.first_larger, got.second_larger) == (8, 1)
    assert got.p == pytest.approx(20 / 512)
    assert TASK.evaluation.paired_test(second, first).p == got.p
    assert TASK.evaluation.paired_test(first, first).p == 1.0


def test_pairs_must_be_about_the_same_rows() -> None:
    first = {"a:0": answer(D, D), "a:1": answer(L, L), "a:2": answer(L, L)}
    with pytest.raises(InputError, match=r"mine and theirs .*2 are only in mine \['a:1'\] and 1 are only in theirs"):
        TASK.evaluation.paired_test(first, {"a:0": answer(D, D), "b:7": answer(D, D)}, ("mine", "theirs"))
    with pytest.raises(InputError, match=r"1 examples have different truths, such as a:0: 'Desktop' and 'Laptop'"):
        TASK.evaluation.paired_test(first, {**first, "a:0": answer(L, L)})


# ---- the table


def test_checkpoints_files_and_quoted_rows_make_one_table(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    for name, said in (("step_40", "DLDLDD"), ("step_5", "DDDDDD"), ("step_40_blank", "DLDLDL")):
        predictions_file(data, run / "eval" / name, said)
    other = predictions_file(data, tmp_path / "other", "L???DL")
    given = options(data, "--runs", str(run), "--predictions", f"theirs={other}", "--out", str(tmp_path / "out"))
    results = {one.name: one for one in compare(TASK, given)}
    assert list(results) == ["mine/step_5", "mine/step_40", "mine/step_40_blank", "theirs"]  # truths: DLDLDL
    assert results["mine/step_40"].value == pytest.approx(5 / 6)
    assert results["mine/step_40"].p is None  # the reference: blanked images are no competitor
    theirs = results["theirs"]
    assert (theirs.value, theirs.unparsed) == (pytest.approx(2 / 6), 0.5)  # unparsed ones stay in the denominator
    # Rows 0 to 3 only step_40 has right, row 4 both, row 5 only theirs.
    assert theirs.p == pytest.approx(2 * (1 + 5) / 2**5)
    text = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "| TimeMaster 3B SFT+RL, plots (quoted) " in text
    assert "unknown |   84.4 % |" in text
    assert "quoted, not reproduced here" in text
    with open(tmp_path / "out" / "compare.csv", encoding="utf-8") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["theirs"]["low95"]) == pytest.approx(theirs.ci95[0])
    assert rows["TimeMaster 3B SFT+RL, plots"]["n"] == rows["TimeMaster 3B SFT+RL, plots"]["low95"] == ""
    assert (tmp_path / "out" / "compare.png").read_bytes()[:4] == b"\x89PNG"
    named = options(data, "--runs", str(run), "--reference", "mine/step_5", "--out", str(tmp_path / "out"))
    assert [one.name for one in compare(TASK, named) if one.p is None] == ["mine/step_5"]


def test_wrong_input_is_refused_with_advice(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = predictions_file(data, tmp_path / "short", "DLDLDL")
    short.write_text("".join(short.read_text(encoding="utf-8").splitlines(keepends=True)[:5]), encoding="utf-8")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": "test.parquet:0"}\n', encoding="utf-8")
    for arguments, message in (
        (["--runs", str(tmp_path)], "no eval/step_*/predictions.jsonl: evaluate the run first"),
        (["--predictions", "file.jsonl"], "write NAME=FILE"),
        (["--predictions", f"a={tmp_path}/none"], "does not exist"),
        (["--predictions", f"a={broken}"], "line 1: not a line of predictions"),
        (["--predictions", f"short={short}"], "1 are only in"),
        (["--predictions", f"a={short}", f"a={short}"], "Two rows are called 'a'"),
        (["--baselines", "1nn_cosine"], "there are 1nn_euclid, 1nn_dtw, rocket"),
        (["--baselines", "1nn_dtw", "--dtw-window", "12"], "0 < window <= 1"),
        (["--zero-shot"], "need --model NAME"),
        (["--model", "gpt-4o"], "needs --zero-shot, --few-shot K"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["recipes.ctu", "--data", str(data), "--out", str(tmp_path / "out"), *arguments])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_what_is_wrong_is_said_before_anything_is_computed_or_asked(data: Path, tmp_path: Path) -> None:
    short = predictions_file(data, tmp_path / "short", "DLDLDL")
    short.write_text("".join(short.read_text(encoding="utf-8").splitlines(keepends=True)[:5]), encoding="utf-8")
    whole = predictions_file(data, tmp_path / "whole", "DLDLDL")
    out = tmp_path / "out"
    with ChatServer(says("<class>Laptop</class>")) as server:
        api = ["--base-url", server.url, "--model", "m", "--out", str(out)]
        for arguments, message in (
            ([], "needs --zero-shot"),
            (["--few-shot", "-1"], "1 or more"),
            (["--zero-shot", "--concurrency", "0"], "1 or more"),
            (["--zero-shot", "--predictions", f"short={short}"], "1 are only in"),
            (["--zero-shot", "--predictions", f"m zero-shot={whole}"], "Two rows are called 'm zero-shot'"),
            (["--zero-shot", "--reference", "rocket"], "--reference rocket: the rows are 1nn_euclid, m zero-shot"),
            (["--zero-shot", "--few-shot", "9"], "has 6 rows to choose from"),
            (["--zero-shot", "--base-url", "host:8000"], "is not an address"),
        ):
            with pytest.raises(InputError, match=message):
                compare(TASK, options(data, "--baselines", "1nn_euclid", *api, *arguments))
            assert not (out / "1nn_euclid").exists(), arguments
        assert server.requests == []


def test_lines_end_at_a_line_feed_only(data: Path, tmp_path: Path) -> None:
    path = predictions_file(data, tmp_path, "DLDLDL")
    rows = [
        json.loads(line) | {"response": "a\u2028b\u2029c\x85d"}
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert len(read_predictions(path, TASK.data_source, TASK.evaluation)) == 6


# ---- API models


def test_examples_for_few_shot_are_balanced_and_seeded(data: Path) -> None:
    train, _ = read_examples([str(data / "train.parquet")])
    chosen = choose_shots(train, TASK.labels, 3, seed=1)
    assert sorted(example.answer for example in chosen) == [D] * 3 + [L] * 3
    assert chosen == choose_shots(train, TASK.labels, 3, seed=1)
    assert chosen != choose_shots(train, TASK.labels, 3, seed=2)
    with pytest.raises(InputError, match="--few-shot 5: the class Desktop has 4 rows"):
        choose_shots(train, TASK.labels, 5, seed=1)


class Pupil:
    """Knows the test plots: right for rows 0, 1 and 4, wrong for 2, unreadable for 3; one 500 for 4, `ill` for 5."""

    def __init__(self, data: Path) -> None:
        from timemaster.judge import image_part

        examples, _ = read_examples([str(data / "test.parquet")])
        media = [part.media for e in examples for part in e.messages[0].parts if part.media]
        self.rows = {image_part(one.data or b"")["image_url"]["url"]: k for k, one in enumerate(media)}
        self.failed, self.ill = False, False

    async def __call__(self, server: ChatServer, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        (url,) = [p["image_url"]["url"] for p in body["messages"][-1]["content"] if p["type"] == "image_url"]
        row = self.rows[url]
        if (row == 5 and self.ill) or (row == 4 and not self.failed):
            self.failed |= row == 4
            return web.json_response({"error": {"message": "overloaded"}}, status=500)
        label = {0: D, 1: L, 2: L, 3: "neither", 4: D, 5: D}[row]
        return web.json_response(completion(f"<think>hm</think><class>{label}</class>"))


def test_api_models_answer_zero_shot_and_few_shot_within_budget_and_cache(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ChatServer(Pupil(data)) as server:
        api = ["--model", "pupil", "--base-url", server.url, "--max-retries", "1", "--out", str(out)]
        both = options(data, *api, "--zero-shot", "--few-shot", "2")
        results = {one.name: one for one in compare(TASK, both)}
        assert list(results) == ["pupil zero-shot", "pupil 2-shot"]
        zero = results["pupil zero-shot"]
        assert (zero.n, zero.value, zero.unparsed) == (6, 0.5, pytest.approx(1 / 6))  # 0, 1 and 4 of six
        bodies = {len(body["messages"]): body for body in server.requests}
        assert set(bodies) == {1, 9}  # 2 examples of 2 classes, a question and an answer each, and the question
        turns = bodies[9]["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4 + ["user"]
        assert (
            sorted(turn["content"] for turn in turns[1::2]) == [f"<class>{D}</class>"] * 2 + [f"<class>{L}</class>"] * 2
        )
        text = "".join(part.get("text", "<image>") for part in turns[-1]["content"])
        assert text == TASK.question
        lines = [
            json.loads(line)
            for line in (out / "pupil_zero-shot" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert [line["prediction"] for line in lines] == [D, L, L, None, D, D]
        before = len(server.requests)
        assert before == 6 + 6 + 1  # both ways, and the second try of row 4
        compare(TASK, options(data, *api, "--zero-shot"))
        assert len(server.requests) == before


def test_calls_that_failed_for_good_are_no_row_and_alone_are_asked_again(data: Path, tmp_path: Path) -> None:
    pupil, out = Pupil(data), tmp_path / "out"
    pupil.ill = True
    with ChatServer(pupil) as server:
        api = ["--model", "pupil", "--base-url", server.url, "--max-retries", "1", "--out", str(out), "--zero-shot"]
        with pytest.raises(
            InputError, match=r"pupil zero-shot: 1 of 6 calls failed for good \(the first: .*overloaded"
        ):
            compare(TASK, options(data, *api))
        assert not (out / "compare.md").exists()
        before = len(server.requests)
        pupil.ill = False
        (row,) = compare(TASK, options(data, *api))
        assert (row.n, row.value) == (6, 0.5)
        assert len(server.requests) == before + 1


@pytest.mark.parametrize(
    ("first_status", "more", "num_kept", "message"),
    [
        (200, ["--max-calls", "3"], 3, r"budget of 'compare' is used up \(3 calls"),
        (401, [], 2, "Check base_url"),
    ],
)
def test_calls_in_flight_are_kept_when_no_more_can_be_made(
    data: Path, tmp_path: Path, first_status: int, more: list[str], num_kept: int, message: str
) -> None:
    """Three at once: the first answer comes at once, the others while it is known that no fourth can be asked for."""

    async def answer(server: ChatServer, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        if len(server.requests) == 1:
            return web.json_response(completion(f"<class>{D}</class>"), status=first_status)
        await asyncio.sleep(0.5)
        return web.json_response(completion(f"<class>{D}</class>"))

    with ChatServer(answer) as server:
        api = ["--model", "m", "--base-url", server.url, "--zero-shot", "--concurrency", "3", "--max-retries", "0"]
        with pytest.raises(InputError, match=message):
            compare(TASK, options(data, *api, *more, "--out", str(tmp_path)))
        assert len(server.requests) == 3
    with closing(sqlite3.connect(tmp_path / "replies.sqlite")) as replies:
        assert replies.execute("SELECT count(*) FROM replies").fetchone() == (num_kept,)


def test_one_answer_per_row_is_summarised_as_ever() -> None:
    got = summarise([[answer(D, D)], [answer(L, None)]], {})
    assert got["accuracy"] == 0.5
    assert got["prompt_tokens_mean"] == 100.0
