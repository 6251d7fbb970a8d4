"""Reading JSON-lines files that may be damaged, and values that JSON in a browser can hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; [] when it is missing. Unreadable lines are left out and noted."""
    if not path.is_file():
        return []
    rows, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += bool(line.strip())
    if bad:
        notes.append(f"{bad} unreadable line(s) of {path.name} left out")
    return rows


def number(value: Any) -> float | None:
    """A finite number with six digits, else None: JSON in a browser has no NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def clean(value: Any) -> Any:
    """The value, with only the types that JSON has."""
    if isinstance(value, dict):
        return {str(name): clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float):
        return number(value)
    return value if value is None or isinstance(value, str | int) else str(value)
