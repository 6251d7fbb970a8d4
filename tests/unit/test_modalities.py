"""Plots against numbers: the table, the picture, and the token rules."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

import pytest

from tests.conftest import SHARED_DATA
from tests.helpers import picture
from timemaster.config import DataConfig, NumericConfig
from timemaster.data.store import plot_row, write_rows
from timemaster.media.images import image_media
from timemaster.models.vision import default_vision_spec, num_tokens
from timemaster.results.modalities import (
    PUBLISHED_MIN_PIXELS,
    compare,
    count_tokens,
    latest_evaluation,
    main,
    token_costs,
)
from timemaster.series.numeric import write_series
from timemaster.series.plot import draw_png
from timemaster.series.splits import Series
from timemaster.tasks import load_task
from timemaster.types import InputError

COMPUTERS = SHARED_DATA / "Computers"


def evaluated(run: Path, step: int, accuracy: float, prompt_tokens: float, modality: str = "image") -> Path:
    folder = run / "eval" / f"step_{step}"
    folder.mkdir(parents=True)
    figures = {"n": 100, "accuracy": accuracy, "accuracy_ci95": [accuracy - 0.1, accuracy + 0.1], "unparsed": 0}
    figures |= {"modality": modality, "files": [f"data/toy_{modality}/test.parquet"]}
    tokens = {"prompt_tokens_mean": prompt_tokens, "response_tokens_mean": 20.0}
    (folder / "metrics.json").write_text(json.dumps(figures | tokens), encoding="utf-8")
    (folder / "config.yaml").write_text("data: {numeric: {decimals: 1, separator: ' '}}", encoding="utf-8")
    return run


def test_the_last_greedy_evaluation_counts(tmp_path: Path) -> None:
    run = evaluated(tmp_path, 4, 0.5, 90.0)
    evaluated(tmp_path, 20, 0.6, 90.0)
    (tmp_path / "eval" / "step_30_blank").mkdir()
    (tmp_path / "eval" / "step_30_blank" / "metrics.json").write_text("{}", encoding="utf-8")
    assert latest_evaluation(run)["accuracy"] == 0.6
    with pytest.raises(InputError, match="EVAL=True"):
        latest_evaluation(tmp_path / "nowhere")


def test_digits_are_single_and_signs_run_together() -> None:
    assert count_tokens("0.12") == 4  # 0 . 1 2
    assert count_tokens("0.1,-2.3") == 7  # 0 . 1 ,- 2 . 3
    assert count_tokens("dim_0: 1.0") == 8  # dim _ 0 : space 1 . 0


def test_costs_of_a_file_by_hand(tmp_path: Path) -> None:
    png = picture(1, 280, 140).data
    assert png is not None
    rows = [plot_row(Series([[0.12, -1.0, 3.25]], "A", i), png, "<image>Which?", "toy", "test") for i in range(2)]
    write_rows(tmp_path / "t.parquet", rows)
    style = NumericConfig(decimals=1, separator=",", channel="{name}: {values}", channel_separator="\n")
    # 0.1,-1.0,3.2 -> 0 . 1 ,- 1 . 0 , 3 . 2 = 11 tokens; 280 x 140 pixels -> 10 x 5 = 50 tokens
    assert token_costs(str(tmp_path / "t.parquet"), style, 3136) == {"numeric": 11, "image": 50, "ratio": 0.22}
    assert token_costs(str(tmp_path / "t.parquet"), style, 512 * 784)["image"] >= 512


def test_numbers_have_the_decimals_of_the_rows_recipe(tmp_path: Path) -> None:
    png = picture(1, 280, 140).data
    assert png is not None
    for source, tokens in (("emg_dataset", 13), ("toy", 9)):  # 0.0012,-0.0003 and 0.00,0.00
        rows = [plot_row(Series([[0.0012, -0.0003]], "A", 0), png, "<image>Which?", source, "test")]
        write_rows(tmp_path / "t.parquet", rows)
        assert token_costs(str(tmp_path / "t.parquet"), NumericConfig(), 3136)["numeric"] == tokens


def test_the_command_prints_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, capsys) -> None:
    image, numeric = evaluated(tmp_path / "i", 5, 0.8, 100.0), evaluated(tmp_path / "n", 5, 0.6, 700.0, "numeric")
    assert compare(image, numeric)[1]["numeric"]["prompt_tokens_mean"] == 700.0
    monkeypatch.setattr(sys, "argv", ["modalities", str(image), str(numeric), "--out", str(tmp_path / "out")])
    main()
    assert (tmp_path / "out" / "modalities.png").read_bytes().startswith(b"\x89PNG")
    assert (
        json.loads((tmp_path / "out" / "modalities.json").read_text(encoding="utf-8"))["runs"]["image"]["accuracy"]
        == 0.8
    )
    assert "7.0 times the tokens" in capsys.readouterr().out + capsys.readouterr().err + caplog.text


def test_runs_in_the_wrong_order_and_of_other_rows_are_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image, numeric = evaluated(tmp_path / "i", 5, 0.8, 100.0), evaluated(tmp_path / "n", 5, 0.6, 700.0, "numeric")
    with pytest.raises(InputError, match=r"n was evaluated with data\.modality=numeric; the image run belongs here"):
        compare(numeric, image)
    compare(image, numeric)
    assert "the image run answered 100 rows of data/toy_image/test.parquet, the numeric run 100 rows of" in caplog.text


def test_tokens_are_counted_as_the_numeric_run_wrote_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog
) -> None:
    image, numeric = evaluated(tmp_path / "i", 5, 0.8, 100.0), evaluated(tmp_path / "n", 5, 0.6, 700.0, "numeric")
    png = picture(1, 280, 140).data
    assert png is not None
    series = Series([[0.12, -1.0, 3.25]], "Desktop", 0)
    write_rows(tmp_path / "t.parquet", [plot_row(series, png, "<image>Which?", "computer_dataset", "test")])
    command = [
        "modalities",
        str(image),
        str(numeric),
        "--out",
        str(tmp_path),
        "--tokens-of",
        str(tmp_path / "t.parquet"),
    ]
    # 0.1 -1.0 3.2: spaces go with signs, else are tokens: 0 . 1 _- 1 . 0 _ 3 . 2 = 11; with two decimals three more
    for more, tokens in (([], 11), (["--decimals", "2"], 14)):
        monkeypatch.setattr(sys, "argv", command + more)
        main()
        counted = json.loads((tmp_path / "modalities.json").read_text(encoding="utf-8"))["tokens"]["plots as they are"]
        assert counted == {"numeric": tokens, "image": 50, "ratio": tokens / 50, "published": 6.3}
    assert "(published: 6.3)" in caplog.text + capsys.readouterr().out


@pytest.mark.skipif(not COMPUTERS.is_dir(), reason=f"no folder {COMPUTERS}: see CONTRIBUTING.md, Tests")
def test_a_ctu_day_costs_about_what_was_published() -> None:
    """At 512 tokens a plot at least, as published: 6.3 times."""
    task = load_task("recipes.ctu")
    days = task.load(COMPUTERS)["test"]
    plot = num_tokens(
        image_media(draw_png(days[0], task.plot)),
        default_vision_spec(PUBLISHED_MIN_PIXELS, DataConfig().max_pixels),
    )
    for decimals, ratio in ((1, 5.3), (2, 6.7)):
        style = NumericConfig(decimals=decimals)
        tokens = fmean(count_tokens(write_series(day.values, (), style)) for day in days)
        assert tokens == pytest.approx(720 * (3 + decimals), abs=1)  # digits, point, comma
        assert tokens / plot == pytest.approx(ratio, abs=0.1)
