"""The page: template, style, scripts and data in one file that loads nothing else.

The data of the run are JSON, and the scripts show them as text, never as markup. The content security policy names the
page's own script by its hash, so the browser neither runs nor loads anything else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from timemaster.results.report.images import embed
from timemaster.results.report.read import read_run
from timemaster.types import InputError

SCRIPTS = ("dom.js", "head.js", "charts.js", "curves.js", "evaluation.js", "rollout.js", "browser.js", "start.js")

DISTRIBUTION = "numbers.png"  # the picture of an evaluation with open answers; see results/plot_evaluation.py


def write_report(run: Path, out: Path | None = None, max_rollouts: int = 5000) -> tuple[Path, dict[str, Any]]:
    """Write the page of a run to `out`, by default report.html in its folder. Returns the path and the page's data.

    Raises InputError when `run` is not a run's folder, and when `out` cannot be written.
    """
    data = read_run(run, max_rollouts)
    path = out if out is not None else run / "report.html"
    names = (name for row in data["rollouts"] for name in [*row["media"], *brought_by_turns(row)])
    data["images"] = embed(names, run / "rollouts" / "media", path, data["notes"])
    for evaluation in data["evaluations"]:
        evaluation["picture"] = data_url(run / "eval" / evaluation["name"] / DISTRIBUTION)
    try:
        path.write_text(fill(data), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another file: --out FILE") from error
    return path, data


def brought_by_turns(row: dict[str, Any]) -> list[str]:
    """The pictures that the turns of a rollout brought."""
    return [name for turn in row["turns"] for name in turn["media"]]


def data_url(path: Path) -> str | None:
    """A PNG file as a data URL; None when there is no such file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() if path.is_file() else None


def fill(data: dict[str, Any]) -> str:
    """The HTML: the template with title, policy, style, script and data."""
    script = "\n".join(asset(name) for name in SCRIPTS)
    style = asset("page.css")
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data: 'self' file:; "
    policy += f"style-src '{digest(style)}'; script-src '{digest(script)}'"
    pieces = {
        "title": html.escape(f"{data['experiment']} · {data['project']}"),
        "policy": html.escape(policy, quote=True).replace("&#x27;", "'"),
        "style": style,
        "script": script,
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),  # no answer can close the element
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda place: pieces[place[1]], asset("page.html"))
    return text.encode("utf-8", "replace").decode()  # a title may contain half a surrogate pair


def asset(name: str) -> str:
    """The text of a file in this folder."""
    return (files("timemaster.results.report") / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """The hash of an inline element, as a content security policy writes it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
