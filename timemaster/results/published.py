"""Accuracies and token costs that others published, by data_source, to stand beside ours: quoted, not reproduced here.

The figure is assets/num_image.pdf of https://github.com/langfengQ/TimeMaster, whose bars were measured. How many test
rows are behind a number, and which, it does not say; so there is no interval, and no test against it.
"""

from __future__ import annotations

from timemaster.metrics.answers import Result

SOURCE = "TimeMaster, arXiv 2506.13705, the repository's figure num_image.pdf"
IMAGE = "TimeMaster 3B SFT+RL, plots"
NUMERIC = "TimeMaster 3B SFT+RL, numbers as text"

PERCENT = {
    "rcw_dataset": {IMAGE: 75.56, NUMERIC: 10.40},
    "lightning_dataset": {IMAGE: 68.49, NUMERIC: 10.98},
    "ecg_dataset": {IMAGE: 60.00, NUMERIC: 25.40},
    "emg_dataset": {IMAGE: 100.00, NUMERIC: 51.84},
    "computer_dataset": {IMAGE: 84.40, NUMERIC: 66.80},
    "har_dataset": {IMAGE: 63.29, NUMERIC: 23.68},
}
# Tokens of a series as numbers for each of its plot's; how either was counted is not said.
TOKEN_RATIO = {
    "rcw_dataset": 88.7,
    "lightning_dataset": 2.2,
    "ecg_dataset": 19.2,
    "emg_dataset": 23.1,
    "computer_dataset": 6.3,
    "har_dataset": 6.7,
}


def quoted(data_source: str) -> list[Result]:
    """The published accuracies of a dataset; none for one that nothing was published of."""
    found = PERCENT.get(data_source, {})
    return [Result(name=name, kind="quoted", accuracy=value / 100, note=SOURCE) for name, value in found.items()]
