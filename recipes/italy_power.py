"""ItalyPowerDemand: is a day of Italy's electricity demand from the winter or the summer half of the year?

The set is part of sktime, so it needs no download: 1096 days of 24 hourly values, z-scored day by day. According to the
header of the file, class 1 is October to March and class 2 April to September. The data agree: the mean day of class 1
has its evening peak at 19 hours (it gets dark early), that of class 2 at 21 hours (it gets dark late).

**The split is ours, not the archive's.** The archive has 67 days for training and 1029 for testing. The quickstart's
model of 0.6 million parameters, which starts from random weights, would memorise 67 images and learn nothing about the
rest. So all 1096 days are split again, with a fixed seed and equal shares of the classes, into 768 for training and 328
for testing. Do not compare accuracies on this split with published ones.

    bash example/data_preprocess/italy_power.sh
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from timemaster.rewards import RewardPart, accuracy, format_strict
from timemaster.series.plot import PlotStyle
from timemaster.series.splits import Series, bundled_splits, check_splits, read_splits, stratified_split
from timemaster.tasks import SeriesClassification

NAME = "ItalyPowerDemand"
CLASSES = {"1": "Winter", "2": "Summer"}
LABELS = ("Winter", "Summer")
LENGTH = 24  # hours of a day
TRAIN_SHARE = 768 / 1096
SPLIT_SEED = 1

# Short, because every token costs time in the quickstart.
QUESTION = "<image>Power demand of a day: Winter or Summer? Use <think> and <class>."


def load(source: Path | None) -> dict[str, list[Series]]:
    splits = bundled_splits(NAME, CLASSES) if source is None else read_splits(source, NAME, CLASSES)
    check_splits(splits, {"train": 67, "test": 1029}, LENGTH)
    pooled = [
        replace(series, meta={"archive_split": split, "archive_index": series.index})
        for split in ("train", "test")
        for series in splits[split]
    ]
    train, test = stratified_split(pooled, round(TRAIN_SHARE * len(pooled)), SPLIT_SEED)
    return {
        split: [replace(series, index=index) for index, series in enumerate(part)]
        for split, part in (("train", train), ("test", test))
    }


def explain(series: Series, task: SeriesClassification) -> str:
    """The hour of the lowest demand, and the hours of the highest demand before 18 hours and from 18 hours on."""
    values = series.values[0]
    low = min(range(LENGTH), key=values.__getitem__)
    first, second = max(range(18), key=values.__getitem__), max(range(18, LENGTH), key=values.__getitem__)
    return f"Low at {low}, peaks at {first} and {second}."


TASK = SeriesClassification(
    name="italy_power",
    data_source="italy_power",
    labels=LABELS,
    question=QUESTION,
    load=load,
    plot=PlotStyle(width=112, height=112, line_width=3.0, axes=False),
    rewards=(RewardPart("accuracy", 0.9, accuracy(LABELS)), RewardPart("format", 0.1, format_strict)),
    explain=explain,
)
