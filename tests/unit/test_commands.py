"""The commands: wrong inputs end in a message, not in a traceback, and letters that the console lacks are escaped."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from timemaster.config import Config
from timemaster.run.inputs import check_inputs
from timemaster.types import InputError

PARQUET = "{here}/text.parquet"  # which it is not
WRONG = [
    ("tasks.prepare", "recipes.italy_power --workers -1", "--workers is 0"),
    ("tasks.conversations", "{here} --out {here}/x.parquet", "Is a directory"),
    ("tasks.conversations", "{here}/good.json --out " + PARQUET + "/x.parquet", "File exists"),
    ("tasks.audit", "{here}", "is a folder"),
    ("models.tiny", "{here}/tiny --text-from {here}", "is a folder"),
    ("models.tiny", "{here}/tiny --hidden-size 100", "multiple of 64"),
    ("models.tiny", "{here}/tiny --num-layers 0", "at least 1"),
    ("results.report.__main__", "{here}/none", "is not a folder"),
    ("results.report.__main__", "{here} --max-rollouts -1", "0 or more"),
    ("tasks.traces", "recipes.italy_power --explainer --data {here} --out {here}/x.parquet", "is a folder"),
    ("results.compare", "recipes.italy_power --data " + PARQUET, "Not a directory"),
    ("results.summary", "{here}", "evaluate the run first"),
]


@pytest.mark.parametrize(("module", "arguments", "says"), WRONG)
def test_a_wrong_input_ends_in_a_message(
    module: str,
    arguments: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.parquet").write_text("text", encoding="utf-8")
    turns = '[{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "<class>A</class>"}]'
    (tmp_path / "good.json").write_text(f'[{{"conversations": {turns}}}]', encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [module, *(one.format(here=tmp_path) for one in arguments.split())])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"timemaster.{module}").main()
    said = capsys.readouterr()
    assert says in f"{said.out}{said.err}{stopped.value.code}"
    assert stopped.value.code not in (0, None)


@pytest.fixture
def ready(cfg: Config, tmp_path: Path) -> Config:
    cfg.data.recipes, cfg.trainer.default_local_dir = ["recipes.italy_power"], str(tmp_path / "run")
    return cfg


def test_a_wrong_file_of_a_run_is_found_before_anything_starts(ready: Config, tmp_path: Path) -> None:
    for name, says in (
        ("", "is a folder"),
        ("none", "does not exist"),
        ("a,b", "list: \\["),
        ("zero", "not a readable"),
    ):
        (tmp_path / "zero").touch()
        with pytest.raises(InputError, match=says):
            check_inputs(ready, [str(tmp_path / name)])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="device or pipe"):
        check_inputs(ready, [str(tmp_path / "pipe")])


def test_sequences_longer_than_the_model_takes_are_found_before_anything_starts(ready: Config) -> None:
    ready.data.max_prompt_length = 32768  # of the tiny model's 32768
    with pytest.raises(InputError, match="at most 32768"):
        check_inputs(ready, [])


def test_a_run_folder_that_cannot_be_written_is_found_before_anything_starts(ready: Config, tmp_path: Path) -> None:
    check_inputs(ready, [])
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300), Path("/proc/run")):
        ready.trainer.default_local_dir = str(folder)
        with pytest.raises(InputError, match=r"cannot be written.*trainer\.default_local_dir"):
            check_inputs(ready, [])


def test_a_letter_that_the_console_cannot_print_is_escaped() -> None:
    out = subprocess.run(
        [sys.executable, "-m", "timemaster.grpo", "data.recipes=recipes.ctu", "data.train_files=x", "model.path=./日"],
        cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "latin-1"}, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert out.returncode == 2, out.stderr
    assert b"model.path='./\\u65e5': no such folder" in out.stdout
