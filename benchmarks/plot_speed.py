"""Plots per second: a new, laid-out figure per series against timemaster's reused one, side by side in one run.

    python benchmarks/plot_speed.py [--plots 500] [--rounds 3]

The old way is what the published TimeMaster data set was drawn with, rebuilt from its description: for every series a
new figure, `tight_layout()`, `savefig(bbox_inches="tight")`, one after the other. Ours is `draw_many` as
timemaster/tasks/prepare.py calls it, once for the plots of all splits, the start of its processes included; and once
more in a single process. The series are seeded random step functions of CTU's length, so no data set is needed. The
bar is 5 times the old way.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import random
import statistics
import sys
import time
from collections.abc import Callable

from timemaster.series.plot import PlotStyle, draw_many
from timemaster.series.splits import Series

logger = logging.getLogger(__name__)

STYLE = PlotStyle(title="Complete Signal", x_label="Timestamp", y_label="Value")
LENGTH = 720
NUM_OLD = 40  # plots a round of the old way: its time per plot does not depend on their number


def step_series(index: int) -> Series:
    """A day that rests at a level and leaves it a few times for a noisy while, as a computer's does."""
    rng = random.Random(index)
    values = [rng.uniform(-2.0, 0.0)] * LENGTH
    for _ in range(rng.randint(1, 8)):
        start, height = rng.randrange(LENGTH), rng.uniform(0.5, 9.0)
        for i in range(start, min(LENGTH, start + rng.randint(5, 90))):
            values[i] = height * rng.uniform(0.8, 1.0)
    return Series([values], "", index)


def draw_old_way(series: Series) -> bytes:
    """One plot from a figure of its own, laid out and cropped by matplotlib."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 2.5))
    axes.plot(series.values[0], linewidth=2)
    axes.set_title("Complete Signal", fontsize=9)
    axes.set_xlabel("Timestamp", fontsize=8)
    axes.set_ylabel("Value", fontsize=8)
    plt.xticks(fontsize=7)
    plt.yticks(fontsize=7)
    plt.tight_layout()
    file = io.BytesIO()
    plt.savefig(file, format="png", bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)
    return file.getvalue()


def plots_per_second(draw: Callable[[], list[bytes]]) -> float:
    start = time.perf_counter()
    num_plots = len(draw())
    return num_plots / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description="Plots per second, the old way and ours.")
    parser.add_argument("--plots", type=int, default=500, help="plots a round of ours (default: 500, as CTU has)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts (default: 3)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    import matplotlib

    matplotlib.use("Agg")
    series = [step_series(i) for i in range(options.plots)]
    ways: dict[str, Callable[[], list[bytes]]] = {
        "a new figure each": lambda: [draw_old_way(s) for s in series[:NUM_OLD]],
        "ours, one process": lambda: draw_many(series, STYLE, num_workers=1),
        f"ours, {os.cpu_count()} processes": lambda: draw_many(series, STYLE),
    }
    draw_old_way(series[0])  # fonts are loaded once, for nobody's account
    rounds = [{name: plots_per_second(draw) for name, draw in ways.items()} for _ in range(options.rounds)]
    medians = {name: statistics.median(speeds[name] for speeds in rounds) for name in ways}
    baseline = medians["a new figure each"]
    logger.info("%-20s %8s %14s %6s", "way", "plots/s", "range", "ratio")
    for name, median in medians.items():
        low, high = (bound(speeds[name] for speeds in rounds) for bound in (min, max))
        logger.info("%-20s %8.1f %14s %6.1f", name, median, f"{low:.1f}-{high:.1f}", median / baseline)


if __name__ == "__main__":
    main()
