"""Classical baselines: the archive's published figure on the real set, channels, bands, and answers kept."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import SHARED_DATA
from timemaster.results.baselines import baseline, classify
from timemaster.tasks import load_task
from timemaster.types import Example, InputError

COMPUTERS = SHARED_DATA / "Computers"


def example(number: int, label: str, values: list[list[float]] | list[float], file: str = "") -> Example:
    channels = [values] if values and not isinstance(values[0], list) else values  # as read_examples gives them
    extra = {"series": channels, "file": file}
    return Example(id=f"test.parquet:{number}", messages=[], answer=label, data_source="d", extra=extra)


def waves(size: int, seed: int, num_channels: int) -> list[Example]:
    """Slow and fast sines with noise; of two channels, the first is noise alone."""
    rng = random.Random(seed)
    rows = []
    for i in range(size):
        pace, start = (0.2, 0.5)[i % 2], rng.random()
        wave = [math.sin(pace * t + start) + rng.gauss(0, 0.1) for t in range(40)]
        noise = [rng.gauss(0, 0.1) for _ in range(40)]
        rows.append(example(i, ("slow", "fast")[i % 2], [noise, wave] if num_channels == 2 else wave))
    return rows


def with_file(one: Example, file: Path) -> Example:
    return replace(one, extra=one.extra | {"file": str(file)})


@pytest.mark.skipif(not COMPUTERS.is_dir(), reason=f"no folder {COMPUTERS}: see CONTRIBUTING.md, Tests")
def test_the_nearest_neighbour_on_ctu_is_right_144_times_in_250() -> None:
    splits = load_task("recipes.ctu").load(COMPUTERS)
    train, test = ([example(s.index, s.label, s.values) for s in splits[name]] for name in ("train", "test"))
    predicted = classify("1nn_euclid", train, test)
    right = sum(label == one.answer for label, one in zip(predicted, test, strict=True))
    assert (right, len(test)) == (144, 250)  # 57.6 %, as the archive publishes


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize(
    "name",
    ["1nn_euclid", "1nn_dtw", pytest.param("minirocket", marks=pytest.mark.slow)],  # compiles for half a minute
)
def test_every_baseline_learns_from_one_and_from_several_channels(name: str, num_channels: int) -> None:
    train, test = waves(20, 1, num_channels), waves(10, 2, num_channels)
    assert classify(name, train, test, window=0.2) == [one.answer for one in test]


def test_a_band_limits_how_far_dtw_bends() -> None:
    def spike(at: int, height: float) -> list[float]:
        return [height * (t == at) for t in range(40)]

    train = [example(0, "same height", spike(5, 1.0)), example(1, "same place", spike(12, 0.5))]
    test = [example(0, "", spike(12, 1.0))]
    # Bent over 7 readings, the first is equal: 0 < (1 - 0.5)^2 = 0.25. Within 2 (0.05 x 40), its spike and the test's
    # both meet zeros: 1 + 1 > 0.25.
    assert classify("1nn_dtw", train, test) == ["same height"]
    assert classify("1nn_dtw", train, test, window=0.05) == ["same place"]


def test_series_that_are_missing_or_of_several_shapes_are_refused() -> None:
    train = waves(4, 1, 1)
    with pytest.raises(InputError, match=r"test\.parquet:9: the raw series .*none: prepare the data again"):
        classify("1nn_euclid", train, [Example(id="test.parquet:9", messages=[], answer="", data_source="d")])
    with pytest.raises(InputError, match="differ in channels or length"):
        classify("1nn_euclid", train, [example(0, "", [1.0, 2.0])])


def test_answers_are_kept_while_the_data_are_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "train.parquet"
    file.write_bytes(b"one")
    train, test = ([with_file(one, file) for one in waves(6, seed, 1)] for seed in (1, 2))
    path = baseline("1nn_euclid", load_task("recipes.ctu"), (train, test), tmp_path / "out")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["prediction"] for line in lines] == [one.answer for one in test]
    assert lines[3]["id"] == "test.parquet:3"
    path.write_text("kept", encoding="utf-8")
    assert (
        baseline("1nn_euclid", load_task("recipes.ctu"), (train, test), tmp_path / "out").read_text(encoding="utf-8")
        == "kept"
    )
    file.write_bytes(b"two")
    assert (
        baseline("1nn_euclid", load_task("recipes.ctu"), (train, test), tmp_path / "out").read_text(encoding="utf-8")
        != "kept"
    )
