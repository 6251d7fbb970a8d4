"""The six tasks from their sources to EVAL: small files in each source's format, 2 SFT steps, 2 GRPO steps, evaluation.

All six share one run of each kind, mixed, for starting processes is what takes the time: every step has rows of each.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.sources import SIX
from timemaster.config import Config
from timemaster.config.resolve import resolve
from timemaster.tasks import load_task
from timemaster.tasks.audit import audit
from timemaster.tasks.prepare import prepare

TASKS = {name: load_task(f"recipes.{name}") for name in SIX}
SOURCES = {task.data_source for task in TASKS.values()}
MOST_TESTED = 24  # rows of a test split that are evaluated


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster on this machine, which all runs of this file join."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "num_gpus": 0, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each recipe, made from a small source in small plots, with a short test file added."""
    folders = {}
    for name, write in SIX.items():
        source = write(tmp_path_factory.mktemp(f"{name}_source"))
        out = tmp_path_factory.mktemp("data")
        folder = prepare(TASKS[name], source, out, num_workers=1, plot="small")
        pq.write_table(pq.read_table(folder / "test.parquet").slice(0, MOST_TESTED), folder / "short.parquet")
        folders[name] = folder
    return folders


@pytest.fixture(scope="module")
def model(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """One tiny model, whose tokenizer knows the words of all six."""
    from timemaster.models.tiny import texts_of, write_tiny

    texts = [text for folder in data.values() for text in texts_of(folder / "sft.parquet")[:40]]
    return str(write_tiny(tmp_path_factory.mktemp("model") / "tiny", texts))


def settings(cluster: str, data: dict[str, Path], model: str, run: Path) -> Config:
    cfg = Config()
    cfg.trainer.ray_address, cfg.trainer.default_local_dir, cfg.trainer.logger = cluster, str(run), ["console"]
    cfg.trainer.total_training_steps, cfg.trainer.save_freq = 2, 0
    cfg.data.recipes, cfg.model.path = [f"recipes.{name}" for name in SIX], model
    cfg.data.mixture = dict.fromkeys(SOURCES, 1.0)
    cfg.data.train_batch_size, cfg.actor.ppo_mini_batch_size, cfg.rollout.n = 6, 6, 2
    cfg.data.max_prompt_length, cfg.data.max_response_length, cfg.data.min_pixels = 700, 48, 784
    cfg.actor.optim.lr, cfg.model.enable_gradient_checkpointing = 3e-4, False
    cfg.rollout.name, cfg.rollout.cpu_kv_cache_gib = "vllm", 0.25
    return cfg


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_recipe_makes_sound_data(data: dict[str, Path]) -> None:
    for name, folder in data.items():
        names = ("train", "validation", "test", "sft")
        report = audit([folder / f"{part}.parquet" for part in names])
        assert not report.serious, name
        assert "112 x 112 pixels, 16 vision tokens" in str(report)


def test_all_six_go_through_sft_and_grpo_to_evaluation(
    cluster: str, data: dict[str, Path], model: str, tmp_path: Path
) -> None:
    from timemaster import evaluate, grpo, sft

    cfg = settings(cluster, data, model, tmp_path / "sft")
    cfg.data.train_files = [str(folder / "sft.parquet") for folder in data.values()]
    sft.train(resolve(cfg, "sft"))
    losses = [row["sft/loss"] for row in rows(tmp_path / "sft")]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    for row in rows(tmp_path / "sft"):
        own = [row[f"sft/loss@{source}"] for source in SOURCES]
        assert min(own) < row["sft/loss"] < max(own)

    taught = str(tmp_path / "sft" / "global_step_2" / "huggingface")
    cfg = settings(cluster, data, taught, tmp_path / "grpo")
    cfg.data.train_files = [str(folder / "train.parquet") for folder in data.values()]
    cfg.data.test_files = [str(folder / "short.parquet") for folder in data.values()]
    grpo.train(resolve(cfg, "grpo"))
    steps = rows(tmp_path / "grpo")
    assert [row["step"] for row in steps] == [1, 2]
    assert max(row["rollout/logprob_diff_mean"] for row in steps) <= 1e-4
    for row in steps:
        for source in SOURCES:
            of_answers = {f"reward/accuracy@{source}", f"reward/format@{source}", f"response/tokens_mean@{source}"}
            of_tokens = {f"actor/entropy@{source}", f"rollout/logprob_diff_mean@{source}"}
            assert of_answers | of_tokens <= row.keys()

    cfg.trainer.val_only, cfg.rollout.name = True, "hf"  # which starts sooner
    (result,) = evaluate.evaluate(resolve(cfg, "eval"))
    answers = (
        (tmp_path / "grpo" / "eval" / "step_2_short" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    )
    tested = {name: pq.read_metadata(folder / "short.parquet").num_rows for name, folder in data.items()}
    assert result["n"] == len(answers) == sum(tested.values())
    assert {s: own["n"] for s, own in result["by_data_source"].items()} == {
        TASKS[name].data_source: size for name, size in tested.items()
    }
    truths = Counter(json.loads(line)["truth"] for line in answers)
    assert set(truths) == {label for task in TASKS.values() for label in task.labels}
