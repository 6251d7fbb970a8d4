"""From a recipe to a folder of plots and parquet files.

    python -m timemaster.data.prepare recipes.ctu [--source DIR] [--out data] [--workers N] [--seed 1]

makes <out>/<name>_image/ with

    images/{train,test}/    the plots as PNG files, named by split and index only
    train/, test/, dataset_dict.json    the whole splits, for `datasets.load_from_disk`: problem, answer, data, image
    train.parquet, validation.parquet, test.parquet    for training; validation is cut from the train split
    sft.parquet    the rows of train.parquet with a demonstration, where the recipe has an explainer

The folder is built under another name and swapped in at the end: a run that fails leaves the old one as it was.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from timemaster.types import InputError

if TYPE_CHECKING:
    from timemaster.data.series import Series
    from timemaster.tasks import Task

logger = logging.getLogger(__name__)


def prepare(task: Task, source: Path | None, out: Path, num_workers: int = 0, seed: int = 1) -> Path:
    """Make the folder of `task` below `out`; gives its path. `source` None fetches the series; `seed` cuts validation.

    Raises InputError when the series cannot be had or are not what the recipe says.
    """
    splits = task.load(source)
    folder = out / f"{task.name}_image"
    building = out / f".{task.name}_image.{os.getpid()}"
    try:
        building.mkdir(parents=True)
        plots = {
            split: _draw(task, series, building / "images" / split, num_workers) for split, series in splits.items()
        }
        _save_dataset_dict(task, splits, building)
        rows = _save_parquet(task, splits, plots, building, seed)
        _swap(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    _summarise(folder, rows, plots)
    return folder


def _image_name(split: str, series: Series) -> str:
    return f"{split}_sample_{series.index:05d}.png"  # never the label: a name can reach a model or a log


def _draw(task: Task, series: Sequence[Series], folder: Path, num_workers: int) -> dict[int, bytes]:
    """Draws and saves the plots of one split; gives them by series index."""
    from timemaster.data.plot import draw_many

    folder.mkdir(parents=True)
    plots = dict(zip((s.index for s in series), draw_many(series, task.plot, num_workers), strict=True))
    for item in series:
        (folder / _image_name(folder.name, item)).write_bytes(plots[item.index])
    return plots


def _save_dataset_dict(task: Task, splits: dict[str, list[Series]], folder: Path) -> None:
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
    task: Task, splits: dict[str, list[Series]], plots: dict[str, dict[int, bytes]], folder: Path, seed: int
) -> dict[str, Counter[str]]:
    """Writes the parquet files; gives the number of rows by file and class."""
    from timemaster.data.series import stratified_split
    from timemaster.data.store import plot_row, write_rows
    from timemaster.tasks import demonstration

    num_validation = max(1, round(task.validation_fraction * len(splits["train"])))
    validation, train = stratified_split(splits["train"], num_validation, seed)
    files = {"train": train, "validation": validation, "test": splits["test"]}
    if task.explain is not None:
        files["sft"] = train
    for name, series in files.items():
        drawn = plots["test" if name == "test" else "train"]
        split = "train" if name == "sft" else name
        rows = [
            plot_row(
                s,
                drawn[s.index],
                task.question,
                task.data_source,
                split,
                demonstration(task, s) if name == "sft" else "",
            )
            for s in series
        ]
        write_rows(folder / f"{name}.parquet", rows)
    return {name: Counter(s.label for s in series) for name, series in files.items()}


def _swap(new: Path, folder: Path) -> None:
    """Puts `new` in the place of `folder`. Between two renames the place is empty; nothing is ever half there."""
    old = new.with_name(f"{new.name}.old")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _summarise(folder: Path, rows: dict[str, Counter[str]], plots: dict[str, dict[int, bytes]]) -> None:
    from PIL import Image

    sizes = [Image.open(io.BytesIO(png)).size for drawn in plots.values() for png in drawn.values()]
    logger.info("%s", folder)
    for name, counts in rows.items():
        per_class = ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))
        logger.info("  %-18s %6d rows  (%s)", f"{name}.parquet", counts.total(), per_class)
    widths, heights = ("-".join(str(n) for n in sorted({min(side), max(side)})) for side in zip(*sizes, strict=True))
    logger.info("  %-18s %6d plots (%s x %s pixels)", "images/", len(sizes), widths, heights)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m timemaster.data.prepare", description="Make a recipe's data.")
    parser.add_argument("recipe", help="module with TASK, as in recipes.ctu")
    parser.add_argument("--source", type=Path, help="folder or zip with the series files (default: fetch them)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="where the folder is made (default: data)")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw (default: one per core)")
    parser.add_argument("--seed", type=int, default=1, help="of the validation split (default: 1)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    from timemaster.tasks import load_task

    try:
        prepare(load_task(options.recipe), options.source, options.out, options.workers, options.seed)
    except InputError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
