"""Compare everything that was tried on a dataset: checkpoints, classical baselines, API models, published numbers.

    timemaster compare recipes.ctu --data data/ctu_image --runs checkpoints/TimeMaster_CTU/RUN
        --baselines 1nn_euclid,1nn_dtw,rocket --zero-shot --few-shot 2 --base-url URL --model NAME

writes outputs/compare/<task>/ with compare.md, compare.csv, compare.png and, for each baseline and API model, its
answers in <name>/predictions.jsonl. All rows of the table answer the same test.parquet; answers that cannot be read are
counted, not left out. The checkpoints of a run are those that were evaluated (EVAL=True): every eval/step_*/ of its
folder; several samples of a row are combined by vote. The task's evaluation says which number is compared, how its 95 %
interval is made, and which paired test gives p against one row: the best checkpoint or --reference NAME. Baselines and
--few-shot need a task whose answers are classes.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from timemaster.judge import Chat, Store, add_chat_options, chats_from, settings_of
from timemaster.metrics.answers import Answer, answer_of_text
from timemaster.metrics.evaluation import Number
from timemaster.metrics.paired import check_pairs
from timemaster.results.baselines import baseline, check_settings
from timemaster.results.predictions import NAME, read_predictions, write_predictions
from timemaster.results.prompting import ask_model, choose_shots
from timemaster.results.published import quoted
from timemaster.results.table import Result, markdown, write_csv
from timemaster.system.console import print_any_letter
from timemaster.tasks import Task, load_task
from timemaster.tasks.rows import with_task_answers
from timemaster.types import Example, InputError

log = logging.getLogger(__name__)
OF_TEST = re.compile(r"step_\d+(_t[\d.e-]+)?(_n\d+)?(_blank)?")  # evaluations of other rows have other names


@dataclass(frozen=True, slots=True)
class Entry:
    """A predictions file with the name of its row. Example: Entry("rocket", "baseline", Path("…/predictions.jsonl"))"""

    name: str
    kind: str  # as a `Result` has it
    path: Path


def compare(task: Task, options: argparse.Namespace) -> list[Result]:
    """Make the table that `options` (see `parser`) ask for, and write it. Returns its rows.

    All checks come first, then the baselines, then the calls that cost money.
    """
    folder, out = Path(options.data), options.out or Path("outputs/compare") / task.name
    baselines, models = baseline_rows(options), model_rows(options)
    check_kind(task, options)
    run_names = names_of_runs([Path(run) for run in options.runs])
    evaluated = [entry for run, name in run_names.items() for entry in run_entries(run, name)]
    evaluated += [Entry(*_split_name(argument)) for argument in options.predictions]
    names = [*(row[0] for row in baselines), *(row[0] for row in models), *(entry.name for entry in evaluated)]
    check_names(names, options.reference)
    test = read_rows(task, [folder / "test.parquet"])
    for entry in evaluated:
        read_answers(task, entry, test)
    files = [folder / "train.parquet", *folder.glob("validation.parquet")]
    train = read_rows(task, files) if baselines or options.few_shot else []
    chats = _chats(options, out)
    shots = {k: choose_shots(train, task.evaluation.choices, k, options.seed) for _, _, k in models}
    entries = []
    for name, method in baselines:
        entries.append(Entry(name, "baseline", baseline(method, task, (train, test), out / name, options.dtw_window)))
    for name, model, k in models:
        answers = ask_model(chats[model], task, test, shots[k], name)
        path = write_predictions(out / re.sub(r"[^\w.-]+", "_", name), [[answer] for answer in answers])
        entries.append(Entry(name, "model", path))
    results = measure_entries(task, [*entries, *evaluated], test, options.reference)
    write_table(out, task, [*results, *quoted(task.data_source)], test)
    return results


def read_rows(task: Task, files: Sequence[Path]) -> list[Example]:
    """The rows of a task's parquet files, with the raw series. InputError for bad rows and those of another task."""
    from timemaster.data.store import read_examples, report_bad_rows

    examples, _ = read_examples([str(file) for file in files], "raise", task.data_source, with_series=True)
    task_rows = [example for example in examples if example.data_source == task.data_source]
    if not task_rows:
        other = sorted({example.data_source for example in examples})
        raise InputError(f"{files[0]} holds rows of {', '.join(other)}; the recipe is of {task.data_source!r}.")
    spelled, bad = with_task_answers(task_rows, {task.data_source: task})
    report_bad_rows(bad, len(task_rows), "raise")
    return spelled


def check_kind(task: Task, options: argparse.Namespace) -> None:
    """InputError for baselines and examples in the prompt where answers are open: both need a list of classes."""
    options_set = [name for name in ("baselines", "few_shot") if getattr(options, name)]
    if options_set and not task.evaluation.choices:
        raise InputError(
            f"--{options_set[0].replace('_', '-')}: it needs a task with a closed list of classes, and the answers of "
            f"{task.name} are open. Leave it out."
        )


def baseline_rows(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The name in the table and the name of each baseline. Example: [("1nn_dtw_w0.1", "1nn_dtw")]"""
    names, window = [name for name in options.baselines.split(",") if name], options.dtw_window
    check_settings(names, window)
    return [(f"{name}_w{window:g}" if name == "1nn_dtw" and window < 1 else name, name) for name in names]


def model_rows(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """Name in the table, model, and examples per class, for each way of asking. Example: [("m 2-shot", "m", 2)]"""
    counts = ([0] if options.zero_shot else []) + ([options.few_shot] if options.few_shot else [])
    if bool(counts) != bool(options.model):
        raise InputError("--model needs --zero-shot, --few-shot K or both, and these need --model NAME.")
    if min(counts, default=0) < 0:
        raise InputError(f"--few-shot {options.few_shot}: give the number of examples per class, 1 or more.")
    if options.concurrency < 1:
        raise InputError(f"--concurrency {options.concurrency}: give the number of calls in flight, 1 or more.")
    return [(f"{model} {f'{k}-shot' if k else 'zero-shot'}", model, k) for model in options.model for k in counts]


def names_of_runs(runs: Sequence[Path]) -> dict[Path, str]:
    """The name of each run: as many of its last folders as distinguish it from the others."""
    parts = {run: path.parts for path, run in {run.resolve(): run for run in runs}.items()}
    depths = range(1, max(map(len, parts.values()), default=1) + 1)
    depth = next((n for n in depths if len({folders[-n:] for folders in parts.values()}) == len(parts)), 1)
    return {run: "/".join(folders[-depth:]) for run, folders in parts.items()}


def run_entries(run: Path, name: str) -> list[Entry]:
    """The evaluations of a run, by step, called <name>/<evaluation>. Raises InputError when there are none."""
    all_paths = [path.parent for path in run.glob(f"eval/step_*/{NAME}")]
    paths = [path for path in all_paths if OF_TEST.fullmatch(path.name)]
    if not paths:
        others = f" (only of other rows: {', '.join(sorted(path.name for path in all_paths))})" if all_paths else ""
        raise InputError(
            f"{run} has no eval/step_*/{NAME}{others}: evaluate the run first, on test.parquet (EVAL=True), or "
            "correct --runs."
        )
    steps = {path: int(re.sub(r"^step_(\d+).*$", r"\1", path.name)) for path in paths}
    ordered = sorted(paths, key=lambda path: (steps[path], path.name))
    return [Entry(f"{name}/{path.name}", "checkpoint", path / NAME) for path in ordered]


def _split_name(argument: str) -> tuple[str, str, Path]:
    name, equals, path = argument.partition("=")
    if not (name and equals and path):
        raise InputError(f"--predictions {argument}: write NAME=FILE, as in mine=eval/step_40/{NAME}.")
    return name, "predictions", Path(path)


def check_names(names: Sequence[str], reference: str) -> None:
    """InputError when two rows have the same name, or none has that of the reference."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"Two rows are called {repeated[0]!r}: give one as --predictions NAME=FILE with another name.")
    if reference and reference not in names:
        raise InputError(f"--reference {reference}: the rows are {', '.join(names) or 'none'}.")


def _chats(options: argparse.Namespace, out: Path) -> dict[str, Chat]:
    """The API models by name. Nothing is asked yet."""
    if not options.model:
        return {}
    store = Store(options.cache or out / "replies.sqlite")
    return dict(zip(options.model, chats_from(settings_of(options), store, "compare"), strict=True))


def read_answers(task: Task, entry: Entry, test: Sequence[Example]) -> dict[str, Answer]:
    """The measured answers of an entry by example id. Raises InputError when its file has other rows than `test`."""
    truths = {example.id: answer_of_text(example, "", None) for example in test}
    answers = read_predictions(entry.path, task.data_source, task.evaluation)
    check_pairs(truths, answers, (str(test[0].extra["file"]), str(entry.path)))
    return answers


def measure_entries(task: Task, entries: Sequence[Entry], test: Sequence[Example], reference: str = "") -> list[Result]:
    """A row of the table for each predictions file about `test`, with its paired test against the reference's row.

    Raises InputError when a file has other rows than `test`, or nothing says what its answers are worth.
    """
    evaluation, number = task.evaluation, task.evaluation.headline
    answers = {entry.name: read_answers(task, entry, test) for entry in entries}
    results = []
    for entry in entries:
        figures = evaluation.figures([[answer] for answer in answers[entry.name].values()], seed=1)
        if figures[number.name] is None:
            raise InputError(f"{entry.path}: no {number.name} is known of its answers, so they cannot be compared.")
        low, high = figures[f"{number.name}_ci95"]
        others = {key: figures[key] for key in evaluation.columns}
        results.append(
            Result(
                name=entry.name, kind=entry.kind, value=figures[number.name], n=figures["n"], ci95=(low, high),
                others=others, unparsed=figures["unparsed"] / figures["n"], note=str(entry.path),
            )
        )  # fmt: skip
    if not results:
        return []
    name = choose_reference(results, reference, number)
    tests = {r.name: evaluation.paired_test(answers[r.name], answers[name], (r.name, name)) for r in results}
    return [result if result.name == name else replace(result, p=tests[result.name].p) for result in results]


def choose_reference(results: Sequence[Result], name: str, number: Number) -> str:
    """The row that others are tested against: `name`, else the best checkpoint that saw its images, else the best."""
    seeing = [result for result in results if result.kind == "checkpoint" and not result.name.endswith("_blank")]
    sign = 1 if number.higher_is_better else -1
    return name or max(seeing or results, key=lambda result: sign * result.value).name


def write_table(out: Path, task: Task, results: Sequence[Result], test: Sequence[Example]) -> None:
    """Write compare.md, compare.csv and compare.png to `out`, and print the table."""
    from timemaster.results.plot_results import comparison_png

    evaluation = task.evaluation
    trivial = evaluation.trivial([example.answer for example in test])
    reference = next((result.name for result in results if result.n is not None and result.p is None), "")
    notes = [result.note for result in results if result.kind == "quoted"]
    classes = f", {len(evaluation.choices)} classes" if evaluation.choices else ""
    test_note = f"p: {evaluation.test_name} on the same rows against {reference}." if reference else ""
    remarks = [trivial.text if trivial else "", evaluation.unread_note, evaluation.interval_note, test_note]
    lines = [
        f"# {task.name}: {len(test)} test rows{classes}\n",
        *markdown(results, evaluation.headline, evaluation.columns, reference),
        "\n" + " ".join(remark for remark in remarks if remark),
        *(f"\n(quoted): quoted, not reproduced here, n unknown; {note}." for note in dict.fromkeys(notes)),
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_csv(out / "compare.csv", results, evaluation.headline, evaluation.columns)
    picture = comparison_png(results, f"{task.name}: {len(test)} test rows", evaluation.headline, trivial)
    (out / "compare.png").write_bytes(picture)
    log.info("\n%s\n\n  written to %s", "\n".join(lines), out)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    out = argparse.ArgumentParser(
        prog="timemaster compare", description="Compare everything that was tried on a dataset."
    )
    out.add_argument("recipe", help="module with TASK, as in recipes.ctu")
    out.add_argument("--data", required=True, help="folder with train, validation and test.parquet")
    out.add_argument(
        "--runs", nargs="+", action="extend", default=[], metavar="RUNDIR", help="runs whose evaluations are rows"
    )
    out.add_argument(
        "--predictions", nargs="+", action="extend", default=[], metavar="NAME=FILE", help=f"any other {NAME}"
    )
    out.add_argument("--baselines", default="", help="some of 1nn_euclid,1nn_dtw,rocket,minirocket")
    out.add_argument("--dtw-window", type=float, default=1.0, help="Sakoe-Chiba band of 1nn_dtw, share of the length")
    out.add_argument("--reference", default="", help="the row that the others are tested against")
    out.add_argument("--out", type=Path, help="default: outputs/compare/<task>")
    api = out.add_argument_group("OpenAI-compatible models")
    api.add_argument("--model", nargs="+", action="extend", default=[], metavar="NAME")
    api.add_argument("--zero-shot", action="store_true", help="ask the dataset's question alone")
    api.add_argument(
        "--few-shot", type=int, default=0, metavar="K", help="ask after K plots of each class with their answers"
    )
    api.add_argument("--seed", type=int, default=1, help="seed of the choice of these plots")
    api.add_argument("--cache", type=Path, help="SQLite file of replies; default: replies.sqlite in --out")
    add_chat_options(api, temperature=0.0)
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    print_any_letter()
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("timemaster").setLevel(logging.INFO)
    log.setLevel(logging.INFO)
    try:
        compare(load_task(options.recipe), options)
    except (InputError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished baselines and replies are kept\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
