"""benchmarks/gpu_smoke.py: what a CPU can run of it, and that no check hides another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_checks import CHECKS, FAILED, OK, ROOT, Row
from benchmarks.gpu_smoke import run_check, table

ROWS = '[{"check": "a", "figure": "f", "value": "1", "bar": "", "outcome": "ok"}]'


def outcomes(code: str, file: Path, limit: float = 60.0) -> list[tuple[str, str, str]]:
    rows = run_check("a", [sys.executable, "-c", code, str(file)], file, limit)
    return [(row.figure, row.outcome, row.value.partition(" (")[0]) for row in rows]


def test_a_check_that_dies_hangs_or_says_nothing_is_a_row(tmp_path: Path) -> None:
    write = f"import sys; open(sys.argv[1], 'w').write({ROWS!r})"
    assert outcomes(write, tmp_path / "ok.json")[0] == ("f", OK, "1")
    assert outcomes("raise ValueError('no GPU')", tmp_path / "raised.json") == [
        ("did not end", FAILED, "exit code 1: ValueError: no GPU")
    ]
    assert outcomes("import os; os.abort()", tmp_path / "died.json") == [
        ("did not end", FAILED, "exit code -6: no output")
    ]
    assert outcomes("pass", tmp_path / "silent.json") == [("did not end", FAILED, "exit code 0: no output")]
    hangs = write + "; import time; print('begun', flush=True); time.sleep(600)"
    assert outcomes(hangs, tmp_path / "hung.json", limit=2) == [
        ("did not end", FAILED, "stopped after its limit of 2 s: begun")
    ]


@pytest.mark.slow
def test_the_part_that_a_cpu_can_run_ends_in_a_table_and_a_file(tiny: str, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu_smoke.py", "--device", "cpu", "--model", tiny]
    command += ["--only", "memory,attention", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [Row(**row) for row in json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))]
    assert done.stdout.endswith(table(rows))
    found = {(row.check, row.figure): row.outcome for row in rows}
    assert found["memory", "needs a GPU"] == "skipped"
    assert found["attention", "eager, packed against alone, mean log-prob difference"] == OK
    assert set(CHECKS) >= {check for check, _ in found} - {"models"}
