"""The commands: wrong inputs end in a message, not in a traceback, and letters that the console lacks are escaped."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from timemaster.__main__ import COMMANDS, main
from timemaster.config import Config
from timemaster.run.inputs import check_inputs
from timemaster.types import InputError

PARQUET = "{here}/text.parquet"  # which it is not
SCRIPT = str(Path(sys.executable).with_name("timemaster"))  # the installed command
PARQUET = "{here}/text.parquet"  # which it is not
WRONG = [
    ("prepare", "recipes.italy_power --workers -1", "--workers is 0"),
    ("conversations", "{here} --out {here}/x.parquet", "Is a directory"),
    ("conversations", "{here}/good.json --out " + PARQUET + "/x.parquet", "File exists"),
    ("audit", "{here}", "is a folder"),
    ("tiny", "{here}/tiny --text-from {here}", "is a folder"),
    ("tiny", "{here}/tiny --hidden-size 100", "multiple of 64"),
    ("tiny", "{here}/tiny --num-layers 0", "at least 1"),
    ("report", "{here}/none", "is not a folder"),
    ("report", "{here} --max-rollouts -1", "0 or more"),
    ("traces", "recipes.italy_power --explainer --data {here} --out {here}/x.parquet", "is a folder"),
    ("compare", "recipes.italy_power --data " + PARQUET, "Not a directory"),
    ("summary", "{here}", "evaluate the run first"),
]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command in this process: arguments -> exit code."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*arguments: str) -> int:
        try:
            main(arguments)
        except SystemExit as stopped:
            if isinstance(stopped.code, str):
                sys.stderr.write(stopped.code)
                return 1
            return stopped.code or 0
        return 0

    return call


@pytest.mark.parametrize(("name", "arguments", "says"), WRONG)
def test_a_wrong_input_ends_in_a_message(
    name: str,
    arguments: str,
    says: str,
    tmp_path: Path,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.parquet").write_text("text", encoding="utf-8")
    turns = '[{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "<class>A</class>"}]'
    (tmp_path / "good.json").write_text(f'[{{"conversations": {turns}}}]', encoding="utf-8")
    assert command(name, *(one.format(here=tmp_path) for one in arguments.split())) != 0
    said = capsys.readouterr()
    assert says in said.out + said.err


def test_help_lists_every_subcommand(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said and one.summary in said for name, one in COMMANDS.items())
    assert command() == 2  # nothing to do
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_subcommand_explains_itself_under_its_own_name(
    name: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(name, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: timemaster {name} ")


def test_an_unknown_subcommand_is_refused_with_near_names(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for given, advice in (("grop", "Did you mean grpo?"), ("evalaute", "Did you mean evaluate?"), ("xyz", "'xyz'. `")):
        assert command(given, "data.seed=1") == 2
        said = capsys.readouterr().err
        assert f"no subcommand {given!r}" in said
        assert advice in said


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "ray", "vllm", "transformers", "pandas", "pyarrow", "numpy", "matplotlib", "sktime", "hydra")
    for arguments in (["--help"], ["grpo", "--help"]):
        code = (
            f"import sys; from timemaster.__main__ import main; main({arguments}); "
            f"assert not (found := [m for m in {heavy} if m in sys.modules]), found"
        )
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def test_evaluate_is_grpo_with_val_only() -> None:
    for name in ("evaluate", "grpo"):
        out = subprocess.run(
            [SCRIPT, name, "--cfg", "job", "model.path=x"], capture_output=True, text=True, timeout=60, check=True
        )
        assert yaml.safe_load(out.stdout)["trainer"]["val_only"] == (name == "evaluate")


def test_modules_of_the_current_directory_can_be_named_and_exit_codes_are_the_programs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    for program in ([SCRIPT], [sys.executable, "-m", "timemaster"]):
        out = subprocess.run(
            [*program, "prepare", "mine"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert out.returncode == 1, out.stderr
        assert "Recipe 'mine' has no TASK" in out.stdout + out.stderr


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
    assert b"model.path='./\\u65e5': there is no such folder" in out.stdout
