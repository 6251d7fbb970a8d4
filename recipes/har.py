"""HAR: what is a person who carries a phone at the waist doing?

UCI HAR, "Human Activity Recognition Using Smartphones" (CC BY 4.0): 30 volunteers, six activities, 50 Hz, windows of
128 readings (2.56 seconds) that overlap by half. This recipe uses the three axes of the body's acceleration, in units
of g. The archive has removed gravity from them with a filter, so lying, sitting and standing hardly differ.

The split is the archive's, by volunteers: 7352 windows of 21 volunteers for training, 2947 of the other 9 for testing.
If subject_train.txt and subject_test.txt exist, meta["group"] is the volunteer, and validation consists of whole
volunteers. Without these files, windows that overlap may be in different splits, and a warning says so. The archive is
downloaded, or read from a folder or zip (`--source`): plain or gzipped, with or without 'Inertial Signals/'. TF-C's HAR
files (train.pt, val.pt, test.pt) are refused, because they name neither their nine channels nor the volunteers.
TimerBed's "HAR" (WalkingSittingStanding) has windows of 206 readings; figures on it are not comparable with those here.

    bash example/data_preprocess/har.sh
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

from timemaster.rewards import RewardPart, accuracy, format_strict
from timemaster.series.plot import PlotStyle
from timemaster.series.recordings import find, opened, read_uci_har
from timemaster.series.splits import Series, check_splits, download
from timemaster.tasks import SMALL_PLOT, SeriesClassification
from timemaster.types import InputError

logger = logging.getLogger(__name__)

URL = "https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip"
LABELS = ("walking", "walking_upstairs", "walking_downstairs", "sitting", "standing", "laying")
CLASSES = {str(code): label for code, label in enumerate(LABELS, start=1)}  # of y_train.txt
CHANNELS = ("body_acc_x", "body_acc_y", "body_acc_z")
LENGTH = 128  # readings of a window
PUBLISHED = {"train": 7352, "test": 2947}

QUESTION = """<image>
Three signals, body_acc_x, body_acc_y and body_acc_z, from a phone that a person carried at the waist: its acceleration
along three axes at right angles, 128 readings each in order of time, 50 per second, 2.56 seconds in all. The values are
in units of g, and gravity has been taken out of them, so that they tell about movement and not about posture.

The person was doing one of these:
- walking: on level ground.
- walking_upstairs
- walking_downstairs: with harder impacts.
- sitting
- standing
- laying: lying down.

Consider whether the signals swing in a rhythm, how wide and how fast, and along which axis; where they are nearly
still, how still each of them is and whether it drifts; then decide. First reason inside <think> and </think>. Then
give exactly one of the six names, walking, walking_upstairs, walking_downstairs, sitting, standing or laying, inside
<class> and </class>."""


def load(source: Path | None) -> dict[str, list[Series]]:
    with opened(source or download(URL), "y_train.txt*") as folder:
        if find(folder, "train.pt") and not find(folder, "y_train.txt*"):
            raise InputError(
                f"{source}: contains TF-C's train.pt, whose nine channels have no names: it is not known which are the "
                "body's acceleration. Give the folder or zip of UCI HAR."
            )
        splits = read_uci_har(folder, CHANNELS, CLASSES)
    check_splits(splits, PUBLISHED, LENGTH)
    if any("group" not in item.meta for series in splits.values() for item in series):
        logger.warning(
            "subject_train.txt or subject_test.txt does not exist, so the volunteers are unknown: validation is a "
            "random part of the training windows, which overlap, and will look better than the test."
        )
    return splits


def explain(series: Series, task: SeriesClassification) -> str:
    """Facts that the plot shows: how often each axis swings, their order by spread and, with a y axis, the spreads."""
    axes = [name[-1] for name in CHANNELS]
    spread = {axis: pstdev(values) for axis, values in zip(axes, series.values, strict=True)}
    facts = [
        f"{axis}: {f'spread {spread[axis]:.3f} g, ' if task.plot.axes else ''}{_swings(values)} swings."
        for axis, values in zip(axes, series.values, strict=True)
    ]
    return " ".join([*facts, f"Widest: {', '.join(sorted(axes, key=lambda axis: -spread[axis]))}."])


def _swings(values: list[float]) -> int:
    mean = fmean(values)
    return sum((before < mean) != (now < mean) for before, now in pairwise(values)) // 2


TASK = SeriesClassification(
    name="har",
    data_source="har_dataset",
    labels=LABELS,
    question=QUESTION,
    load=load,
    plot=PlotStyle(title="HAR singles", x_label="Timestamp", y_label="Body Linear Acceleration", channels=CHANNELS),
    small_plot=replace(SMALL_PLOT, rows=True),  # the tiny model learns them sooner than lines that cross
    rewards=(RewardPart("accuracy", 0.9, accuracy(LABELS)), RewardPart("format", 0.1, format_strict)),
    decimals=3,  # sitting, standing and lying differ in the third decimal
    explain=explain,
)
