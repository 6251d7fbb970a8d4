"""Rows that cannot be used: refused with their name, or skipped, counted and listed; over-long ones dropped, never cut."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from timemaster.config import Config, check
from timemaster.data.series import Series
from timemaster.data.store import plot_row, write_rows
from timemaster.inputs import load_jobs, load_samples, make_renderer, read_rows
from timemaster.types import InputError

QUESTION = "<image>Winter or Summer?"


@pytest.fixture
def png() -> bytes:
    from tests.helpers import picture

    data = picture(1).data
    assert data is not None
    return data


@pytest.fixture
def cfg(tiny: str) -> Config:
    config = Config()
    config.model.path, config.data.recipes, config.data.train_files = tiny, "recipes.italy_power", "unused"
    config.data.min_pixels = 784
    config.data.max_prompt_length = 64
    check(config, "sft")
    return config


def write(path: Path, png: bytes, questions: list[str], labels: list[str]) -> str:
    rows = [
        plot_row(Series([[0.0, 1.0]], label, i), png, question, "italy_power", "train", "<class>Winter</class>")
        for i, (question, label) in enumerate(zip(questions, labels, strict=True))
    ]
    write_rows(path, rows)
    return str(path)


def test_a_label_outside_the_set_is_named_or_skipped(cfg: Config, png: bytes, tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", png, [QUESTION] * 3, ["Winter", "Spring", "Summer"])
    with pytest.raises(InputError, match=r"a\.parquet.*row 1.*Spring"):
        read_rows(cfg, [file], tmp_path)
    cfg.data.on_bad_row = "skip"
    assert [example.answer for example in read_rows(cfg, [file], tmp_path)] == ["Winter", "Summer"]
    listed = [json.loads(line) for line in (tmp_path / "skipped_rows.jsonl").read_text().splitlines()]
    assert [row["row"] for row in listed] == [1]
    assert "Spring" in listed[0]["reason"]


def test_a_row_without_a_marker_or_with_one_too_many_is_named(cfg: Config, png: bytes, tmp_path: Path) -> None:
    file = write(tmp_path / "b.parquet", png, [QUESTION, "Winter or Summer?", "<image>" + QUESTION], ["Winter"] * 3)
    with pytest.raises(InputError, match=r"(?s)row 1.*row 2"):
        read_rows(cfg, [file], tmp_path)
    cfg.data.on_bad_row = "skip"
    assert len(read_rows(cfg, [file], tmp_path)) == 1


def test_long_prompts_are_dropped_counted_and_listed(
    cfg: Config, png: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "c.parquet", png, [QUESTION, QUESTION + " Look" * 80], ["Winter", "Summer"])
    with caplog.at_level(logging.WARNING, logger="timemaster"):
        jobs = load_jobs(cfg, [file], make_renderer(cfg), tmp_path)
    assert [example.answer for example, _ in jobs] == ["Winter"]
    assert "dropped 1 rows over 64 tokens" in caplog.text
    assert json.loads((tmp_path / "dropped_rows.jsonl").read_text())["id"].endswith(":1")
    cfg.data.max_prompt_length = 8
    with pytest.raises(InputError, match="no row is left"):
        load_jobs(cfg, [file], make_renderer(cfg), tmp_path)


def test_supervised_rows_keep_all_their_image_tokens(cfg: Config, png: bytes, tmp_path: Path) -> None:
    file = write(tmp_path / "d.parquet", png, [QUESTION], ["Winter"])
    renderer = make_renderer(cfg)
    (sample,) = load_samples(cfg, [file], renderer, tmp_path)
    assert sample.token_ids.count(renderer.spec.image_token_id) == 16
    assert sum(sample.mask) > 0


def test_missing_and_empty_files_are_errors(cfg: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        read_rows(cfg, [str(tmp_path / "nowhere.parquet")], tmp_path)
    (tmp_path / "junk.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="junk"):
        read_rows(cfg, [str(tmp_path / "junk.parquet")], tmp_path)
