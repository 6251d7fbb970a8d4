"""Rows that cannot be used: refused with their name, or skipped, counted and listed; over-long ones dropped, never cut."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timemaster.config import Config
from timemaster.config.resolve import resolve
from timemaster.data.store import plot_row, write_rows
from timemaster.models.folder import load_model_config
from timemaster.run.inputs import load_prompts, load_samples, make_renderer
from timemaster.series.splits import Series
from timemaster.types import Example, InputError, Media, Message, Part

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
    config.model.path, config.data.recipes, config.data.train_files = tiny, ["recipes.italy_power"], ["unused"]
    config.data.min_pixels = 784
    config.data.max_prompt_length = 64
    return resolve(config, "sft")


def write(path: Path, png: bytes, questions: list[str], labels: list[str]) -> str:
    rows = [
        plot_row(Series([[0.0, 1.0]], label, i), png, question, "italy_power", "train", "<class>Winter</class>")
        for i, (question, label) in enumerate(zip(questions, labels, strict=True))
    ]
    write_rows(path, rows)
    return str(path)


def answers(cfg: Config, file: str, folder: Path) -> list[str]:
    """The answers of the rows that training could use."""
    return [row.example.answer for row in load_prompts(cfg, [file], make_renderer(cfg), folder)]


def reasons(folder: Path) -> dict[int, str]:
    listed = [json.loads(line) for line in (folder / "skipped_rows.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["row"]: row["reason"] for row in listed}


def test_a_label_outside_the_set_is_named_or_skipped(cfg: Config, png: bytes, tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", png, [QUESTION] * 3, ["Winter", "Spring", " summer"])
    with pytest.raises(InputError, match=r"a\.parquet.*row 1.*Spring"):
        answers(cfg, file, tmp_path)
    cfg.data.on_bad_row = "skip"
    assert answers(cfg, file, tmp_path) == ["Winter", "Summer"]  # spelled as the task does, for evaluation compares
    assert list(reasons(tmp_path)) == [1]
    assert "Spring" in reasons(tmp_path)[1]


def test_a_row_without_a_marker_or_with_one_too_many_is_named(cfg: Config, png: bytes, tmp_path: Path) -> None:
    file = write(tmp_path / "b.parquet", png, [QUESTION, "Winter or Summer?", "<image>" + QUESTION], ["Winter"] * 3)
    with pytest.raises(InputError, match=r"(?s)row 1.*row 2"):
        answers(cfg, file, tmp_path)
    cfg.data.on_bad_row = "skip"
    assert len(answers(cfg, file, tmp_path)) == 1


def test_what_cannot_be_rendered_is_named_or_skipped(cfg: Config, png: bytes, tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"not opened")
    rows = [
        {"problem": QUESTION, "answer": "Winter", "images": [png], "videos": []},
        {"problem": "<video>Winter or Summer?", "answer": "Winter", "images": [], "videos": ["v.mp4"]},
        {"problem": QUESTION + "<|image_pad|>", "answer": "Winter", "images": [png], "videos": []},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    with pytest.raises(
        InputError, match=r"(?s)row 1.*d\.parquet:1: the size of its video .*v\.mp4 is not known.*row 2"
    ):
        answers(cfg, str(tmp_path / "d.parquet"), tmp_path)
    cfg.data.on_bad_row = "skip"
    assert len(answers(cfg, str(tmp_path / "d.parquet"), tmp_path)) == 1
    assert list(reasons(tmp_path)) == [1, 2]


def test_rendering_names_the_row(cfg: Config) -> None:
    from tests.helpers import picture, question

    renderer = make_renderer(cfg)
    with pytest.raises(InputError, match=r"row thin: the image has 300 x 1 pixels: .* at most 200-fold"):
        renderer.prompt(question("thin", [picture(1, width=300, height=1)]))
    with pytest.raises(InputError, match="row turn: the image has 0 x 0 pixels"):
        renderer.next_turn([Message("tool", [Part("image", media=Media(kind="image", uid="x"))])], "turn")
    answer = Message("assistant", [Part("text", text="<class>Winter</class>")])
    again = Message("user", [Part("text", text="Sure?")])
    for render, messages in (
        (renderer.prompt, [answer]),
        (renderer.sample, [answer]),
        (renderer.sample, [answer, again, answer]),
        (renderer.prompt, []),
    ):
        example = Example(id="a.parquet:7", messages=messages, answer="Winter", data_source="italy_power")
        with pytest.raises(InputError, match=r"row a\.parquet:7: there is no turn before the assistant's"):
            render(example)


def test_long_prompts_are_dropped_counted_and_listed(
    cfg: Config, png: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(
        tmp_path / "c.parquet", png, [QUESTION, QUESTION + " Look" * 80, QUESTION], ["Winter", "Summer", "Summer"]
    )
    with caplog.at_level(logging.WARNING, logger="timemaster"):
        rows = load_prompts(cfg, [file], make_renderer(cfg), tmp_path)
    assert [row.example.answer for row in rows] == ["Winter", "Summer"]
    assert "dropped 1 rows over 64 tokens" in caplog.text
    assert json.loads((tmp_path / "dropped_rows.jsonl").read_text(encoding="utf-8"))["id"].endswith(":1")
    cfg.data.max_prompt_length = 8
    with pytest.raises(InputError, match="no row is left"):
        load_prompts(cfg, [file], make_renderer(cfg), tmp_path)


def test_supervised_rows_keep_all_their_image_tokens(cfg: Config, png: bytes, tmp_path: Path) -> None:
    file = write(tmp_path / "d.parquet", png, [QUESTION], ["Winter"])
    renderer = make_renderer(cfg)
    (row,) = load_samples(cfg, [file], renderer, tmp_path)
    assert row.sample.token_ids.count(renderer.spec.image_token_id) == 16
    assert sum(row.sample.mask) > 0


def test_missing_and_empty_files_are_errors(cfg: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        answers(cfg, str(tmp_path / "nowhere.parquet"), tmp_path)
    (tmp_path / "junk.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match="junk"):
        answers(cfg, str(tmp_path / "junk.parquet"), tmp_path)


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.utils.cached_file", lambda *arguments: pytest.fail("the hub was asked"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for path in ("checkpoints/TimeMaster-SFT", "./model", "../a/model", "/nowhere/model", "~/model", "a/b/c", "model"):
        with pytest.raises(InputError, match=f"no such folder.*hf download OWNER/NAME --local-dir {re.escape(path)}$"):
            load_model_config(path)
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=f"Write '{tmp_path}/model'"):
        load_model_config("~/model")


def test_another_path_with_one_slash_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(path: str, name: str, revision: str) -> None:
        asked.append(path)
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.utils.cached_file", refuse)
    with pytest.raises(InputError, match="no network"):
        load_model_config("Qwen/Qwen2.5-VL-3B-Instruct")
    assert asked == ["Qwen/Qwen2.5-VL-3B-Instruct"]
