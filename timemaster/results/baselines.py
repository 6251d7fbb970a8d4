"""Classical classifiers on the raw series, from sktime: a model that reasons should beat them.

    1nn_euclid   the nearest training series by Euclidean distance
    1nn_dtw      the nearest by dynamic time warping in a Sakoe-Chiba band of `window` (a share of the length)
    rocket       10,000 random convolutions and a ridge classifier, Dempster et al. (2020), arXiv 1910.13051
    minirocket   an almost deterministic, faster variant, Dempster et al. (2021), arXiv 2012.08791

They learn from the training and validation rows together: this is the training split of the archive. All channels are
used at once (DTW: one path for all). The default window 1 is the UCR archive's "DTW (w=100)", which has no limit. It
needs no tuning, and on CTU it is better than a band (70.0 % right; 58.0 % with window 0.1).

Times on CTU (250 x 250 series of 720) on two busy cores, compilation included: 1nn_euclid 8 s, 1nn_dtw 120 s (processor
time 180 s; 70 s with window 0.1), rocket 100 s, minirocket 20 s.

The answers are stored and used again as long as data files, settings and the library's version are the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from timemaster.results.predictions import NAME, write_predictions
from timemaster.series.numeric import series_of
from timemaster.tasks import Task
from timemaster.types import Example, InputError

log = logging.getLogger(__name__)

BASELINES = ("1nn_euclid", "1nn_dtw", "rocket", "minirocket")
SEED = 1  # of the random convolutions of rocket
NUM_CHUNKS = 50  # of the test rows, for the progress bar and the processes
MANY_CELLS = 5e9  # with this many cells in DTW's tables, several processes are faster than one


def check_settings(names: Sequence[str], window: float) -> None:
    """InputError for an unknown baseline, and for a window outside 0 < window <= 1."""
    unknown = [name for name in names if name not in BASELINES]
    if unknown:
        raise InputError(f"--baselines {unknown[0]}: there are {', '.join(BASELINES)}.")
    if not 0 < window <= 1:
        raise InputError(f"--dtw-window {window}: give a share of the series' length, 0 < window <= 1.")


def classify(name: str, train: Sequence[Example], test: Sequence[Example], window: float = 1.0) -> list[str]:
    """What baseline `name` predicts for `test` after learning from `train`. The examples need `extra["series"]`.

    Raises InputError for an unknown name, missing series, and series of different shapes.
    """
    check_settings([name], window)
    panel = _panel([*train, *test])
    known, new = panel[: len(train)], panel[len(train) :]
    classes = [example.answer for example in train]
    if not name.startswith("1nn"):  # in one call: rocket starts slowly
        return [str(label) for label in _classifier(name, window).fit(known, _array(classes)).predict(new)]
    size = -(-len(new) // NUM_CHUNKS)
    chunks = [new[i : i + size] for i in range(0, len(new), size)]
    answer = partial(_nearest, name, window, known, classes)
    with tqdm(total=len(new), desc=name, unit="row", leave=False, disable=None) as bar:
        predicted: list[str] = []
        num_cells = len(known) * len(new) * panel[0].size * (panel.shape[2] * window if name == "1nn_dtw" else 1)
        for part in _each(answer, chunks, num_cells):
            predicted += part
            bar.update(len(part))
    return predicted


def _each(answer: Callable[[Any], list[str]], chunks: Sequence[Any], num_cells: float) -> Iterator[list[str]]:
    """The answers to each chunk, from several processes when the tables of distances have many cells."""
    import multiprocessing

    if num_cells < MANY_CELLS:
        yield from map(answer, chunks)
        return
    context = multiprocessing.get_context("spawn")  # not fork: this process has threads
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=context) as pool:
        yield from pool.map(answer, chunks)


def _nearest(name: str, window: float, known: Any, classes: Sequence[str], chunk: Any) -> list[str]:
    return [str(label) for label in _classifier(name, window).fit(known, _array(classes)).predict(chunk)]


def _classifier(name: str, window: float) -> Any:
    from sktime.classification.distance_based import KNeighborsTimeSeriesClassifier
    from sktime.classification.kernel_based import RocketClassifier

    if name == "1nn_euclid":
        return KNeighborsTimeSeriesClassifier(n_neighbors=1, distance="euclidean")
    if name == "1nn_dtw":
        band = {} if window == 1 else {"window": window}
        return KNeighborsTimeSeriesClassifier(n_neighbors=1, distance="dtw", distance_params=band)
    return RocketClassifier(num_kernels=10_000, rocket_transform=name, random_state=SEED)


def _array(classes: Sequence[str]) -> Any:
    import numpy as np

    return np.array(classes)


def _panel(examples: Sequence[Example]) -> Any:
    """The raw series as one array [rows, channels, length]."""
    import numpy as np

    rows = []
    for example in examples:
        try:
            rows.append(series_of(example))
        except InputError as error:
            raise InputError(f"{example.id}: {error}. Correct the row, or leave out --baselines.") from error
    shapes = {(len(row), *{len(channel) for channel in row}) for row in rows}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise InputError(
            f"The series differ in channels or length ({sorted(shapes)[:3]}, …): the baselines need one shape. Pad or "
            "cut them in the recipe, or leave out --baselines."
        )
    return np.array(rows, dtype=float)


def baseline(
    name: str, task: Task, rows: tuple[Sequence[Example], Sequence[Example]], folder: Path, window: float = 1.0
) -> Path:
    """The path of the baseline's predictions.jsonl in `folder`. The file of an equal earlier call is used again.

    `rows`: the rows to learn from, and the rows to answer.
    """
    train, test = rows
    settings: dict[str, Any] = {"baseline": name, "seed": SEED, "sktime": importlib.metadata.version("sktime")}
    settings |= {"window": window} if name == "1nn_dtw" else {}
    files = sorted({str(example.extra["file"]) for example in [*train, *test]})
    key = hashlib.sha256(json.dumps(settings).encode())
    for file in files:
        key.update(hashlib.sha256(Path(file).read_bytes()).digest())
    about = folder / "baseline.json"
    if (
        about.is_file()
        and (folder / NAME).is_file()
        and json.loads(about.read_text(encoding="utf-8"))["key"] == key.hexdigest()
    ):
        log.info("%s: using the answers in %s again, the files are the same", name, folder)
        return folder / NAME
    log.info("%s: learning from %d series, answering %d", name, len(train), len(test))
    started = time.perf_counter()
    predicted = classify(name, train, test, window)
    answers = [task.evaluation.outside_answer(row, label, label) for row, label in zip(test, predicted, strict=True)]
    path = write_predictions(folder, [[answer] for answer in answers])
    seconds = round(time.perf_counter() - started, 1)
    about.write_text(
        json.dumps(settings | {"files": files, "seconds": seconds, "key": key.hexdigest()}, indent=2), encoding="utf-8"
    )
    log.info("%s: %.1f seconds", name, seconds)
    return path
