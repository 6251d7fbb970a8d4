"""The README's own code works: the dataset becomes a task, the rewards score answers."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import recipes
from timemaster.rewards import as_reward, load_function
from timemaster.tasks import load_task
from timemaster.types import Example, InputError, Rollout

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", README, re.S))  # by the file named in the first line

SERIES = """@problemName Sleep
@timeStamps false
@missing false
@univariate true
@equalLength true
@seriesLength 3
@classLabel true 0 1
@data
0.5,-1.0,2.0:0
1.5,0.25,-2.0:1
"""


def test_every_python_block_names_its_file_and_is_tested_here() -> None:
    assert list(BLOCKS) == ["recipes/sleep.py", "my_reward.py"]
    assert README.count("```python") == len(BLOCKS)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The README's dataset as a file in recipes/."""
    (tmp_path / "sleep.py").write_text(BLOCKS["recipes/sleep.py"], encoding="utf-8")
    monkeypatch.setattr(recipes, "__path__", [*recipes.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield "recipes.sleep"
    sys.modules.pop("recipes.sleep", None)
    vars(recipes).pop("sleep", None)


def test_the_dataset_is_a_task_and_reads_its_files(recipe: str, tmp_path: Path) -> None:
    task = load_task(recipe)
    assert task.name in BLOCKS["recipes/sleep.py"]
    with pytest.raises(InputError, match="--source DIR"):
        task.load(None)
    for split in ("TRAIN", "TEST"):
        (tmp_path / f"Sleep_{split}.ts").write_text(SERIES, encoding="utf-8")
    splits = task.load(tmp_path)
    assert [s.label for s in splits["train"]] == [s.label for s in splits["test"]] == ["Awake", "Asleep"]


def rollout(text: str, num_tokens: int) -> Rollout:
    return Rollout(
        id="train:0", token_ids=[0] * num_tokens, mask=[1] * num_tokens, logprobs=[0.0] * num_tokens,
        versions=[0] * num_tokens, media=[], text=text, finish_reason="stop",
    )  # fmt: skip


def test_the_rewards_pay_for_the_right_label_and_not_for_naming_all(tmp_path: Path) -> None:
    file = tmp_path / "my_reward.py"
    file.write_text(BLOCKS["my_reward.py"], encoding="utf-8")
    score, verl = (as_reward(load_function(f"{file}:{name}")) for name in ("score", "compute_score"))
    example = Example(id="train:0", messages=[], answer="Asleep", data_source="sleep")
    right, wrong = (f"<think>so</think><class>{label}</class>" for label in ("Asleep", "Awake"))
    both = "<class>Awake</class> <class>Asleep</class>"
    assert [score(rollout(text, 20), example) for text in (right, wrong, both)] == pytest.approx(
        [0.98, -0.02, -0.02]  # 1 or 0, less 20 x 0.001
    )
    scores = [verl(rollout(text, 20), example) for text in (right, wrong, both)]
    assert scores == [{"score": value, "length": len(t)} for value, t in ((1.0, right), (0.0, wrong), (0.0, both))]
