"""EMG: is a muscle healthy, or is the muscle or its nerve diseased?

PhysioNet's emgdb 1.0.0 (ODC-BY): needle electromyograms of the tibialis anterior of three people, 4 kHz, millivolts,
cut here into windows of 1500 readings. **Each class is one recording**: one person is healthy, one has a myopathy, one
a neuropathy. Every test window comes from a person of the training windows. So an accuracy says how well these three
recordings can be told apart, not how well a fourth person can be diagnosed. The standard deviation of a window is
nearly enough to tell them apart.

Sources, downloaded from PhysioNet or given as `--source DIR` (or a zip):
- emg_healthy, emg_myopathy, emg_neuropathy (.hea, .dat): split by time, the first 60 % of each recording for training,
  then 20 % for validation and 20 % for testing, so that neighbours in time are mostly in one split;
- TF-C's train.pt, val.pt, test.pt (122, 41 and 41 windows),
  https://figshare.com/ndownloader/articles/19930250/versions/1, which the published figures seem to use. This host
  sometimes refuses scripts: use a browser;
- EMG_TRAIN.ts, EMG_TEST.ts (122 and 41 windows);
- the UCR archive's `NerveDamage` (.ts, .arff), which was not available to us. Its classes are read by name; a file with
  numbers instead is refused, because their order is not known.

In the files of TF-C, class 1 is myopathy and class 2 neuropathy. Another copy in circulation has the two names swapped.
The median peak-to-peak values of 0.06, 0.10 and 0.33 mV for classes 0, 1 and 2 support the order used here, because
large units are typical of neuropathy.

    bash example/data_preprocess/emg.sh
"""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from timemaster.rewards import RewardPart, accuracy, format_strict
from timemaster.series.plot import PlotStyle
from timemaster.series.recordings import fetch_physionet, find, numbered, opened, read_record, read_tfc, windows
from timemaster.series.splits import DOWNLOADS, Series, check_splits, read_splits
from timemaster.tasks import SeriesClassification
from timemaster.types import InputError

logger = logging.getLogger(__name__)

PROJECT, ARCHIVE = "emgdb/1.0.0", "NerveDamage"
LABELS = ("Healthy", "Myopathy", "Neuropathy")
RECORDS = {"emg_healthy": "Healthy", "emg_myopathy": "Myopathy", "emg_neuropathy": "Neuropathy"}
RATE = 4000  # readings per second
LENGTH = 1500  # readings of a window
SHARES = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}  # of each recording

SIGNAL = """<image>
This signal is a needle electromyogram of the muscle at the front of the shin, recorded while the person gently pulled
the foot up against resistance: 1500 readings in order of time, 4000 per second, 0.375 seconds in all. The values are
the voltage at the needle in millivolts.

The muscle is one of these:
- Healthy: potentials of moderate size, and a muscle that follows its nerve.
- Myopathy: the muscle fibres are diseased; potentials tend to be small, short and many.
- Neuropathy: the nerve is diseased; potentials tend to be few, large and long.

Consider how large the values are, how dense the potentials, and how quiet the signal between them; then decide.
"""
QUESTION = f"""{SIGNAL}First reason inside <think> and </think>. Then give exactly one of the three names, Healthy, \
Myopathy or Neuropathy, inside <class> and </class>."""


def load(source: Path | None) -> dict[str, list[Series]]:
    if source is None:
        files = [f"{record}.{kind}" for record in RECORDS for kind in ("hea", "dat")]
        source = fetch_physionet(PROJECT, files, DOWNLOADS / "emgdb")
    with opened(source, "train.pt", "emg_healthy.hea", "EMG_TRAIN.ts", f"{ARCHIVE}_TRAIN.*") as folder:
        splits = _read(folder, source)
    check_splits(splits, {split: len(series) for split, series in splits.items()}, LENGTH)
    logger.warning(
        "EMG has one recording of one person for each class: test windows come from the persons of the training "
        "windows. Accuracies hold for these three recordings, not for other people."
    )
    return splits


def _read(folder: Path, source: Path) -> dict[str, list[Series]]:
    if any(folder.rglob("train.pt")):
        return read_tfc(folder, dict(enumerate(LABELS)), {})
    if header := find(folder, "emg_healthy.hea"):
        return _cut_by_time(header.parent)
    if path := find(folder, "EMG_TRAIN.ts"):
        return read_splits(path.parent, "EMG", {str(code): label for code, label in enumerate(LABELS)})
    if path := find(folder, f"{ARCHIVE}_TRAIN.ts") or find(folder, f"{ARCHIVE}_TRAIN.arff"):
        return read_splits(path.parent, ARCHIVE, {label: label for label in LABELS})
    raise InputError(
        f"{source}: holds none of emg_healthy.hea (PhysioNet's emgdb), train.pt (TF-C), EMG_TRAIN.ts and "
        f"{ARCHIVE}_TRAIN.ts. recipes/emg.py says where to get them."
    )


def _cut_by_time(folder: Path) -> dict[str, list[Series]]:
    splits: dict[str, list[Series]] = {split: [] for split in SHARES}
    for record, label in RECORDS.items():
        cut = list(windows(read_record(folder / record, RATE), LENGTH))
        if not cut:
            raise InputError(
                f"{folder / record}: the only recording of {label} is shorter than a window of {LENGTH} readings."
            )
        for split, (first, last) in SHARES.items():
            part = cut[round(first * len(cut)) : round(last * len(cut))]
            splits[split] += [Series([values], label, 0, {"record": record}) for values in part]
    return {split: numbered(series) for split, series in splits.items()}


def explain(series: Series, task: SeriesClassification) -> str:
    """The standard deviation and the largest peak; with axes, also its position and the number of zero crossings."""
    values = series.values[0]
    mean, peak = fmean(values), max(values, key=abs)
    spread = math.sqrt(fmean([(value - mean) ** 2 for value in values]))
    if not task.plot.axes:
        return f"The standard deviation is {spread:.3f} mV. The largest peak is {abs(peak):.2f} mV."
    crossings = sum((before < mean) != (now < mean) for before, now in pairwise(values))
    return (
        f"The standard deviation is {spread:.4f} mV. The largest peak is {peak:.3f} mV, at reading "
        f"{values.index(peak)}. The signal crosses its mean {crossings} times."
    )


TASK = SeriesClassification(
    name="emg",
    data_source="emg_dataset",
    labels=LABELS,
    question=QUESTION,
    load=load,
    plot=PlotStyle(title="EMG Signal", x_label="Timestamp", y_label="Amplitude (mV)"),
    # One scale for all, because the classes differ in the size of the potentials and there are no tick labels.
    small_plot=PlotStyle(width=112, height=112, line_width=1.0, axes=False, y_range=(-0.3, 0.3)),
    decimals=4,  # the recorder's step is 1/6600 mV
    rewards=(RewardPart("accuracy", 0.9, accuracy(LABELS)), RewardPart("format", 0.1, format_strict)),
    explain=explain,
)
