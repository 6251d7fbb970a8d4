"""`import timemaster` offers the public names, each from its module at the first use, and imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import timemaster

NAMES = {
    "Answer", "Environment", "EnvironmentSpec", "Evaluation", "Example", "Group", "InputError", "Media", "Message",
    "Number", "Part", "PlotStyle", "Reply", "RewardPart", "Rollout", "Score", "Series", "SeriesClassification", "Task",
    "Turn", "__version__", "accuracy", "extension", "format_strict", "format_tags", "load_task", "predict_label",
}  # fmt: skip
HEAVY = ("torch", "ray", "vllm", "transformers", "matplotlib", "sktime", "openai", "hydra", "pyarrow", "numpy")


def test_these_names_are_public_and_each_resolves() -> None:
    assert set(timemaster.__all__) == NAMES
    assert set(dir(timemaster)) >= NAMES
    for name in NAMES - {"__version__"}:
        found = getattr(timemaster, name)
        home = next(module for module, names in timemaster.PUBLIC.items() if name in names)
        assert found is getattr(sys.modules[home], name), name


def test_type_checkers_are_told_the_same_names() -> None:
    tree = ast.parse(Path(timemaster.__file__).read_text(encoding="utf-8"))
    told = {
        node.module: tuple(alias.name for alias in node.names)
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert told == timemaster.PUBLIC


def test_a_name_that_does_not_exist_is_an_error_that_lists_those_that_do() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'Taks'.*Task"):
        _ = timemaster.Taks


def test_the_public_names_import_nothing_heavy() -> None:
    code = (
        "import sys, timemaster\n"
        "assert not [m for m in sys.modules if m.startswith('timemaster.')]\n"
        "for name in timemaster.__all__: getattr(timemaster, name)\n"
        f"assert not (found := [m for m in {HEAVY} if m in sys.modules]), found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
