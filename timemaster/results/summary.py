"""The closing table of the quickstart, its summary.json and its picture.

timemaster summary FOLDER
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from timemaster.metrics.answers import Answer, from_row
from timemaster.metrics.classification import WITHOUT_TASK
from timemaster.metrics.evaluation import Number
from timemaster.metrics.summary import Headline, headline_of, numbers_of
from timemaster.run.step_names import by_step
from timemaster.system.console import print_any_letter, setup_logging
from timemaster.types import InputError

log = logging.getLogger("timemaster.results.summary")
NUM_PLOTS = 6  # in the picture; more when there are more truths


def collect(folder: Path) -> dict[str, Any]:
    """The headlines of `read_headlines`, the seconds of each stage, and the peak memory.

    Example: {"n": 328, "before": {"accuracy": 0.5, "ci95": [0.44, 0.55]}, "seconds": {"grpo": 61.0}, …}
    Raises InputError when an evaluation has no headline.
    """
    headlines = read_headlines(folder)
    seconds = dict(line.split() for line in (folder / "seconds").read_text(encoding="utf-8").splitlines())
    return {
        "n": next(iter(headlines.values())).n,
        **{key: {head.number.name: head.value, "ci95": list(head.ci95)} for key, head in headlines.items()},
        "seconds": {name: float(value) for name, value in seconds.items()},
        "peak_memory_gib": float((folder / "peak_memory_gib").read_text(encoding="utf-8")),
    }


def read_headlines(folder: Path) -> dict[str, Headline]:
    """The headlines before RL, after RL and with blanked images, if they were evaluated.

    Raises InputError when an evaluation has none.
    """
    evaluations = folder / "grpo" / "eval"
    last = last_step(evaluations)
    names = {"before": "step_0"} | ({"after": f"step_{last}", "blank": f"step_{last}_blank"} if last else {})
    folders = {key: evaluations / name for key, name in names.items() if (evaluations / name).is_dir()}
    headlines = {key: headline_of(read_metrics(path)) for key, path in folders.items()}
    missing = [folders[key] for key, headline in headlines.items() if headline is None]
    if missing:
        raise InputError(f"{missing[0]}/metrics.json: no answer was measured, so there is no summary.")
    return {key: headline for key, headline in headlines.items() if headline is not None}


def last_step(evaluations: Path) -> int:
    """The last step that was evaluated with greedy answers and images."""
    steps = by_step(evaluations, "step_*")
    if not steps:
        raise InputError(f"{evaluations} holds no step_<N>: evaluate the run first, EVAL=True with its script.")
    return max(steps)


def read_metrics(evaluation: Path) -> dict[str, Any]:
    """metrics.json of an evaluation."""
    return dict(json.loads((evaluation / "metrics.json").read_text(encoding="utf-8")))


def write_picture(folder: Path) -> Path:
    """overview.png: some test plots with their answers, and the curves of the run."""
    from timemaster.data.store import take_rows
    from timemaster.results.plot_results import DrawnAnswer, overview_png

    evaluations = folder / "grpo" / "eval"
    step = last_step(evaluations)
    metrics = read_metrics(evaluations / f"step_{step}")
    lines = (evaluations / f"step_{step}" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [measured(from_row(json.loads(line))) for line in lines]
    number = numbers_of(metrics)[0]
    chosen = some_of_each(answers) if number.is_share else from_best_to_worst(answers, number)
    rows = [int(answer.id.rpartition(":")[2]) for answer in chosen]
    distinct = sorted(set(rows))
    plots = dict(zip(distinct, take_rows(metrics["files"][0], distinct, ["images"]).to_pylist(), strict=True))
    drawn = [
        DrawnAnswer(
            image=plots[row]["images"][0]["bytes"],
            truth=answer.truth,
            prediction=answer.prediction,
            text=answer.response,
            outcome=answer.outcome,
            value=None if number.is_share else f"{number.name} {answer.numbers[number.name]:.3g}",
        )
        for answer, row in zip(chosen, rows, strict=True)
    ]
    title = f"Greedy answers after step {step}: " if step else "Greedy answers before training: "
    title += f"{results_in_words(answers, metrics)} of {len(answers)} test rows"
    title += "; the model was given these series as numbers" if metrics.get("modality") == "numeric" else ""
    path = folder / "overview.png"
    path.write_bytes(overview_png(folder / "grpo", drawn, title))
    return path


def measured(answer: Answer) -> Answer:
    """An answer with its outcome. If its data source has no recipe, its rewards decide the outcome."""
    return answer if answer.outcome else WITHOUT_TASK.measured(answer)


def results_in_words(answers: Sequence[Answer], metrics: Mapping[str, Any]) -> str:
    """How many answers are right, wrong and unparsed; for real numbers, the headline and how many are unparsed."""
    counts = Counter(answer.outcome for answer in answers)
    headline = headline_of(metrics)
    if headline is None or headline.number.is_share:
        names = ["right", "wrong", "unparsed", *(["unscored"] if counts["unscored"] else [])]
        return ", ".join(f"{counts[name]} {name}" for name in names)
    return f"{headline}, {counts['unparsed']} unparsed"


def from_best_to_worst(answers: Sequence[Answer], number: Number) -> list[Answer]:
    """NUM_PLOTS answers, evenly spread from the best number to the worst, both included."""
    known = [answer for answer in answers if number.name in answer.numbers]
    ordered = sorted(known, key=lambda answer: answer.numbers[number.name], reverse=number.higher_is_better)
    last = len(ordered) - 1
    return [ordered[i] for i in sorted({round(k * last / (NUM_PLOTS - 1)) for k in range(NUM_PLOTS)})]


def some_of_each(answers: Sequence[Answer]) -> list[Answer]:
    """NUM_PLOTS answers, at least one of each truth: truths take turns, and right answers take turns with others.

    If all of these are right although others exist, the first of the others replaces one with the same truth.
    """
    by_truth: dict[str, tuple[list[Answer], list[Answer]]] = {}
    for answer in answers:
        by_truth.setdefault(answer.truth, ([], []))[answer.outcome != "right"].append(answer)
    mixed = [[answer for pair in zip_longest(*both) for answer in pair if answer] for both in by_truth.values()]
    chosen = [answer for turn in zip_longest(*mixed) for answer in turn if answer][: max(NUM_PLOTS, len(by_truth))]
    other = next((answer for answer in answers if answer.outcome != "right"), None)
    if other and all(answer.outcome == "right" for answer in chosen):
        chosen[max(i for i, answer in enumerate(chosen) if answer.truth == other.truth)] = other
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
    headlines = read_headlines(folder)
    number = next(iter(headlines.values())).number
    log.info("\n  %s on %d test rows, greedy     95 %% interval", number.heading, summary["n"])
    for key, name in (("before", "before RL"), ("after", "after RL"), ("blank", "blanked images")):
        if key in headlines:
            low, high = headlines[key].ci95
            log.info("  %-26s %.3f      [%.3f, %.3f]", name, headlines[key].value, low, high)
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
