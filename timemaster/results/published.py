"""Published results and token costs by data_source, to be shown beside ours: quoted, not reproduced here.

The source is assets/num_image.pdf of https://github.com/langfengQ/TimeMaster: the heights of its bars were measured. It
does not say how many test rows a number is based on, nor which; so there is no interval and no paired test.
"""

from __future__ import annotations

from timemaster.results.table import Result

SOURCE = "TimeMaster, arXiv 2506.13705, the repository's figure num_image.pdf"
IMAGE = "TimeMaster 3B SFT+RL, plots"
NUMERIC = "TimeMaster 3B SFT+RL, numbers as text"

PERCENT = {  # of right answers
    "rcw_dataset": {IMAGE: 75.56, NUMERIC: 10.40},
    "lightning_dataset": {IMAGE: 68.49, NUMERIC: 10.98},
    "ecg_dataset": {IMAGE: 60.00, NUMERIC: 25.40},
    "emg_dataset": {IMAGE: 100.00, NUMERIC: 51.84},
    "computer_dataset": {IMAGE: 84.40, NUMERIC: 66.80},
    "har_dataset": {IMAGE: 63.29, NUMERIC: 23.68},
}
# Tokens of a series as numbers, divided by those of its plot; the source does not say how they were counted.
TOKEN_RATIO = {
    "rcw_dataset": 88.7,
    "lightning_dataset": 2.2,
    "ecg_dataset": 19.2,
    "emg_dataset": 23.1,
    "computer_dataset": 6.3,
    "har_dataset": 6.7,
}


def quoted(data_source: str) -> list[Result]:
    """The published results of a dataset; empty if nothing was published."""
    percents = PERCENT.get(data_source, {})
    return [Result(name=name, kind="quoted", value=value / 100, note=SOURCE) for name, value in percents.items()]
