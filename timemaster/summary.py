"""The closing table of the quickstart, its summary.json and its picture: `python -m timemaster.summary FOLDER`."""

from __future__ import annotations

import json
import logging
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any

from timemaster.run import setup_logging

log = logging.getLogger("timemaster.summary")
NUM_PLOTS = 6  # at least; where there are more classes, one of each


def collect(folder: Path) -> dict[str, Any]:
    """Accuracy before RL, after RL and, where that was evaluated, with blanked images; seconds; peak memory."""
    evaluations = folder / "grpo" / "eval"
    steps = sorted(int(path.name[5:]) for path in evaluations.glob("step_*") if path.name[5:].isdigit())
    names = {"before": f"step_{steps[0]}", "after": f"step_{steps[-1]}"}
    blank = f"step_{steps[-1]}_blank"
    names |= {"blank": blank} if (evaluations / blank).is_dir() else {}  # numbers have no image to blank
    metrics = {
        key: json.loads((evaluations / name / "metrics.json").read_text(encoding="utf-8"))
        for key, name in names.items()
    }
    seconds = dict(line.split() for line in (folder / "seconds").read_text(encoding="utf-8").splitlines())
    return {
        "n": metrics["after"]["n"],
        **{key: {"accuracy": m["accuracy"], "ci95": m["accuracy_ci95"]} for key, m in metrics.items()},
        "seconds": {name: float(value) for name, value in seconds.items()},
        "peak_memory_gib": float((folder / "peak_memory_gib").read_text(encoding="utf-8")),
    }


def write_picture(folder: Path) -> Path:
    """overview.png: some test plots of every class with their answers, and the curves of the run."""
    from timemaster.data.store import take_rows
    from timemaster.plot_results import overview_png

    steps = [int(p.name[5:]) for p in (folder / "grpo" / "eval").glob("step_*") if p.name[5:].isdigit()]
    evaluation = folder / "grpo" / "eval" / f"step_{max(steps)}"
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    answers = some_of_each(
        [json.loads(line) for line in (evaluation / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    )
    numbers = [int(answer["id"].rpartition(":")[2]) for answer in answers]
    taken = sorted(set(numbers))
    rows = dict(zip(taken, take_rows(metrics["files"][0], taken, ["images"]).to_pylist(), strict=True))
    path = folder / "overview.png"
    title = "the model was given these series as numbers" if metrics.get("modality") == "numeric" else ""
    pictures = [rows[number]["images"][0]["bytes"] for number in numbers]
    path.write_bytes(overview_png(folder / "grpo", answers, pictures, title))
    return path


def some_of_each(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first answers about each class, classes in turn, NUM_PLOTS in all; never fewer than one of each class."""
    by_class: dict[str, list[dict[str, Any]]] = {}
    for one in answers:
        by_class.setdefault(one["truth"], []).append(one)
    turns = zip_longest(*by_class.values())
    return [one for turn in turns for one in turn if one is not None][: max(NUM_PLOTS, len(by_class))]


def main() -> None:
    """Print the table and write the files."""
    setup_logging()
    folder = Path(sys.argv[1])
    summary = collect(folder)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    picture = write_picture(folder)
    log.info("\n  accuracy on %d test rows     95 %% interval", summary["n"])
    for key, label in (("before", "before RL"), ("after", "after RL"), ("blank", "blanked images")):
        if key in summary:
            low, high = summary[key]["ci95"]
            log.info("  %-18s %.3f      [%.3f, %.3f]", label, summary[key]["accuracy"], low, high)
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
