"""A run's folder as plain data for the page. Missing data stay empty; what cannot be read is left out and noted."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from timemaster.metrics.answers import how_sampled
from timemaster.metrics.classification import ACCURACY
from timemaster.metrics.evaluation import Number
from timemaster.metrics.summary import numbers_of
from timemaster.results.report.json_files import clean, number, read_lines
from timemaster.results.report.older_rollouts import add_outcomes
from timemaster.results.report.rollouts import read_rollouts
from timemaster.types import InputError

WRITTEN = ("metrics.jsonl", "config.yaml", "eval/step_*/metrics.json")  # a run's folder has at least one of these
SAMPLED = {"training": "rollout", "validation": "eval"}  # the group of settings for sampling these answers
ABOUT = (
    "model",
    "step",
    "blank_images",
    "rows",
    "files",
    "rows_left_out",
)  # of metrics.json: what was evaluated
FIGURES = (  # its results, in addition to the numbers that it measures
    "n", "macro_f1", "format_rate", "unparsed", "per_class", "reward_mean", "response_tokens_mean", "confusion",
    "num_samples",
)  # fmt: skip


def read_run(folder: Path, max_rollouts: int) -> dict[str, Any]:
    """All data of the page except the images. Raises InputError when `folder` is not a run's."""
    check_folder(folder)
    notes: list[str] = []
    rows = [row for row in read_lines(folder / "metrics.jsonl", notes) if isinstance(row.get("step"), int | float)]
    evaluations = read_evaluations(folder / "eval", notes)
    rollouts = read_rollouts(folder / "rollouts", max_rollouts, notes)
    prompts: dict[str, int] = {}  # each text once, with its number
    for row in rollouts:
        row["prompt"] = prompts.setdefault(row["prompt"], len(prompts))
    add_outcomes(rollouts, evaluations)
    numbers = numbers_of_run(evaluations, rollouts)
    leave_out_repeated_numbers(rollouts)
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
        "numbers": numbers,
        "evaluations": evaluations,
        "rollouts": rollouts,
        "prompts": list(prompts),
        "notes": notes,
    }


def check_folder(folder: Path) -> None:
    """InputError unless this is a run's folder; it names the expected files, and runs in subfolders."""
    if any(path.is_file() for name in WRITTEN for path in folder.glob(name)):
        return
    what = "has neither config.yaml nor metrics.jsonl nor evaluations" if folder.is_dir() else "is not a folder"
    below = sorted({str(path.parent) for depth in ("*", "*/*") for path in folder.glob(f"{depth}/metrics.jsonl")})
    hint = f" Runs below it: {', '.join(below[:8])}." if below else ""
    raise InputError(f"{folder} {what}. Give a run's folder, checkpoints/<project>/<experiment>.{hint}")


def read_config(path: Path, notes: list[str]) -> tuple[dict[str, Any], str]:
    """config.yaml as settings and as text; empty when it is missing or not YAML."""
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
    """The job that wrote the folder, by its metrics: "SFT", "GRPO", or "evaluation" where nothing was trained."""
    if any(name.startswith("sft/") for row in rows for name in row):
        return "SFT"
    return "GRPO" if rows or config_text else "evaluation"


def given_settings(path: Path, notes: list[str]) -> list[str] | None:
    """The settings of the command line, quoted for a shell, each with its last value; None: not recorded."""
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
    """How answers were sampled, in words, from `temperature`, `top_p` and `top_k`; None: not recorded."""
    known = settings if isinstance(settings, dict) else {}
    if number(known.get("temperature")) is None:
        return None
    return how_sampled(known["temperature"], number(known.get("top_p")) or 1.0, int(number(known.get("top_k")) or -1))


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names. An empty dictionary is a value."""
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
    """The metrics by name, with one value per step, None where a step has none."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    return {name: [number(row.get(name)) for row in rows] for name in names}


def read_evaluations(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The evaluations in eval/step_<N>*/, by step. One with blanked images follows the one with images."""
    evaluations = []
    for path in folder.glob("step_*/metrics.json"):
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            metrics = {}
        if not isinstance(metrics, dict) or "n" not in metrics or not ("numbers" in metrics or numbers_of(metrics)):
            notes.append(f"eval/{path.parent.name}/metrics.json is not an evaluation and was left out")
            continue
        about = {"name": path.parent.name, "how": answers_sampled(metrics.get("sampling"))}
        evaluations.append(about | {key: clean(metrics.get(key)) for key in ABOUT} | shown_figures(metrics))
    return sorted(evaluations, key=lambda row: (row["step"] or 0, row["name"]))


def shown_figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation, or of one of its data sources, as the page shows them.

    `numbers` is what was measured, the headline first, each with its value and interval.
    """
    numbers = numbers_of(metrics)
    is_old = "numbers" not in metrics  # then it is a classification, and a figure that is missing is unknown
    out = {key: clean(metrics.get(key)) for key in FIGURES if key in metrics or is_old}
    out["numbers"] = [with_value(one, metrics.get(one.name), metrics.get(f"{one.name}_ci95")) for one in numbers]
    if metrics.get("majority"):
        vote = metrics["majority"]
        out["majority"] = clean(vote) | {
            "numbers": [with_value(one, vote.get(one.name), vote.get(f"{one.name}_ci95")) for one in numbers]
        }
    tries = metrics.get("pass_at_k") or {}
    out["pass_at_k"] = {k: {"numbers": [with_value(numbers[0], one["value"], one["ci95"])]} for k, one in tries.items()}
    sources = metrics.get("by_data_source") or {}
    out["by_data_source"] = {source: shown_figures(figures) for source, figures in sources.items()}
    return out


def with_value(measured: Number, value: Any, interval: Any) -> dict[str, Any]:
    """A number as the page shows it."""
    return description(measured) | {"value": number(value), "ci95": clean(interval)}


DESCRIPTION = ("name", "heading", "is_share", "higher_is_better")


def description(measured: Number) -> dict[str, Any]:
    """What the page needs to know about a number."""
    return {key: getattr(measured, key) for key in DESCRIPTION}


def numbers_of_run(evaluations: list[dict[str, Any]], rollouts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What this run measures, the headline first: from its evaluations, else from its rollouts."""
    known: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        for figures in (evaluation, *evaluation["by_data_source"].values()):
            for measured in figures["numbers"]:
                known.setdefault(measured["name"], {key: measured[key] for key in DESCRIPTION})
    for row in rollouts:
        for name in row["numbers"]:
            known.setdefault(name, description(Number(name=name, is_share=row["outcome"] != "measured")))
    return list(known.values()) or [description(ACCURACY)]


def leave_out_repeated_numbers(rollouts: list[dict[str, Any]]) -> None:
    """Drop the headline of answers that are right or wrong: the outcome says the same."""
    measured = {row["source"] for row in rollouts if row["outcome"] == "measured"}
    for row in rollouts:
        if row["source"] not in measured:
            row["numbers"] = dict(list(row["numbers"].items())[1:])
