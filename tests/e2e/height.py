"""A task of a kind that the library does not know: how high is the line in a plot? The answer is a real number.

The first number in the response is the answer. Its error, as a share of the range, is what rewards and evaluation use.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from timemaster.data.store import plot_row, write_rows
from timemaster.rewards import RewardPart
from timemaster.series.plot import PlotStyle, draw_png
from timemaster.series.splits import Series
from timemaster.tasks import Answer, Evaluation, Number, Task
from timemaster.types import Example, InputError, Rollout

HIGHEST = 10.0
SOURCE = "height_dataset"
QUESTION = "<image>How high is the line, from 0 to 10?"
PLOT = PlotStyle(width=112, height=112, line_width=2.0, axes=False, y_range=(0.0, HIGHEST))


def read_number(text: str) -> str | None:
    found = re.search(r"\d+(\.\d+)?", text)
    return found[0] if found else None


def error_of(prediction: str | None, truth: str) -> float:
    """Share of the range; 1.0 for an answer that cannot be read."""
    return 1.0 if prediction is None else min(abs(float(prediction) - float(truth)) / HIGHEST, 1.0)


def closeness(rollout: Rollout, example: Example) -> float:
    return 1.0 - error_of(read_number(rollout.text), example.answer)


class MeanError(Evaluation):
    numbers = (Number(name="error", title="mean error", higher_is_better=False), Number(name="close", is_share=True))
    unread_note = "The error of an answer that could not be read is 1."

    def read(self, text: str) -> str | None:
        return read_number(text)

    def read_truth(self, text: str) -> str:
        if read_number(text) != text:
            raise InputError(f"{text!r} is no number")
        return text

    def measure(self, answer: Answer) -> dict[str, float]:
        error = error_of(answer.prediction, answer.truth)
        return {"error": error, "close": float(error <= 0.1)}


TASK = Task(
    name="height", data_source=SOURCE, rewards=(RewardPart("closeness", 1.0, closeness),), evaluation=MeanError()
)


def write_data(folder: Path) -> None:
    """train.parquet and test.parquet in `folder`."""
    rng = random.Random(1)
    for split, size in (("train", 16), ("test", 12)):
        rows = []
        for i in range(size):
            height = round(rng.uniform(0, HIGHEST), 1)
            series = Series([[height] * 20], str(height), i)
            rows.append(plot_row(series, draw_png(series, PLOT), QUESTION, SOURCE, split))
        write_rows(folder / f"{split}.parquet", rows)
