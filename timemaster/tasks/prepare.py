"""Make a folder of plots and parquet files from a recipe.

    timemaster prepare recipes.ctu [--source DIR] [--out data] [--plot small] [--workers N] [--seed 1]

makes <out>/<name>_image/, or with --plot small <out>/<name>_small/ (plots without axes and a short question, for the
embedded tiny model). The recipe must be a SeriesClassification. The folder holds

    images/{train,test}/    the plots as PNG files, named by split and index only
    train/, test/, dataset_dict.json    the whole splits, for `datasets.load_from_disk`: problem, answer, data, image
    train.parquet, validation.parquet, test.parquet    for training
    sft.parquet    the rows of train.parquet with a demonstration, if the recipe has an explainer

Validation is the recipe's own split if its `load` returns one; then images/validation/ and validation/ are made, too.
Otherwise it is cut from the train split, which stays whole in train/. If the series have meta["group"] (their person or
recording), whole groups are taken; otherwise rows are drawn at random with the shares of the classes kept. The printed
summary says which of these was done.

The folder is built in .<name>_image/ beside the old one, locked by one process at a time, and moved into place at the
end. If a run fails or is killed, the old folder stays as it was, or the next run restores it.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from timemaster.series.files import writing
from timemaster.system.console import print_any_letter
from timemaster.system.locks import folder_lock
from timemaster.types import InputError

if TYPE_CHECKING:
    from timemaster.series.splits import Series
    from timemaster.tasks import SeriesClassification

    Splits = dict[str, list[Series]]
    Files = dict[str, tuple[str, list[int]]]  # parquet file -> the split, and the positions of its rows in the split

logger = logging.getLogger(__name__)

OTHER_OUT = "choose another folder: --out DIR"
PLOTS = ("published", "small")  # the recipe's `plot`; its `small_plot`, with a short question


def prepare(
    task: SeriesClassification,
    source: Path | None,
    out: Path,
    num_workers: int = 0,
    seed: int = 1,
    plot: str = "published",
) -> Path:
    """Make the folder of `task` in `out` and return its path. `source` None downloads the series.

    Raises InputError when the series cannot be read or are not as the recipe says.
    """
    assert plot in PLOTS
    folder = out / f"{task.name}_{'small' if plot == 'small' else 'image'}"
    if plot == "small":
        task = small_variant(task)
    workplace = out / f".{folder.name}"
    try:
        with folder_lock(workplace, f"the preparation of {folder}"):
            with writing(out, OTHER_OUT):
                _clean(workplace, folder)
            splits = task.load(source)
            _check_splits(task, splits)
            files, how = _files(task, splits, seed)
            _check_classes(task, splits, files)
            try:
                with writing(out, OTHER_OUT):
                    new = workplace / "new"
                    plots = _draw(task, splits, new / "images", num_workers)
                    _save_dataset_dict(task, splits, new)
                    rows = _save_parquet(task, splits, plots, files, new)
                    _swap(workplace, folder)
            finally:
                shutil.rmtree(workplace / "new", ignore_errors=True)
    finally:
        with suppress(OSError):  # not empty: another process uses it
            workplace.rmdir()
    _summarise(folder, rows, plots, how)
    return folder


def small_variant(task: SeriesClassification) -> SeriesClassification:
    """The task as `--plot small` prepares it: its small plot, and a short question with the labels and the tags.

    It is for a model of a million parameters on a small machine, where every token of a prompt costs time.
    Example: "<image>Desktop or Laptop? Use <think> and <class>."
    """
    from timemaster.tasks import IMAGE

    tags = [tag for tag in dict.fromkeys(re.findall(r"<\w+>", task.question)) if tag != IMAGE]
    question = f"{IMAGE}{_listed(task.labels, 'or')}?" + (f" Use {_listed(tags, 'and')}." if tags else "")
    return replace(task, plot=task.small_plot, question=question)


def _listed(words: Sequence[str], last: str) -> str:
    return f" {last} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _check_splits(task: SeriesClassification, splits: Splits) -> None:
    if not {"train", "test"} <= splits.keys() <= {"train", "test", "validation"}:
        raise InputError(f"Recipe {task.name}: load gives {list(splits)}; give train, test and, if any, validation.")
    for split, series in splits.items():
        indices = Counter(s.index for s in series)
        repeated = [index for index, count in indices.items() if count > 1]
        if repeated:
            raise InputError(
                f"Recipe {task.name}: {len(repeated)} indices repeat in the {split} split (first: {repeated[0]}), "
                "and plots are named by index. Number the series of each split: replace(series, index=i)."
            )
        unknown = sorted({s.label for s in series} - set(task.labels))
        if unknown:
            raise InputError(f"Recipe {task.name}: {split} has {unknown}; its labels are {', '.join(task.labels)}.")
        if not series:
            raise InputError(f"Recipe {task.name}: the {split} split has no series.")


def _check_classes(task: SeriesClassification, splits: Splits, files: Files) -> None:
    """InputError when a class has no training row; a warning when it is missing in another file only."""
    for name, (split, positions) in files.items():
        lacks = [label for label in task.labels if label not in {splits[split][i].label for i in positions}]
        if not lacks:
            continue
        message = f"{name}.parquet has no row of {', '.join(lacks)}"
        if name == "train":
            counts = Counter(s.label for series in splits.values() for s in series)
            had = ", ".join(f"{counts[label]} of {label}" for label in lacks)
            raise InputError(
                f"Recipe {task.name}: {message}; the source has {had}. The question names every class: give a source "
                "with more of them, or take them out of the recipe's labels and question."
            )
        if name != "sft":
            logger.warning("%s: too few rows, or none in the source", message)


def _files(task: SeriesClassification, splits: Splits, seed: int) -> tuple[Files, str]:
    """The parquet files, each with its split and the positions of its rows in it, and how validation was made."""
    from timemaster.series.splits import choose_groups, choose_stratified

    everything = {split: (split, list(range(len(series)))) for split, series in splits.items()}
    train = splits["train"]
    if "validation" in splits:
        files, how = everything, "the recipe's own split"
    else:
        size = max(1, round(task.validation_fraction * len(train)))
        by_group = any("group" in s.meta for s in train)
        chosen = (choose_groups if by_group else choose_stratified)(train, size, seed)
        files = everything | {
            "train": ("train", [i for i in range(len(train)) if i not in chosen]),
            "validation": ("train", sorted(chosen)),
        }
        how = f"cut from the train split, seed {seed}, shares of the classes kept"
        if by_group:
            num_groups, num_taken = len({s.meta["group"] for s in train}), len({train[i].meta["group"] for i in chosen})
            how = f"cut from the train split, seed {seed}, {num_taken} of {num_groups} whole groups"
    if task.explain is not None:
        files["sft"] = files["train"]
    return {name: files[name] for name in ("train", "validation", "test", "sft") if name in files}, how


def _image_name(split: str, series: Series) -> str:
    return f"{split}_sample_{series.index:05d}.png"  # without the label: a name can reach a model or a log


def _draw(task: SeriesClassification, splits: Splits, folder: Path, num_workers: int) -> dict[str, list[bytes]]:
    """Draw and save all plots. Returns them by split, in the order of its series."""
    from timemaster.series.plot import draw_many

    # All splits in one call: several processes are faster only for many plots.
    drawn = iter(draw_many([s for series in splits.values() for s in series], task.plot, num_workers))
    plots = {split: [next(drawn) for _ in series] for split, series in splits.items()}
    for split, series in splits.items():
        (folder / split).mkdir(parents=True)
        for item, png in zip(series, plots[split], strict=True):
            (folder / split / _image_name(split, item)).write_bytes(png)
    return plots


def _save_dataset_dict(task: SeriesClassification, splits: Splits, folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {
                    "problem": [task.question] * len(series),
                    "answer": [s.label for s in series],
                    "data": [s.values[0] if len(s.values) == 1 else s.values for s in series],
                    "image": [_image_name(split, s) for s in series],
                }
            )
            for split, series in splits.items()
        }
    ).save_to_disk(folder)


def _save_parquet(
    task: SeriesClassification,
    splits: Splits,
    plots: dict[str, list[bytes]],
    files: Files,
    folder: Path,
) -> dict[str, Counter[str]]:
    """Write the parquet files. Returns the number of rows by file and class."""
    from timemaster.data.store import plot_row, write_rows
    from timemaster.tasks import demonstration

    for name, (split, positions) in files.items():
        rows = []
        for position in positions:
            series, png = splits[split][position], plots[split][position]
            text = demonstration(task, series) if name == "sft" else ""
            split_name = "train" if name == "sft" else name
            rows.append(plot_row(series, png, task.question, task.data_source, split_name, text))
        write_rows(folder / f"{name}.parquet", rows)
    return {name: Counter(splits[split][i].label for i in positions) for name, (split, positions) in files.items()}


def _swap(workplace: Path, folder: Path) -> None:
    """Replace the old folder by the new one with two renames, so the folder is never incomplete."""
    if folder.exists():
        folder.rename(workplace / "old")
    (workplace / "new").rename(folder)
    _remove(workplace / "old")


def _clean(workplace: Path, folder: Path) -> None:
    """Undo what a killed process left: remove an unfinished folder, restore the old one if it had been moved away."""
    _remove(workplace / "new")
    if (workplace / "old").exists() and not folder.exists():
        (workplace / "old").rename(folder)
    _remove(workplace / "old")


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _summarise(folder: Path, rows: dict[str, Counter[str]], plots: dict[str, list[bytes]], how: str) -> None:
    from timemaster.media.images import image_media

    media = (image_media(png) for drawn in plots.values() for png in drawn)
    sizes = [(image.width, image.height) for image in media]
    logger.info("%s", folder)
    for name, counts in rows.items():
        per_class = ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))
        logger.info("  %-18s %6d rows  (%s)", f"{name}.parquet", counts.total(), per_class)
    logger.info("  validation is %s", how)
    widths, heights = ("-".join(str(n) for n in sorted({min(side), max(side)})) for side in zip(*sizes, strict=True))
    logger.info("  %-18s %6d plots (%s x %s pixels)", "images/", len(sizes), widths, heights)


def main(arguments: Sequence[str] | None = None) -> None:
    print_any_letter()
    parser = argparse.ArgumentParser(prog="timemaster prepare", description="Make a recipe's data.")
    parser.add_argument("recipe", help="module with TASK, as in recipes.ctu")
    parser.add_argument("--source", type=Path, help="folder or zip with the series files (default: download them)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="where the folder is made (default: data)")
    parser.add_argument(
        "--plot",
        choices=PLOTS,
        default="published",
        help="small: plots without axes and a short question, for the embedded tiny model",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that draw (default: one per core)")
    parser.add_argument("--seed", type=int, default=1, help="of the validation split (default: 1)")
    options = parser.parse_args(arguments)
    if options.workers < 0:
        parser.error("--workers is 0 (one per core) or more")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    from timemaster.system.signals import end_on_sigterm
    from timemaster.tasks import as_series_classification, load_task

    end_on_sigterm()
    try:
        task = as_series_classification(load_task(options.recipe), "prepare")
        prepare(task, options.source, options.out, options.workers, options.seed, options.plot)
    except InputError as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted: the unfinished folder was removed\n")


if __name__ == "__main__":
    main()
