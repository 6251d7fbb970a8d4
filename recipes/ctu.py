"""CTU, computer type usage: is a day of electricity use a desktop's or a laptop's?

The set is `Computers` of the UCR archive: 250 days for training and 250 for testing, half of them desktops, with a
reading every two minutes (720 a day). It comes from the British study "Powering the Nation" (1 is desktop, 2 laptop).
The archive's values are z-scored day by day: only the shape is left, not the watts, and the question says so. The data
are downloaded from the archive, or read from a folder: `--source DIR` with Computers_TRAIN.ts and Computers_TEST.ts.

    bash example/data_preprocess/ctu.sh
"""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path

from timemaster.rewards import RewardPart, accuracy, format_strict
from timemaster.series.plot import PlotStyle
from timemaster.series.splits import Series, check_digest, check_splits, download, read_splits
from timemaster.tasks import SeriesClassification

URL = "https://www.timeseriesclassification.com/aeon-toolkit/Computers.zip"
DIGEST = "cb99bb1c010707778aef9f466858f63490fbc183b06f672a640214f32a7d2cac"  # of labels and values: see check_digest
CLASSES = {"1": "Desktop", "2": "Laptop"}
LABELS = ("Desktop", "Laptop")
LENGTH = 720  # readings of one day

QUESTION = """<image>
This series tells how much electricity one computer in a British home used during one day: 720 readings, one every two
minutes, in order of time. The values are standardised (each day has mean 0 and standard deviation 1), so they tell
about the shape of the day and not about watts.

The computer is one of these:
- Desktop: a fixed computer with its parts in a case, drawing from the mains alone.
- Laptop: a portable computer with a battery, drawing from its charger.

Consider the resting level, how often and how long the series leaves it, and the form of the peaks; then decide.
First reason inside <think> and </think>. Then give exactly one of the two names, Desktop or Laptop, inside <class> and
</class>."""


def load(source: Path | None) -> dict[str, list[Series]]:
    splits = read_splits(source or download(URL), "Computers", CLASSES)
    check_splits(splits, {"train": 250, "test": 250}, LENGTH)
    check_digest(splits, DIGEST)
    return splits


def explain(series: Series, task: SeriesClassification) -> str:
    """How often and how long the day is high; with axes, also the resting level, the highest reading and its time."""
    values = series.values[0]
    rest, top = statistics.median(values), max(values)
    is_high = [value > (rest + top) / 2 for value in values]
    num_rises = sum(now and not before for before, now in pairwise([False, *is_high]))
    if not task.plot.axes:
        return f"It rises {num_rises} {'time' if num_rises == 1 else 'times'}, for {sum(is_high)} readings in all."
    return (
        f"The series rests at {rest:.1f} and reaches its highest value {top:.1f} at reading {values.index(top)}. "
        f"It rises above the middle between the two {num_rises} {'time' if num_rises == 1 else 'times'} and stays "
        f"there for {sum(is_high)} of the {len(values)} readings. Its lowest value is {min(values):.1f}."
    )


TASK = SeriesClassification(
    name="ctu",
    data_source="computer_dataset",
    labels=LABELS,
    question=QUESTION,
    load=load,
    plot=PlotStyle(title="Complete Signal", x_label="Timestamp", y_label="Value"),
    rewards=(RewardPart("accuracy", 0.9, accuracy(LABELS)), RewardPart("format", 0.1, format_strict)),
    explain=explain,
)
