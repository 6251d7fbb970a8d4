"""Whole runs on a real Ray cluster with real engines: resume, other rank counts, several engines, failures, SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.servers import ChatServer, fails, says
from timemaster.config import Config
from timemaster.config.resolve import resolve
from timemaster.tasks import load_task
from timemaster.tasks.prepare import prepare
from timemaster.types import InputError, WorkerDied

IGNORED = ("seconds", "throughput", "memory")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of two nodes (both on this machine), which all runs of this file join, as after `ray start`."""
    from ray.cluster_utils import Cluster

    nodes = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=nodes)
    cluster.add_node(num_cpus=2, num_gpus=0)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(load_task("recipes.italy_power"), None, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, cluster: str, data: Path) -> str:
    """A tiny model after a few supervised steps: the SFT path itself, and answers that sometimes score."""
    from timemaster.models.tiny import texts_of, write_tiny
    from timemaster.sft import train

    folder = tmp_path_factory.mktemp("sft")
    cfg = settings(cluster, data, str(write_tiny(folder / "tiny", texts_of(data / "sft.parquet"))), folder / "run")
    cfg.data.train_files, cfg.data.val_files = [str(data / "sft.parquet")], [str(data / "sft.parquet")]
    cfg.data.train_batch_size, cfg.actor.optim.lr = 32, 5e-4
    cfg.trainer.total_training_steps, cfg.trainer.test_freq = 40, 20
    train(resolve(cfg, "sft"))
    rows = metrics(folder / "run")
    assert rows[-1]["sft/loss"] < 0.3 * rows[0]["sft/loss"]
    assert rows[-1]["val/loss"] < rows[0]["sft/loss"]
    return str(folder / "run" / "global_step_40" / "huggingface")


def settings(cluster: str, data: Path, model: str, run: Path) -> Config:
    cfg = Config()
    cfg.trainer.ray_address, cfg.trainer.default_local_dir = cluster, str(run)
    cfg.trainer.logger = ["console", "tensorboard"]
    cfg.data.recipes, cfg.model.path = ["recipes.italy_power"], model
    cfg.data.train_files, cfg.data.test_files = [str(data / "train.parquet")], [str(data / "test.parquet")]
    cfg.data.max_prompt_length, cfg.data.max_response_length, cfg.data.min_pixels = 64, 48, 784
    cfg.data.train_batch_size, cfg.actor.ppo_mini_batch_size, cfg.rollout.n = 8, 4, 4
    cfg.actor.optim.lr, cfg.model.enable_gradient_checkpointing = 3e-4, False
    cfg.actor.ppo_max_token_len_per_gpu, cfg.rollout.cpu_kv_cache_gib = 600, 0.25
    cfg.actor.use_kl_loss, cfg.rollout.name, cfg.trainer.save_freq = True, "hf", 0
    return cfg


def run(cfg: Config, steps: int) -> list[dict[str, Any]]:
    from timemaster.grpo import train

    cfg.trainer.total_training_steps = steps
    train(resolve(cfg, "grpo"))
    return metrics(Path(cfg.trainer.default_local_dir))


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(IGNORED)} for row in rows]


@pytest.fixture(scope="module")
def six_steps(cluster: str, data: Path, taught: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(settings(cluster, data, taught, tmp_path_factory.mktemp("runs") / "six"), 6)


def test_six_steps_equal_three_a_stop_and_three(cluster, data, taught, six_steps, tmp_path: Path) -> None:
    assert [row["step"] for row in six_steps] == list(range(1, 7))
    assert max(row["rollout/logprob_diff_mean"] for row in six_steps) <= 1e-4
    assert max(row["rollout/logprob_diff_max"] for row in six_steps) <= 1e-2
    assert all(row["actor/kl"] >= 0 for row in six_steps)
    cfg = settings(cluster, data, taught, tmp_path / "run")
    run(cfg, 3)
    assert run(cfg, 6) == six_steps


def test_vllm_run_with_two_engines_and_ranks_writes_everything_and_its_checkpoints_load_everywhere(
    cluster, data, taught, tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from timemaster.evaluate import evaluate

    cfg = settings(cluster, data, taught, tmp_path / "run")
    cfg.rollout.name, cfg.data.val_files = "vllm", [str(data / "validation.parquet")]
    cfg.trainer.n_gpus_per_node, cfg.rollout.num_engines = 2, 2
    cfg.trainer.val_before_train, cfg.trainer.test_freq = True, 2
    rows = run(cfg, 2)
    assert max(row["rollout/logprob_diff_mean"] for row in rows) <= 1e-4
    assert 0 <= rows[-1]["val/accuracy"] <= 1
    folder = tmp_path / "run"
    assert "ppo_mini_batch_size: 4" in (folder / "config.yaml").read_text(encoding="utf-8")
    rollouts = [
        json.loads(line) for line in (folder / "rollouts" / "step_1.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rollouts) == 8 * 4
    assert set(rollouts[0]["parts"]) == {"accuracy", "format"}
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    assert len(events.Tensors("reward/mean")) == 2
    export = folder / "global_step_2" / "huggingface"
    model = AutoModelForImageTextToText.from_pretrained(export)
    assert AutoProcessor.from_pretrained(export).tokenizer.chat_template
    stored, base = load_file(export / "model.safetensors"), load_file(Path(taught) / "model.safetensors")
    assert stored.keys() == base.keys()
    name = "model.layers.0.mlp.up_proj.weight"
    assert not stored[name].equal(base[name])
    assert model.state_dict()["model.language_model.layers.0.mlp.up_proj.weight"].equal(stored[name])

    cfg.trainer.val_only, cfg.rollout.num_engines = True, 1
    cfg.eval.temperature = 1.0  # greedy answers of a model this young hardly differ between checkpoints
    cfg.eval.checkpoint, cfg.eval.blank_images = ["base", "latest"], "both"
    results = evaluate(resolve(cfg, "eval"))  # vLLM starts from one checkpoint and is given the other
    assert [(r["step"], r["blank_images"]) for r in results] == [(0, False), (0, True), (2, False), (2, True)]
    for result in results:
        out = folder / "eval" / (f"step_{result['step']}_t1" + ("_blank" if result["blank_images"] else ""))
        lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
        assert result["n"] == len(lines) == 328
        assert result["accuracy"] == sum(line["prediction"] == line["truth"] for line in lines) / 328
        assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    answers = [
        (folder / "eval" / f"step_{name}" / "predictions.jsonl").read_text(encoding="utf-8")
        for name in ("0_t1", "2_t1", "2_t1_blank")
    ]
    assert len(set(answers)) == 3


def kill_when(marker: Path, lines: int, name: str) -> Callable[[], float]:
    """Kill a process called `name` of this file's cluster once the file `marker` has `lines` lines.

    Returns a function that gives the time of it.
    """
    when: list[float] = []

    def wait() -> None:
        while not (marker.exists() and marker.read_text(encoding="utf-8").count("\n") >= lines):
            time.sleep(0.1)
        for process in psutil.Process().children(recursive=True):  # the cluster's nodes are children of this process
            if name in process.name() or name in " ".join(process.cmdline()):
                process.kill()
                when.append(time.time())
                return

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()

    def killed() -> float:
        thread.join(timeout=5)
        return when[0]

    return killed


def test_two_ranks_equal_one_killed_processes_are_named_at_once_and_one_rank_resumes_from_two(
    cluster, data, taught, six_steps, tmp_path: Path
) -> None:
    cfg = settings(cluster, data, taught, tmp_path / "run")
    cfg.trainer.save_freq, cfg.trainer.n_gpus_per_node = 1, 2
    killed = kill_when(tmp_path / "run" / "metrics.jsonl", 2, "ray::TrainerRank")
    with pytest.raises(WorkerDied, match=r"trainer rank . (died|failed)"):
        run(cfg, 1000)
    assert time.time() - killed() < 60
    two_ranks = metrics(tmp_path / "run")

    cfg.trainer.n_gpus_per_node = 1
    killed = kill_when(tmp_path / "run" / "metrics.jsonl", len(two_ranks) + 1, "ray::EngineRank")
    with pytest.raises(WorkerDied, match=r"engine 0 died|trainer rank 0 failed"):
        run(cfg, 1000)
    assert time.time() - killed() < 60
    rows = metrics(tmp_path / "run")
    assert 2 <= len(two_ranks) < len(six_steps)  # so that a resumed step is compared with one of `six_steps`
    assert len(rows) > len(two_ranks)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    names = ("actor/loss", "actor/grad_norm", "actor/entropy", "actor/kl", "reward/mean", "response/tokens_mean")
    for row, expected in zip(rows, six_steps, strict=False):
        assert row["rollout/logprob_diff_mean"] <= 1e-4
        for name in names:
            assert row[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-7), f"step {row['step']}: {name}"


def test_sigterm_saves_then_exits_and_a_failing_reward_can_be_counted(cluster, data, taught, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def score(rollout, example):\n    return float('nan')\n", encoding="utf-8")
    cfg = settings(cluster, data, taught, tmp_path / "run")
    cfg.reward.path, cfg.reward.on_error = f"{tmp_path}/bad.py:score", "zero"
    marker = tmp_path / "run" / "metrics.jsonl"

    def interrupt() -> None:
        while not (marker.exists() and marker.read_text(encoding="utf-8").count("\n") >= 2):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    rows = run(cfg, 1000)
    assert 2 <= len(rows) < 1000
    assert (tmp_path / "run" / f"global_step_{len(rows)}" / "trainer.json").exists()
    assert rows[0]["reward/errors"] == 8 * 4
    assert rows[0]["reward/mean"] == 0.0
    assert rows[0]["reward/zero_spread_groups"] == 1.0


def test_a_failing_reward_stops_the_run_and_names_the_example(cluster, data, taught, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "def score(rollout, example):\n    raise KeyError('nothing there')\n", encoding="utf-8"
    )
    cfg = settings(cluster, data, taught, tmp_path / "run")
    cfg.reward.path = f"{tmp_path}/bad.py:score"
    with pytest.raises(InputError, match=r"example 'train\.parquet:\d+'.*KeyError.*nothing there"):
        run(cfg, 1)


GRADED = """
from itertools import count

from timemaster.judge import Rubric, the_judge

number = count()  # equal answers would be one question

async def score(rollout, example):
    answer = f"{rollout.text} {sum(rollout.logprobs)} {next(number)}"
    found = await the_judge().grade(Rubric("an answer", {"depth": "gives reasons"}), example, {"answer": answer})
    return {"score": found.score, "reason": found.reason}
"""


def test_a_judge_that_refuses_midway_loses_no_step_and_its_budget_lasts(cluster, data, taught, tmp_path: Path) -> None:
    """32 answers a step. The judge knows no grade for every eighth, and refuses its key after the first step."""
    (tmp_path / "graded.py").write_text(GRADED, encoding="utf-8")
    cfg = settings(cluster, data, taught, tmp_path / "run")
    cfg.reward.path, cfg.judge.model = f"{tmp_path}/graded.py:score", ["judge"]
    graded: list[str] = []
    refusing = [True]

    async def judge(server: ChatServer, body: dict[str, Any], request: Any) -> Any:
        asked = body["messages"][-1]["content"][0]
        names = body["response_format"]["json_schema"]["schema"]["required"]
        if names != ["depth"]:  # the verdict that is asked for before the run
            return await says(json.dumps(dict.fromkeys(names, 5)))(server, body, request)
        if asked["text"] not in graded:
            if refusing[0] and len(graded) == 32:
                return await fails(401)(server, body, request)
            graded.append(asked["text"])
        number = graded.index(asked["text"])
        return await says("?" if number % 8 == 0 else json.dumps({"depth": number % 11}))(server, body, request)

    with ChatServer(judge) as server:
        cfg.judge.base_url = [server.url]
        with pytest.raises(InputError, match="refuses model 'judge'"):
            run(cfg, 2)
        assert (tmp_path / "run" / "global_step_1" / "trainer.json").exists()
        first = len(server.requests)
        refusing[0], cfg.judge.max_calls = False, first + 37
        (one, two) = run(cfg, 2)
        assert len(server.requests) == first + 37  # one before the run, 32 answers, and 4 of them twice
    for row in (one, two):
        assert row["reward/unknown"] == 4
        assert row["reward/score"] > 0
    for step in (1, 2):
        logged = [
            json.loads(x)
            for x in (tmp_path / f"run/rollouts/step_{step}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        groups = [logged[i : i + 4] for i in range(0, 32, 4)]
        unsettled = [group for group in groups if any(row["unknown"] for row in group)]
        assert 1 <= len(unsettled) <= 4
        assert all(row["advantage"] is None for group in unsettled for row in group)
        assert any(row["advantage"] for group in groups for row in group)


def test_numbers_in_the_place_of_plots_train_and_evaluate(cluster, data, taught, tmp_path: Path) -> None:
    from timemaster.evaluate import evaluate

    cfg = settings(cluster, data, taught, tmp_path / "run")
    cfg.data.modality, cfg.data.numeric.decimals = "numeric", 1
    cfg.data.max_prompt_length, cfg.actor.ppo_max_token_len_per_gpu = 256, 1200
    rows = run(cfg, 1)
    assert rows[0]["rollout/logprob_diff_mean"] <= 1e-4
    logged = json.loads((tmp_path / "run" / "rollouts" / "step_1.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert logged["media"] == []
    assert logged["prompt"].count(",") >= 23  # 24 readings
    cfg.trainer.val_only = True
    (result,) = evaluate(resolve(cfg, "eval"))
    assert result["n"] == 328
    assert result["prompt_tokens_mean"] > 24 * 4  # a digit, a point, a digit and a sign each


def test_a_task_of_an_unknown_kind_is_trained_evaluated_compared_and_reported(cluster, taught, tmp_path: Path) -> None:
    """No file of the library knows it: tests/e2e/height.py asks for a real number and is measured by its mean error."""
    from tests.e2e import height
    from timemaster.evaluate import evaluate
    from timemaster.results.compare import compare, parser
    from timemaster.results.report.page import write_report

    height.write_data(tmp_path)
    cfg = settings(cluster, tmp_path, taught, tmp_path / "run")
    cfg.data.recipes, cfg.data.val_files, cfg.trainer.test_freq = ["tests.e2e.height"], cfg.data.test_files, 2
    cfg.data.max_prompt_length = 80
    steps = run(cfg, 2)
    for row in steps:
        assert row["answer/error"] == pytest.approx(1 - row["reward/closeness"])
    assert 0 < steps[-1]["val/error"] <= 1
    rollouts = (tmp_path / "run" / "rollouts" / "step_1.jsonl").read_text(encoding="utf-8")
    answers = [json.loads(line) for line in rollouts.splitlines()]
    assert {answer["outcome"] for answer in answers} <= {"measured", "unparsed"}
    assert all(answer["numbers"]["error"] == pytest.approx(1 - answer["score"]) for answer in answers)

    cfg.trainer.val_only, cfg.eval.checkpoint = True, ["base", "latest"]
    for figures in evaluate(resolve(cfg, "eval")):
        low, high = figures["error_ci95"]
        assert 0 <= low <= figures["error"] <= high <= 1
        assert figures["error"] == pytest.approx(1 - figures["reward_mean"])
        assert [number["name"] for number in figures["numbers"]] == ["error", "close"]
    assert (tmp_path / "run" / "eval" / "step_2" / "numbers.png").read_bytes()[:4] == b"\x89PNG"

    given = [
        "tests.e2e.height",
        "--data",
        str(tmp_path),
        "--runs",
        str(tmp_path / "run"),
        "--out",
        str(tmp_path / "out"),
    ]
    results = compare(height.TASK, parser().parse_args(given))
    assert sorted(result.p is None for result in results) == [False, True]
    reference = min(results, key=lambda result: result.value)  # a smaller error is better
    assert reference.p is None
    table = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    assert "| mean error |" in table
    assert f"sign-flip permutation test on the same rows against {reference.name}" in table
    with pytest.raises(InputError, match="--baselines: it needs a task with a closed list of classes"):
        compare(height.TASK, parser().parse_args([*given, "--baselines", "rocket"]))

    page, data = write_report(tmp_path / "run", None, 100)
    assert page.is_file()
    assert data["metrics"]["answer/error"][0] == pytest.approx(steps[0]["answer/error"], rel=1e-5)
    assert [one["numbers"][0]["heading"] for one in data["evaluations"]] == ["mean error", "mean error"]
    assert {row["outcome"] for row in data["rollouts"]} <= {"measured", "unparsed"}
