"""The closing table of the quickstart, its summary.json and its picture.

timemaster summary FOLDER
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from timemaster.run.step_names import by_step
from timemaster.system.console import print_any_letter, setup_logging
from timemaster.types import InputError

log = logging.getLogger("timemaster.results.summary")
NUM_PLOTS = 6  # at least; where there are more classes, one of each


def collect(folder: Path) -> dict[str, Any]:
    """Accuracy before RL, after RL and with blanked images, of what was evaluated; seconds; peak memory."""
    evaluations = folder / "grpo" / "eval"
    last = last_step(evaluations)
    names = {"before": "step_0"} | ({"after": f"step_{last}", "blank": f"step_{last}_blank"} if last else {})
    metrics = {key: read_metrics(evaluations / name) for key, name in names.items() if (evaluations / name).is_dir()}
    seconds = dict(line.split() for line in (folder / "seconds").read_text(encoding="utf-8").splitlines())
    return {
        "n": next(iter(metrics.values()))["n"],
        **{key: {"accuracy": m["accuracy"], "ci95": m["accuracy_ci95"]} for key, m in metrics.items()},
        "seconds": {name: float(value) for name, value in seconds.items()},
        "peak_memory_gib": float((folder / "peak_memory_gib").read_text(encoding="utf-8")),
    }


def last_step(evaluations: Path) -> int:
    """The last step of which there are greedy answers to rows with their images."""
    steps = by_step(evaluations, "step_*")
    if not steps:
        raise InputError(f"{evaluations} holds no step_<N>: evaluate the run first, EVAL=True with its script.")
    return max(steps)


def read_metrics(evaluation: Path) -> dict[str, Any]:
    """metrics.json of an evaluation."""
    return dict(json.loads((evaluation / "metrics.json").read_text(encoding="utf-8")))


def write_picture(folder: Path) -> Path:
    """overview.png: some test plots of every class with their answers, and the curves of the run."""
    from timemaster.data.store import take_rows
    from timemaster.results.plot_results import OUTCOMES, Answer, overview_png

    evaluations = folder / "grpo" / "eval"
    step = last_step(evaluations)
    metrics = read_metrics(evaluations / f"step_{step}")
    lines = (evaluations / f"step_{step}" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row | {"outcome": outcome(row, bool(metrics["per_class"]))} for row in map(json.loads, lines)]
    chosen = some_of_each(rows)
    numbers = [int(row["id"].rpartition(":")[2]) for row in chosen]
    taken = sorted(set(numbers))
    plots = dict(zip(taken, take_rows(metrics["files"][0], taken, ["images"]).to_pylist(), strict=True))
    answers = [
        Answer(
            image=plots[number]["images"][0]["bytes"],
            truth=row["truth"],
            said=row["prediction"],
            text=row["response"],
            outcome=row["outcome"],
        )
        for row, number in zip(chosen, numbers, strict=True)
    ]
    counts = Counter(row["outcome"] for row in rows)
    title = f"Greedy answers after step {step}: " if step else "Greedy answers before training: "
    title += ", ".join(f"{counts[name]} {name}" for name in OUTCOMES) + f" of {len(rows)} test rows"
    title += "; the model was given these series as numbers" if metrics.get("modality") == "numeric" else ""
    path = folder / "overview.png"
    path.write_bytes(overview_png(folder / "grpo", answers, title))
    return path


def outcome(row: dict[str, Any], has_classes: bool) -> str:
    """Right, wrong or unparsed; for a task without classes right where the accuracy part, or the score, is 1."""
    from timemaster.results.plot_results import RIGHT, UNPARSED, WRONG

    if has_classes:
        return UNPARSED if row["prediction"] is None else RIGHT if row["prediction"] == row["truth"] else WRONG
    return RIGHT if (row["parts"].get("accuracy", row["score"]) or 0.0) >= 1.0 else WRONG


def some_of_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """NUM_PLOTS rows, classes in turn, right and other answers in turn; never fewer than one of each class.

    Where only right ones came up so, though there are others, the first of these takes the place of one of its class.
    """
    by_class: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
    for row in rows:
        by_class.setdefault(row["truth"], ([], []))[row["outcome"] != "right"].append(row)
    mixed = [[row for pair in zip_longest(*both) for row in pair if row] for both in by_class.values()]
    chosen = [row for turn in zip_longest(*mixed) for row in turn if row][: max(NUM_PLOTS, len(by_class))]
    other = next((row for row in rows if row["outcome"] != "right"), None)
    if other and all(row["outcome"] == "right" for row in chosen):
        chosen[max(i for i, row in enumerate(chosen) if row["truth"] == other["truth"])] = other
    return chosen


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and write the files."""
    print_any_letter()
    parser = argparse.ArgumentParser(prog="timemaster summary", description="The closing table of the quickstart.")
    parser.add_argument("folder", type=Path, help="folder that quickstart.sh or small.sh made")
    folder: Path = parser.parse_args(arguments).folder
    setup_logging()
    try:
        summary = collect(folder)
    except (InputError, OSError) as error:
        sys.exit(str(error))
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    picture = write_picture(folder)
    log.info("\n  accuracy on %d test rows, greedy     95 %% interval", summary["n"])
    for key, label in (("before", "before RL"), ("after", "after RL"), ("blank", "blanked images")):
        if key in summary:
            low, high = summary[key]["ci95"]
            log.info("  %-26s %.3f      [%.3f, %.3f]", label, summary[key]["accuracy"], low, high)
    seconds = summary["seconds"]
    log.info(
        "\n  seconds: %s; in all %.0f", ", ".join(f"{k} {v:.0f}" for k, v in seconds.items()), sum(seconds.values())
    )
    log.info("  peak memory of all processes: %.1f GiB\n", summary["peak_memory_gib"])
    log.info("  %s   these figures", folder / "summary.json")
    log.info("  %s   plots, answers, curves", picture)
    log.info("  %s   every answer on the test split", folder / "grpo" / "eval")
    log.info("  %s   a row a step; curves: tensorboard --logdir %s", folder / "grpo" / "metrics.jsonl", folder)
    log.info("  next: README.md, section 'Your own dataset'; bash example/data_preprocess/ctu.sh")


if __name__ == "__main__":
    main()
