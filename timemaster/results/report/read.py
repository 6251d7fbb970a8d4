"""A run's folder as plain data for the page. What is missing stays empty; what cannot be read is left out and noted."""

from __future__ import annotations

import json
import math
import shlex
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from timemaster.metrics.answers import Answer, how_sampled
from timemaster.metrics.classification import is_correct
from timemaster.rewards import predict_label
from timemaster.run.step_names import by_step
from timemaster.series.labels import label_key
from timemaster.types import InputError

WRITTEN = ("metrics.jsonl", "config.yaml", "eval/step_*/metrics.json")  # one of them makes a folder a run's
SAMPLED = {"training": "rollout", "validation": "eval"}  # the part of the settings that says how
MAX_CLASSES = 100  # with more different truths the answers are not classes
EVALUATION = (  # what the page shows of eval/*/metrics.json
    "model", "step", "blank_images", "rows", "files", "rows_left_out", "n", "accuracy", "accuracy_ci95",
    "macro_f1", "format_rate", "unparsed", "per_class", "reward_mean", "response_tokens_mean", "confusion",
    "by_data_source", "num_samples", "majority", "pass_at_k",
)  # fmt: skip


def read_run(folder: Path, max_rollouts: int) -> dict[str, Any]:
    """Everything the page shows, but the images. Raises InputError when `folder` is not a run's."""
    check_folder(folder)
    notes: list[str] = []
    rows = [row for row in read_lines(folder / "metrics.jsonl", notes) if isinstance(row.get("step"), int | float)]
    evaluations = read_evaluations(folder / "eval", notes)
    rollouts = read_rollouts(folder / "rollouts", max_rollouts, notes)
    prompts: dict[str, int] = {}  # every text once
    for row in rollouts:
        row["prompt"] = prompts.setdefault(row["prompt"], len(prompts))
    judge(rollouts, labels_of(rollouts, evaluations))
    config, text = read_config(folder / "config.yaml", notes)
    trainer = config.get("trainer", {})
    return {
        "experiment": str(trainer.get("experiment_name") or folder.resolve().name),
        "project": str(trainer.get("project_name") or folder.resolve().parent.name),
        "kind": kind_of(rows, text),
        "config": clean(flatten(config)),
        "config_text": text,
        "given": given_settings(folder / "overrides.yaml", notes),
        "sampling": {name: answers_sampled(config.get(key)) for name, key in SAMPLED.items()},
        "last_write": modified(folder),
        "steps": [row["step"] for row in rows],
        "metrics": columns(rows),
        "evaluations": evaluations,
        "rollouts": rollouts,
        "prompts": list(prompts),
        "notes": notes,
    }


def check_folder(folder: Path) -> None:
    """InputError that names what was looked for, and the runs that lie below."""
    if any(path.is_file() for name in WRITTEN for path in folder.glob(name)):
        return
    what = "has neither config.yaml nor metrics.jsonl nor evaluations" if folder.is_dir() else "is not a folder"
    below = sorted({str(path.parent) for depth in ("*", "*/*") for path in folder.glob(f"{depth}/metrics.jsonl")})
    hint = f" Runs below it: {', '.join(below[:8])}." if below else ""
    raise InputError(f"{folder} {what}. Give a run's folder, checkpoints/<project>/<experiment>.{hint}")


def read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; [] when it is not there. A line cut short is left out and noted."""
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


def read_config(path: Path, notes: list[str]) -> tuple[dict[str, Any], str]:
    """config.yaml as settings and as text; empty when it is not there or is no YAML."""
    if not path.is_file():
        return {}, ""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    if not isinstance(config, dict) or not all(isinstance(part, dict) for part in config.values()):
        notes.append("config.yaml is not a run's configuration and was left out")
        return {}, text
    return config, text


def kind_of(rows: list[dict[str, Any]], config_text: str) -> str:
    """What made the folder, from the rows of its metrics: "SFT", "GRPO", or "evaluation" where nothing was trained."""
    if any(name.startswith("sft/") for row in rows for name in row):
        return "SFT"
    return "GRPO" if rows or config_text else "evaluation"


def given_settings(path: Path, notes: list[str]) -> list[str] | None:
    """The settings of the command line, as a shell takes them, each the last time it was given; None: not recorded."""
    if not path.is_file():
        return None
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError:
        words = None
    if not isinstance(words, list):
        notes.append(f"{path.name} is no list of settings and was left out")
        return None
    last = {word.partition("=")[0]: word for word in map(str, words)}
    return [shlex.quote(word) for word in last.values()]


def answers_sampled(settings: Any) -> str | None:
    """What to call answers from `temperature`, `top_p` and `top_k` of an evaluation or a run; None: not recorded."""
    known = settings if isinstance(settings, dict) else {}
    if number(known.get("temperature")) is None:
        return None
    return how_sampled(known["temperature"], number(known.get("top_p")) or 1.0, int(number(known.get("top_k")) or -1))


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; an empty dictionary is a value."""
    out: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, dict) and value:
            out |= flatten(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out


def modified(folder: Path) -> str:
    """When a run was last written, local time to the minute."""
    times = [path.stat().st_mtime for name in WRITTEN for path in folder.glob(name)]
    return f"{datetime.fromtimestamp(max(times)):%Y-%m-%d %H:%M}"


def columns(rows: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    """The metrics by name, a value a step, None where a step has none."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    return {name: [number(row.get(name)) for row in rows] for name in names}


def number(value: Any) -> float | None:
    """Six digits of a finite number, else None: JSON in a browser knows no NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def clean(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, dict):
        return {str(name): clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float):
        return number(value)
    return value if value is None or isinstance(value, str | int) else str(value)


def read_evaluations(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The metrics of every eval/step_<N>*/, by step; a control with blanked images follows its evaluation."""
    found = []
    for path in folder.glob("step_*/metrics.json"):
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            metrics = {}
        if not isinstance(metrics, dict) or not {"n", "accuracy"} <= set(metrics):
            notes.append(f"eval/{path.parent.name}/metrics.json holds no evaluation and was left out")
            continue
        how = answers_sampled(metrics.get("sampling"))
        found.append({"name": path.parent.name, "how": how} | {key: clean(metrics.get(key)) for key in EVALUATION})
    return sorted(found, key=lambda one: (one["step"] or 0, one["name"]))


def read_rollouts(folder: Path, limit: int, notes: list[str]) -> list[dict[str, Any]]:
    """The logged answers in the order of training. Beyond `limit` whole steps are left out, evenly."""
    files = by_step(folder, "step_*.jsonl")
    steps = list(files)
    counts = [files[step].read_bytes().count(b"\n") for step in steps]  # a long run's text is more than fits in memory
    kept = [step for step, keep in zip(steps, thinned(counts, limit), strict=True) if keep]
    if len(kept) < len(steps):
        notes.append(f"rollouts of {len(kept)} of {len(steps)} steps shown, {sum(counts)} in all; see --max-rollouts")
    return [slim(row, step) for step in kept for row in read_lines(files[step], notes)]


def thinned(counts: list[int], limit: int) -> list[bool]:
    """Which steps to keep so that at most `limit` rollouts remain: evenly spread, the first and the last among them."""
    total, last = sum(counts), len(counts) - 1
    if total <= limit:
        return [True] * len(counts)
    num_kept = max(int(limit / max(counts)), 1)
    chosen = {round(k * last / (num_kept - 1)) for k in range(num_kept)} if num_kept > 1 else {last}
    return [i in chosen for i in range(len(counts))]


def slim(row: dict[str, Any], step: int) -> dict[str, Any]:
    """A row of rollouts/step_<N>.jsonl as the page wants it; rows of older runs lack some of its fields."""
    parts = row.get("parts") if isinstance(row.get("parts"), dict) else {}
    text = {name: str(row.get(name) or "") for name in ("id", "prompt", "truth", "error")}
    assert isinstance(parts, dict)
    if "prediction" in row:
        text["said"] = row["prediction"]
    return {
        "step": step,
        "source": str(row.get("data_source") or ""),
        "media": [str(name) for name in row.get("media") or []],
        "text": str(row.get("response") or ""),
        "score": number(row.get("score")),
        "parts": {str(name): number(value) for name, value in parts.items()},
        "unknown": [str(name) for name in row.get("unknown") or []],
        "tokens": number(row.get("tokens")),
        "finish": str(row.get("finish_reason") or ""),
        "advantage": number(row.get("advantage")),
    } | text


def labels_of(rollouts: Iterable[dict[str, Any]], evaluations: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The classes of each data source: its truths, where at least one answer chooses one of them, and evaluations'.

    A source whose truths are no classes (free text, numbers) has none.
    """
    truths, texts = defaultdict(set), defaultdict(list)
    for row in rollouts:
        truths[row["source"]].add(row["truth"])
        texts[row["source"]].append(row["text"])
    out = {}
    for source, own in truths.items():
        known = evaluated_labels(source, own, evaluations)
        labels = sorted(known or own)
        chosen = (predict_label(text, labels) for text in texts[source])
        if len(own) <= MAX_CLASSES and (known or any(chosen)):
            out[source] = labels
    return out


def evaluated_labels(source: str, truths: set[str], evaluations: list[dict[str, Any]]) -> set[str]:
    """The classes of the evaluations of `source`, of those that know all of its `truths`."""
    found: set[str] = set()
    for one in evaluations:
        by_source = one["by_data_source"]  # None: of a single source, which it does not name
        figures = by_source.get(source, {}) if by_source else one
        labels = set(figures.get("per_class") or {})
        found |= labels if truths <= labels else set()
    return found


def judge(rollouts: Iterable[dict[str, Any]], labels: dict[str, list[str]]) -> None:
    """Adds to each row what was `said` (None: unreadable) and its `outcome`: right, wrong, unparsed or unscored.

    What is right is decided as in evaluations (`is_correct`). Rows that do not hold what they say (of older runs) are
    read again, by `labels`.
    """
    for row in rollouts:
        own = labels.get(row["source"], [])
        has_classes = "said" in row or bool(own)
        row["said"] = row["said"] if "said" in row else predict_label(row["text"], own) if own else None
        spelling = {label_key(label): label for label in own or [row["truth"]]}
        answer = Answer(
            id="",
            data_source=row["source"],
            truth=spelling.get(label_key(row["truth"]), row["truth"]),
            prediction=row["said"] and spelling.get(label_key(str(row["said"])), row["said"]),
            choices=tuple(own or [row["truth"]]) if has_classes else (),
            score=row.get("score"),
            parts=row.get("parts") or {},
        )
        right = is_correct(answer)
        if has_classes and row["said"] is None and not right:
            row["outcome"] = "unparsed"
        else:
            row["outcome"] = "unscored" if right is None else "right" if right else "wrong"
