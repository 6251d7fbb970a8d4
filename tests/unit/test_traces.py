"""Traces: right answers are kept, wrong ones listed, classes balanced, calls never repeated, budgets kept."""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.helpers import picture
from tests.servers import Answer, ChatServer, fails, replies
from timemaster.data.store import plot_row, read_examples, write_rows
from timemaster.models.folder import load_model_config
from timemaster.models.vision import vision_spec
from timemaster.series.splits import Series
from timemaster.tasks import demonstration, load_task
from timemaster.tasks.prepare import small_variant
from timemaster.tasks.traces import main
from timemaster.tokens.render import Renderer
from timemaster.types import Example

LABELS = ("Desktop", "Laptop")
QUESTION = "<image>Desktop or Laptop?"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six desktops and four laptops as recipes.ctu's rows, with the label readable from the first value alone."""
    rows = []
    for i in range(10):
        label = LABELS[i in (1, 3, 5, 7)]
        values = [float(i), *(random.Random(i).random() for _ in range(7))]
        rows.append(plot_row(Series([values], label, i), picture(i).data or b"", QUESTION, "computer_dataset", "train"))
    path = tmp_path / "train.parquet"
    write_rows(path, rows)
    return path


def knows(data: Path, say: Callable[[str, int, int], str]) -> Answer:
    """A model that knows the plots: it answers say(label, row, number of the try)."""
    rows = {row["images"][0]["bytes"]: (row["answer"], i) for i, row in enumerate(pq.read_table(data).to_pylist())}

    def reply(body: dict[str, Any]) -> str:
        url = next(part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url")
        label, row = rows[base64.b64decode(url.split(",")[1])]
        return say(label, row, body["seed"] % 1000)

    return replies(reply)


def right(label: str) -> str:
    return f"<think>I see a {label.lower()}'s day.</think><class>{label}</class>"


def asking(server: ChatServer) -> list[str]:
    return ["--base-url", server.url, "--model", "m"]


def run(server: ChatServer, data: Path, *options: str) -> list[Example]:
    """Start the command; gives what it wrote."""
    out = data.parent / "traces.parquet"
    rude = ["--max-retries", "0", "--timeout", "20"]
    main(["recipes.ctu", "--data", str(data), "--out", str(out), *asking(server), *rude, *options])
    return read_examples([str(out)])[0]


def listed(data: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (data.parent / "traces.rejected.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_right_answers_become_rows_for_sft_and_classes_are_balanced(
    data: Path, tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with ChatServer(knows(data, lambda label, row, number: f"\n{right(label)}\n")) as server:
        found = run(server, data)
    assert Counter(example.answer for example in found) == {"Desktop": 4, "Laptop": 4}
    assert len(server.requests) == 10
    renderer = Renderer(tiny, vision_spec(load_model_config(tiny), 784, 50176))
    for example in found:
        assert [m.role for m in example.messages] == ["user", "assistant"]
        assert example.messages[1].parts[0].text == right(example.answer)
        assert sum(renderer.sample(example).mask) > 10
    original = pq.read_table(data).to_pylist()
    for row in pq.read_table(data.parent / "traces.parquet").to_pylist():
        source = original[row["extra_info"]["index"]]
        assert row["prompt"][:1] == source["prompt"]
        assert {k: v for k, v in row.items() if k != "prompt"} == {k: v for k, v in source.items() if k != "prompt"}
    body = server.requests[0]
    assert (body["temperature"], body["max_tokens"]) == (1.0, 1024)
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url", "text"]
    assert listed(data) == []
    for line in ("10 calls now, 10 with earlier ones", "10 rows with a right answer, of 10", "6   Desktop, 4 written"):
        assert line in caplog.text


def test_a_row_is_asked_again_with_another_seed_until_it_is_right(data: Path) -> None:
    """Try 1 names the other class, try 2 forgets to think, try 3 is right: 3 x 10 calls, 20 of them listed."""

    def say(label: str, row: int, number: int) -> str:
        other = LABELS[label == "Desktop"]
        return {1: right(other), 2: f"<class>{label}</class>"}.get(number, right(label))

    with ChatServer(knows(data, say)) as server:
        assert len(run(server, data, "--tries", "3")) == 8
    assert len(server.requests) == 30
    assert len({body["seed"] for body in server.requests}) == 3
    rejected = listed(data)
    assert [(row["row"], row["try"]) for row in rejected] == [(i, number) for i in range(10) for number in (1, 2)]
    assert {row["reason"] for row in rejected if row["try"] == 1} == {"accuracy is 0.0"}
    assert {row["reason"] for row in rejected if row["try"] == 2} == {"format is 0.0"}
    assert rejected[0]["text"] == right("Laptop")
    assert rejected[0]["answer"] == "Desktop"


def test_the_smallest_class_sets_the_number_and_tries_are_bounded(data: Path) -> None:
    """Of the laptops only row 3 is ever right: one of each class; 3 x 4 wrong tries, 6 + 1 right ones."""

    def say(label: str, row: int, number: int) -> str:
        return right(label if label == "Desktop" or row == 3 else "Desktop")

    with ChatServer(knows(data, say)) as server:
        found = run(server, data)
    assert sorted(example.answer for example in found) == ["Desktop", "Laptop"]
    assert len(server.requests) == 3 * 4 + 6 + 1
    assert len(listed(data)) == 12


def test_without_a_right_answer_of_a_class_nothing_is_written_unless_asked_for(data: Path) -> None:
    with ChatServer(knows(data, lambda label, row, number: right("Desktop"))) as server:
        with pytest.raises(
            SystemExit, match=r"Desktop 6, Laptop 0; every class needs one.*accuracy is 0\.0.*--per-class"
        ):
            run(server, data, "--tries", "1")
        assert not (data.parent / "traces.parquet").exists()
        assert [example.answer for example in run(server, data, "--tries", "1", "--per-class", "2")] == ["Desktop"] * 2
    assert len(server.requests) == 10  # the second start found all in the cache


def test_per_class_stops_asking_when_it_has_enough(data: Path) -> None:
    with ChatServer(knows(data, lambda label, row, number: right(label))) as server:
        found = run(server, data, "--per-class", "2", "--concurrency", "1")
    assert Counter(example.answer for example in found) == {"Desktop": 2, "Laptop": 2}
    assert len(server.requests) == 4


def test_a_budget_ends_for_all_classes_alike_and_a_higher_one_goes_on(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ChatServer(knows(data, lambda label, row, number: right(label))) as server:
        found = run(server, data, "--max-calls", "6", "--concurrency", "2")
        assert Counter(example.answer for example in found) == {"Desktop": 3, "Laptop": 3}
        assert len(server.requests) == 6
        assert "not all rows were asked: the budget of" in caplog.text
        assert len(run(server, data, "--max-calls", "10")) == 8
        assert len(server.requests) == 10
        again = (data.parent / "traces.parquet").read_bytes()
        run(server, data, "--max-calls", "10")
    assert len(server.requests) == 10
    assert (data.parent / "traces.parquet").read_bytes() == again


def test_a_killed_start_goes_on_where_it_was(data: Path) -> None:
    def say(label: str, row: int, number: int) -> str:
        time.sleep(0.1)  # the server answers one after the other
        return right(label)

    out = data.parent / "traces.parquet"
    with ChatServer(knows(data, say)) as server:
        command = [
            sys.executable,
            "-m",
            "timemaster.tasks.traces",
            "recipes.ctu",
            "--data",
            str(data),
            "--out",
            str(out),
        ]
        command += [*asking(server), "--concurrency", "2"]
        started = subprocess.Popen(command, cwd=Path(__file__).resolve().parents[2])
        while len(server.requests) < 5:
            assert started.poll() is None
            time.sleep(0.01)
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
        assert not out.exists()
        assert len(run(server, data, "--timeout", "120")) == 8
    assert len(server.requests) <= 10 + 2  # only what was in flight is asked twice


@pytest.mark.parametrize(
    ("status", "num_requests", "message"), [(401, 16, "Check base_url"), (500, 36, "20 consecutive calls")]
)
def test_a_server_that_cannot_answer_ends_it(
    data: Path, status: int, num_requests: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timemaster.judge.chat.MAX_FAILURES", 20)
    with ChatServer(fails(status)) as server, pytest.raises(SystemExit, match=message):
        run(server, data)
    assert len(server.requests) <= num_requests  # those in flight when it was seen


def test_the_explainer_is_the_offline_source(data: Path) -> None:
    out = data.parent / "traces.parquet"
    main(["recipes.ctu", "--data", str(data), "--out", str(out), "--explainer"])
    found, _ = read_examples([str(out)])
    assert Counter(example.answer for example in found) == {"Desktop": 4, "Laptop": 4}
    task = load_task("recipes.ctu")
    for example, row in zip(found, pq.read_table(out).to_pylist(), strict=True):
        series = Series([row["data"]], row["answer"], row["extra_info"]["index"])
        assert example.messages[-1].parts[0].text == demonstration(task, series)


@pytest.mark.parametrize("small", [False, True])
def test_the_explainer_speaks_of_the_plot_that_the_row_shows(tmp_path: Path, small: bool) -> None:
    """HAR's spreads are read off the y axis, which the small plot does not have."""
    task = small_variant(load_task("recipes.har")) if small else load_task("recipes.har")
    rows = []
    for i, label in enumerate(task.labels[:2]):
        series = Series([[0.1, -0.1, 0.2, 0.3 * i]] * 3, label, i)
        rows.append(plot_row(series, picture(i).data or b"", task.question, task.data_source, "train"))
    write_rows(tmp_path / "train.parquet", rows)
    out = tmp_path / "traces.parquet"
    main(["recipes.har", "--data", str(tmp_path / "train.parquet"), "--out", str(out), "--explainer"])
    texts = [example.messages[-1].parts[0].text for example in read_examples([str(out)])[0]]
    assert ["spread" in text for text in texts] == [not small] * 2


def test_the_output_must_not_be_the_input(data: Path) -> None:
    before = data.read_bytes()
    for out in (data, data.parent / "." / ".." / data.parent.name / data.name):
        with pytest.raises(SystemExit, match="is --data, which would be overwritten"):
            main(["recipes.ctu", "--data", str(data), "--out", str(out), "--explainer"])
    assert data.read_bytes() == before


def test_demonstrations_can_be_made_anew_from_rows_that_have_some(data: Path) -> None:
    """A file for SFT is a file of questions, too: its last turn is not shown to the model."""
    with ChatServer(knows(data, lambda label, row, number: right(label))) as server:
        run(server, data)
        first = len(server.requests)
        again = data.parent / "again.parquet"
        main(["recipes.ctu", "--data", str(data.parent / "traces.parquet"), "--out", str(again), *asking(server)])
    assert all(len(body["messages"]) == 1 for body in server.requests[first:])
    assert [[m.role for m in e.messages] for e in read_examples([str(again)])[0]] == [["user", "assistant"]] * 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "0"], "--temperature 0 gives the same answer at every try"),
        (["--data", "nowhere.parquet"], "does not exist"),
    ],
)
def test_wrong_settings_are_refused(data: Path, options: list[str], message: str) -> None:
    with ChatServer(fails(500)) as server, pytest.raises(SystemExit, match=message):
        run(server, data, *options)
    assert server.requests == []


def test_a_model_or_the_explainer_must_be_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["recipes.ctu", "--data", str(data), "--out", str(data.parent / "o.parquet")])
    assert "give --model NAME" in capsys.readouterr().err


def test_rows_of_another_task_are_refused(data: Path) -> None:
    with (
        ChatServer(fails(500)) as server,
        pytest.raises(SystemExit, match="rows of computer_dataset; italy_power's data_source is"),
    ):
        main(["recipes.italy_power", "--data", str(data), "--out", str(data.parent / "o.parquet"), *asking(server)])
