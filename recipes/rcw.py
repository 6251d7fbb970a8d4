"""RCW: is there the call of a right whale in two seconds of underwater sound?

The Marinexplore and Cornell University Whale Detection Challenge (Kaggle, 2013): 30,000 clips of 2 seconds at 2 kHz,
4000 readings. 7027 of them contain an up-call of the North Atlantic right whale: about a second long, rising, 60 to 250
Hz. In train.csv, label 1 means that there is a call; **here RightWhale is class 0**, as in the published rewards, so
never map these labels by number. The values are shares of full scale; the pressure of the sound is not known.

Kaggle requires a login, so nothing is downloaded. Get whale_data.zip and give it, or its folder, as `--source`. Or use
the copy in the UCR archive, `RightWhaleCalls` (.ts, .arff or zip), which needs no login and has a split of its own.
This copy was not available to us: its classes are read by name, and a file with numbers instead is refused. Kaggle's
own test clips have no labels, so NUM_CLIPS of the 30,000 training clips are drawn and split with a fixed seed, and
classes keep their shares. (All clips need more than 4 GiB as numbers; the published split and its sizes are not known.)
Three of four clips have no call: the answer NoWhale is right for 76.6 % of them.

    bash example/data_preprocess/rcw.sh --source whale_data.zip    # or RightWhaleCalls.zip
"""

from __future__ import annotations

from pathlib import Path

from timemaster.rewards import RewardPart, accuracy, format_strict
from timemaster.series.plot import PlotStyle
from timemaster.series.recordings import at_most, fill_clips, find, find_clips, numbered, opened, plan_clips
from timemaster.series.splits import Series, check_splits, read_splits, stratified_split
from timemaster.tasks import SeriesClassification
from timemaster.types import InputError

ARCHIVE = "RightWhaleCalls"  # of https://www.timeseriesclassification.com/aeon-toolkit/RightWhaleCalls.zip
COMPETITION = "whale-detection-challenge"
CLASSES = {"1": "RightWhale", "0": "NoWhale"}  # of train.csv
LABELS = ("RightWhale", "NoWhale")
RATE = 2000  # readings per second
LENGTH = 4000  # readings of a clip
NUM_CLIPS = 10_000  # at most; a tenth of them for testing, a tenth for validation
SPLIT_SEED = 1
BAND = (60.0, 250.0)  # Hz, of the up-call

QUESTION = """<image>
This signal is two seconds of underwater sound from a buoy: 4000 readings of the sound's pressure in order of time, 2000
per second. The values are shares of the recorder's full scale, without a unit.

It is one of these:
- RightWhale: a North Atlantic right whale calls; its call rises from about 60 to 250 Hz and lasts about a second.
- NoWhale: no such call, only water, ships or other animals.

Consider whether a stretch of about a second stands out from the rest, and whether its oscillation is regular and grows
faster; then decide. First reason inside <think> and </think>. Then give exactly one of the two names, RightWhale or
NoWhale, inside <class> and </class>."""


def load(source: Path | None) -> dict[str, list[Series]]:
    if source is None:
        raise InputError(
            f"Kaggle's competition {COMPETITION} requires a login: download whale_data.zip from "
            f"https://www.kaggle.com/c/{COMPETITION}/data in a browser, or with kaggle competitions download -c "
            f"{COMPETITION}, and give the zip or the folder with train.csv and the clips: --source DIR. The UCR "
            f"archive has a copy, {ARCHIVE}, without a login."
        )
    with opened(source, "train.csv", f"{ARCHIVE}_TRAIN.*") as folder:
        splits = _read(folder, source)
    check_splits(splits, {split: len(series) for split, series in splits.items()}, LENGTH)
    return splits


def _read(folder: Path, source: Path) -> dict[str, list[Series]]:
    table = find(folder, "train.csv")
    archive = find(folder, f"{ARCHIVE}_TRAIN.ts") or find(folder, f"{ARCHIVE}_TRAIN.arff")
    if archive and not table:
        num_test = NUM_CLIPS // 10
        splits = read_splits(archive.parent, ARCHIVE, {label: label for label in LABELS})
        limits = {"train": NUM_CLIPS - num_test, "test": num_test}
        return {split: numbered(at_most(series, limits[split])) for split, series in splits.items()}
    if table is None:
        raise InputError(f"{source}: contains neither train.csv nor {ARCHIVE}_TRAIN.ts. Give Kaggle's whale_data.zip.")
    return _read_clips(folder, table)


def _read_clips(folder: Path, table: Path) -> dict[str, list[Series]]:
    planned = plan_clips(table, CLASSES)
    tenth = max(1, min(NUM_CLIPS, len(planned)) // 10)
    rest, test = stratified_split(planned, len(planned) - tenth, SPLIT_SEED)
    rest, validation = stratified_split(rest, len(rest) - tenth, SPLIT_SEED)
    train = at_most(rest, NUM_CLIPS - 2 * tenth)
    parts, paths = {"train": train, "validation": validation, "test": test}, find_clips(folder, planned)
    return {split: fill_clips(numbered(part), paths, RATE, LENGTH) for split, part in parts.items()}


def explain(series: Series, task: SeriesClassification) -> str:
    """For each quarter of the clip: the strongest frequency between 60 and 250 Hz, and the power of this band.

    A bare plot does not show frequencies; then it is the height of each quarter as a share of the whole line's height.
    """
    import numpy as np

    clip = np.asarray(series.values[0])
    quarters = np.array_split(clip, 4)
    if not task.plot.axes:
        heights = ", ".join(f"{100 * np.ptp(quarter) / max(np.ptp(clip), 1e-12):.0f}" for quarter in quarters)
        return f"From quarter to quarter, the line fills {heights} % of its whole height."
    tones, shares = [], []
    for quarter in quarters:
        power = np.abs(np.fft.rfft(quarter - quarter.mean())) ** 2
        hertz = np.fft.rfftfreq(len(quarter), 1 / RATE)
        band = (hertz >= BAND[0]) & (hertz <= BAND[1])
        tones.append(hertz[band][power[band].argmax()])
        shares.append(100 * power[band].sum() / max(power.sum(), 1e-12))
    listed = [", ".join(f"{value:.0f}" for value in values) for values in (tones, shares)]
    return (
        f"From quarter to quarter, the strongest frequency between {BAND[0]:.0f} and {BAND[1]:.0f} Hz is "
        f"{listed[0]} Hz, and this band holds {listed[1]} % of the power."
    )


TASK = SeriesClassification(
    name="rcw",
    data_source="rcw_dataset",
    labels=LABELS,
    question=QUESTION,
    load=load,
    plot=PlotStyle(title="Right Whale Call", x_label="Timestamp", y_label="Amplitude", line_width=1.0),
    decimals=4,  # shares of full scale, recorded with 16 bits
    rewards=(RewardPart("accuracy", 0.9, accuracy(LABELS)), RewardPart("format", 0.1, format_strict)),
    explain=explain,
)
