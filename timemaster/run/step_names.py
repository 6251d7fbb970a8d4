"""Names with a step's number: global_step_<N>/ (checkpoints), eval/step_<N>/, rollouts/step_<N>.jsonl."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"(?:global_)?step_(\d+)(?:\.jsonl)?")


def step_of(path: Path) -> int | None:
    """The step in a name such as step_40; None for other names, step_40_blank among them."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def by_step(folder: Path, pattern: str) -> dict[int, Path]:
    """The paths in `folder` that match `pattern` and are named by a step, in the order of the steps.

    Example: by_step(run, "global_step_*") == {5: run / "global_step_5", 10: run / "global_step_10"}
    """
    paths = {step: path for path in folder.glob(pattern) if (step := step_of(path)) is not None}
    return dict(sorted(paths.items()))
