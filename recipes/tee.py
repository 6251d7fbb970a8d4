"""TEE, transient electromagnetic events: what kind of lightning did the satellite see?

The set is `Lightning7` of the UCR archive: radio power that the FORTE satellite recorded for 800 microseconds, summed
over frequencies and smoothed to 319 readings; 70 events for training, 73 for testing, seven classes. The archive's
values are z-scored event by event: only the shape is left, and the question says so. The classes 0 to 6 are assumed to
be the kinds that the archive describes, in the order of LABELS; the files themselves do not say so. With 73 test
events, an accuracy has a standard error of about 5.5 points.

The data are downloaded from the archive, or read from `--source DIR` with Lightning7_TRAIN.ts (or .arff) and _TEST.ts.

    bash example/data_preprocess/tee.sh
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from timemaster.rewards import RewardPart, accuracy, format_strict
from timemaster.series.plot import PlotStyle
from timemaster.series.splits import Series, check_splits, download, read_splits
from timemaster.tasks import SeriesClassification

URL = "https://www.timeseriesclassification.com/aeon-toolkit/Lightning7.zip"
LABELS = (
    "CG Positive", "IR Negative", "Subsequent Return Stroke", "Impulsive", "Impulsive Pair", "Gradual Intra-Cloud",
    "Off-record",
)  # fmt: skip
CLASSES = {str(code): label for code, label in enumerate(LABELS)}  # of the archive
LENGTH = 319  # readings of one event

QUESTION = """<image>
This series is the radio power of one lightning event as a satellite received it: 319 readings in order of time, which
cover 800 microseconds, summed over all frequencies and smoothed. The values are standardised (each event has mean 0 and
standard deviation 1), so they tell about the shape of the event and not about its strength.

The event is one of these:
- CG Positive: positive charge goes to the ground; the power turns on sharply, then some hundred microseconds of noise.
- IR Negative: first stroke of negative charge to the ground; the power climbs slowly, spikes, then falls away.
- Subsequent Return Stroke: a later stroke of negative charge in the same flash, without the slow climb.
- Impulsive: an event within the clouds, one sudden peak.
- Impulsive Pair: an event within the clouds, two sudden peaks close together.
- Gradual Intra-Cloud: an event within the clouds whose power grows more gradually.
- Off-record: an event that the 800 microseconds were too short for.

Consider where the highest values lie, how steeply the series rises to them and falls from them, and how many peaks
there are; then decide. First reason inside <think> and </think>. Then give exactly one of the seven names,
CG Positive, IR Negative, Subsequent Return Stroke, Impulsive, Impulsive Pair, Gradual Intra-Cloud or Off-record,
inside <class> and </class>."""


def load(source: Path | None) -> dict[str, list[Series]]:
    splits = read_splits(source or download(URL), "Lightning7", CLASSES)
    check_splits(splits, {"train": 70, "test": 73}, LENGTH)
    return splits


def explain(series: Series, task: SeriesClassification) -> str:
    """The peak's position, how often and how long the event is high; with axes, also the means of its three thirds."""
    values = series.values[0]
    rest, top = median(values), max(values)
    is_high = [value > (rest + top) / 2 for value in values]
    num_rises = sum(now and not before for before, now in pairwise([False, *is_high]))
    shape = (
        f"The highest value is at reading {values.index(top)}. The series rises above half height {num_rises} "
        f"{'time' if num_rises == 1 else 'times'}, for {sum(is_high)} readings in all."
    )
    if not task.plot.axes:
        return shape
    third = len(values) // 3
    levels = ", ".join(f"{fmean(part):.1f}" for part in (values[:third], values[third:-third], values[-third:]))
    return f"{shape} It reaches {top:.1f}; the means of its three thirds are {levels}."


TASK = SeriesClassification(
    name="tee",
    data_source="lightning_dataset",
    labels=LABELS,
    question=QUESTION,
    load=load,
    plot=PlotStyle(title="Transient Electromagnetic Event", x_label="Timestamp", y_label="Power (standardised)"),
    rewards=(RewardPart("accuracy", 0.9, accuracy(LABELS)), RewardPart("format", 0.1, format_strict)),
    explain=explain,
)
