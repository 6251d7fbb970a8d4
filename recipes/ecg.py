"""ECG: is a heart's rhythm normal, in atrial fibrillation, otherwise unusual, or is the recording too noisy to tell?

The PhysioNet/CinC Challenge 2017 (ODC-BY): 8528 recordings of a hand-held device with one lead, 9 to 61 seconds at
300 Hz, cut here into windows of 1500 readings (5 seconds) without overlap. **A window has the class of its recording**.
A window may lack the short episode of another rhythm that gave the recording its class; this limits any accuracy.

Sources, downloaded from PhysioNet or given as `--source DIR` (or a zip):
- the records with their REFERENCE.csv (training2017.zip, or PhysioNet's folder training/). Whole recordings are split
  into 80, 10 and 10 % with a fixed seed, and classes keep their shares; meta["group"] is the recording. Values are in
  millivolts;
- TF-C's train.pt, val.pt, test.pt, https://figshare.com/ndownloader/articles/19930253/versions/1 (43,673 windows),
  which the published figures seem to use. They contain neither the names of recordings nor units. Their classes are
  assumed to have the order of LABELS; a warning says so if the normal rhythm is not the most frequent class.

At most MAX_WINDOWS windows of a split are used, and classes keep their shares: all windows would not fit into memory,
and the published accuracies (60.00 and 25.40 %) are possible with 500 test windows. About 60 % are normal.

    bash example/data_preprocess/ecg.sh
"""

from __future__ import annotations

import logging
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import median

from timemaster.rewards import RewardPart, accuracy, format_strict
from timemaster.series.files import report_left_out
from timemaster.series.plot import PlotStyle
from timemaster.series.recordings import (
    at_most,
    fetch_physionet,
    fill_windows,
    find_records,
    numbered,
    opened,
    plan_records,
    read_reference,
    read_tfc,
)
from timemaster.series.splits import DOWNLOADS, Series, check_splits, stratified_split
from timemaster.tasks import SeriesClassification
from timemaster.types import InputError

logger = logging.getLogger(__name__)

PROJECT, ARCHIVE = "challenge-2017/1.0.0", "training2017.zip"
LABELS = ("normal sinus rhythm", "atrial fibrillation", "other cardiac rhythms", "noise")
CODES = dict(zip("NAO~", LABELS, strict=True))  # of REFERENCE.csv
RATE = 300  # readings per second
LENGTH = 1500  # readings of a window
MAX_WINDOWS = {"train": 8000, "validation": 500, "test": 500}
SPLIT_SEED = 1
REFRACTORY = 60  # readings, 0.2 seconds: no heart beats twice in this time

QUESTION = """<image>
This signal is an electrocardiogram from a hand-held device with one lead: 1500 readings in order of time, 300 per
second, 5 seconds in all. The values are the amplitude as the device recorded it (millivolts).

The recording that it is a part of is one of these:
- normal sinus rhythm: regular beats, each led by a small wave.
- atrial fibrillation: irregular distances between beats, no clear wave before them.
- other cardiac rhythms: another rhythm, such as one too slow, too fast, or with beats out of turn.
- noise: too disturbed to tell.

Consider how regular the distances between beats are, what comes before each beat, and how clean the signal is; then
decide. First reason inside <think> and </think>. Then give exactly one of the four names, normal sinus rhythm,
atrial fibrillation, other cardiac rhythms or noise, inside <class> and </class>."""


def load(source: Path | None) -> dict[str, list[Series]]:
    if source is None:
        source = fetch_physionet(PROJECT, [ARCHIVE], DOWNLOADS / "cinc2017") / ARCHIVE
    with opened(source, "train.pt", "REFERENCE.csv") as folder:
        if any(folder.rglob("train.pt")):
            splits = _read_tfc(folder)
        elif references := sorted(folder.rglob("REFERENCE.csv"), key=lambda path: (path.stat().st_size, path)):
            *others, longest = references  # validation/ holds 300 of the same records
            report_left_out("references", [str(path) for path in others], f"{longest} is longer")
            splits = _read_records(longest)
        else:
            raise InputError(
                f"{source}: holds neither REFERENCE.csv with its records (PhysioNet's training2017.zip) nor train.pt "
                "(TF-C). recipes/ecg.py says where to get them."
            )
    check_splits(splits, {split: len(series) for split, series in splits.items()}, LENGTH)
    return splits


def _read_tfc(folder: Path) -> dict[str, list[Series]]:
    splits = read_tfc(folder, dict(enumerate(LABELS)), MAX_WINDOWS)
    logger.warning("These files do not name recordings, so windows of one recording may be in several splits.")
    (label, _), *_ = Counter(series.label for series in splits["train"]).most_common(1)
    if label != LABELS[0]:
        logger.warning(
            "The most frequent class is %r, but in the Challenge it is the normal rhythm. The classes of these files "
            "may have another order than LABELS.", label,
        )  # fmt: skip
    return {split: numbered(series) for split, series in splits.items()}


def _read_records(reference: Path) -> dict[str, list[Series]]:
    labels, paths = read_reference(reference, CODES), find_records(reference.parent)
    planned = plan_records(labels, paths, LENGTH)
    records = [Series([], labels[record], i, {"record": record}) for i, record in enumerate(planned)]
    tenth = max(1, len(records) // 10)
    rest, test = stratified_split(records, len(records) - tenth, SPLIT_SEED)
    train, validation = stratified_split(rest, len(rest) - tenth, SPLIT_SEED)
    splits = {}
    for split, part in (("train", train), ("validation", validation), ("test", test)):
        chosen = numbered(at_most([w for r in part for w in planned[r.meta["record"]]], MAX_WINDOWS[split]))
        splits[split] = fill_windows(chosen, paths, RATE, LENGTH)
    return splits


def explain(series: Series, task: SeriesClassification) -> str:
    """The number of prominent peaks and the distances between them; with axes, also the range of values."""
    values = series.values[0]
    rest = median(values)
    half = max(abs(value - rest) for value in values) / 2
    peaks: list[int] = []
    for i, value in enumerate(values):
        if abs(value - rest) > half and (not peaks or i - peaks[-1] > REFRACTORY):
            peaks.append(i)
    gaps = [later - earlier for earlier, later in pairwise(peaks)]
    distances = f", {min(gaps)} to {max(gaps)} readings apart" if gaps else ""
    extent = f"The values run from {min(values):.2f} to {max(values):.2f}. " if task.plot.axes else ""
    return f"{extent}Peaks that stand out: {len(peaks)}{distances}."


TASK = SeriesClassification(
    name="ecg",
    data_source="ecg_dataset",
    labels=LABELS,
    question=QUESTION,
    load=load,
    plot=PlotStyle(title="ECG Signal", x_label="Timestamp", y_label="Amplitude (mV)"),
    rewards=(RewardPart("accuracy", 0.9, accuracy(LABELS)), RewardPart("format", 0.1, format_strict)),
    explain=explain,
)
