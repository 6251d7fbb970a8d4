"""Settings: wrong ones are refused with advice, every one is read somewhere, help is quick."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from timemaster.config import CHOICES, NOT_NEGATIVE, POSITIVE, Config, check, get
from timemaster.types import InputError

ROOT = Path(__file__).resolve().parents[2]


def valid() -> Config:
    config = Config()
    config.model.path, config.data.recipes, config.data.train_files = "model", "recipes.ctu", "train.parquet"
    return config


def test_a_valid_configuration_passes_and_paths_become_lists() -> None:
    config = valid()
    check(config, "grpo")
    assert config.data.train_files == ["train.parquet"]
    assert config.data.recipes == ["recipes.ctu"]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model.path", "", "MODEL_PATH"),
        ("actor.ppo_mini_batch_size", 24, "try 32"),
        ("rollout.n", 1, "group of one"),
        ("rollout.name", "sglang", "auto, vllm, hf"),
        ("actor.ppo_max_token_len_per_gpu", 100, "at least 2048"),
        ("rollout.temperature", 0.0, "greater than 0"),
        ("trainer.test_freq", 5, "data.val_files"),
        ("trainer.n_gpus_per_node", 500, "every rank needs one"),
        ("data.train_files", "", "example/data_preprocess"),
        ("data.recipes", "", "reward.path"),
        ("rollout.placement", "separate", "rollout.num_engines"),
        ("rollout.gpu_memory_utilization", 1.5, "between 0 and 1"),
        ("eval.checkpoint", "best", "step number"),
        ("trainer.logger", ["mlflow"], "console"),
        ("data.max_pixels", 100, "at least data.min_pixels=3136"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key_and_advice(key: str, value: object, says: str) -> None:
    config = valid()
    group, name = key.rsplit(".", 1)
    setattr(get(config, group), name, value)
    with pytest.raises(InputError) as error:
        check(config, "grpo")
    assert says in str(error.value)
    assert key.split(".")[0] in str(error.value)


def leaves(node: object, prefix: str = "") -> list[str]:
    out = []
    for item in fields(node):  # type: ignore[arg-type]
        value = getattr(node, item.name)
        out += leaves(value, f"{prefix}{item.name}.") if is_dataclass(value) else [prefix + item.name]
    return out


def test_every_setting_is_read_somewhere() -> None:
    sources = [p.read_text() for p in (ROOT / "timemaster").rglob("*.py") if p.name != "config.py"]
    own = (ROOT / "timemaster" / "config.py").read_text()
    readers = own[own.index("def run_dir") :] + "".join(sources)
    for key in leaves(Config()):
        assert re.search(rf"\.{key.rsplit('.', 1)[1]}\b", readers), f"{key} is read nowhere"


def test_the_checks_name_settings_that_exist() -> None:
    known = set(leaves(Config()))
    assert set(CHOICES) | set(POSITIVE) | set(NOT_NEGATIVE) <= known


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "timemaster.grpo", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_unknown_keys_and_wrong_types_stop_the_program() -> None:
    unknown = run("rollout.tempratur=1.0")
    assert unknown.returncode != 0
    assert "tempratur" in unknown.stderr
    wrong = run("rollout.n=many")
    assert wrong.returncode != 0
    assert "many" in wrong.stderr
    missing = run("data.train_files=nowhere.parquet")
    assert missing.returncode == 2
    assert "MODEL_PATH" in missing.stderr + missing.stdout


def test_help_lists_the_settings_without_torch_ray_or_vllm() -> None:
    code = "import sys, timemaster.grpo, timemaster.cli; print([m for m in ('torch', 'ray', 'vllm', 'transformers', 'pandas') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    assert "ppo_mini_batch_size" in run("--help").stdout
