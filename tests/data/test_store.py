"""Parquet out and in: our rows, other tools' rows, and rows that cannot be used."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from timemaster.data.rows import example_from_row, image_media
from timemaster.data.store import (
    BadRow,
    count_rows,
    plot_row,
    read_examples,
    take_rows,
    write_rows,
)
from timemaster.metrics.classification import Classification
from timemaster.rewards import as_reward
from timemaster.series.splits import Series
from timemaster.tasks.audit_rows import read_rows
from timemaster.tasks.rows import with_task_answers
from timemaster.types import InputError, Message, Part, Rollout

QUESTION = "<image>Desktop or Laptop?"


def png(colour: int = 0, width: int = 20, height: int = 10, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(colour).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def our_row(index: int = 0, **changes: Any) -> dict[str, Any]:
    series = Series([[0.5, -1.0, 2.0]], "Laptop", index)
    return plot_row(series, png(index), QUESTION, "computer_dataset", "train") | changes


def save(folder: Path, rows: list[dict[str, Any]], name: str = "train.parquet") -> str:
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    return str(folder / name)


def only(file: str) -> Any:
    examples, bad = read_examples([file])
    assert bad == []
    assert len(examples) == 1
    return examples[0]


def test_our_rows_come_back(tmp_path: Path):
    file = tmp_path / "train.parquet"
    write_rows(file, [our_row(5), our_row(6)])
    examples, bad = read_examples([str(file)])
    assert bad == []
    assert [e.id for e in examples] == ["train.parquet:0", "train.parquet:1"]
    example = examples[1]
    image = example.messages[0].parts[0]
    assert example.messages == [Message("user", [image, Part("text", text="Desktop or Laptop?")])]
    assert image.media is not None
    assert image.media.data == png(6)
    assert image.media.uid == hashlib.sha256(png(6)).hexdigest()[:32]
    assert (image.media.width, image.media.height) == (20, 10)
    assert (example.answer, example.data_source) == ("Laptop", "computer_dataset")
    assert example.extra["index"] == 6
    assert (example.extra["file"], example.extra["row"]) == (str(file), 1)
    assert list(tmp_path.iterdir()) == [file]  # no temporary file is left


def test_a_demonstration_is_an_assistant_turn_and_its_markers_are_text(tmp_path: Path):
    row = plot_row(Series([[0.0]], "Laptop", 0), png(), QUESTION, "x", "train", "an <image> of a <class>Laptop</class>")
    write_rows(tmp_path / "sft.parquet", [row])
    user, assistant = only(str(tmp_path / "sft.parquet")).messages
    assert user.role == "user"
    assert assistant == Message("assistant", [Part("text", text="an <image> of a <class>Laptop</class>")])


def test_columns_are_those_of_verl_and_of_easyr1(tmp_path: Path):
    write_rows(tmp_path / "train.parquet", [our_row()])
    schema = pq.read_schema(tmp_path / "train.parquet")
    verl = ["data_source", "prompt", "images", "videos", "ability", "reward_model", "extra_info"]
    assert schema.names == [*verl, "problem", "answer", "data"]
    assert schema.field("images").type == pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    row = pd.read_parquet(tmp_path / "train.parquet").iloc[0]  # as verl reads it
    assert dict(row["prompt"][0]) == {"content": QUESTION, "role": "user"}
    assert row["images"][0]["bytes"] == png(0)
    assert row["images"][0]["path"] is None
    assert dict(row["reward_model"]) == {"ground_truth": "Laptop", "style": "rule"}
    assert dict(row["extra_info"]) == {"answer": "Laptop", "index": 0, "question": QUESTION, "split": "train"}
    assert list(row["data"]) == [0.5, -1.0, 2.0]
    assert row["videos"] is None  # an empty list would go to the processor in some versions of verl, and fail there
    assert (row["problem"], row["answer"]) == (QUESTION, "Laptop")  # EasyR1: prompt_key=problem, answer_key=answer


def test_several_channels_are_kept_apart(tmp_path: Path):
    write_rows(tmp_path / "t.parquet", [plot_row(Series([[1.0], [2.0]], "A", 0), png(), QUESTION, "har", "train")])
    assert pq.read_table(tmp_path / "t.parquet").to_pylist()[0]["data"] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    "row",
    [
        {"problem": QUESTION, "answer": "Laptop", "images": [{"bytes": png(), "path": None}]},  # EasyR1
        {"question": QUESTION, "answer": "Laptop", "images": [png()]},
        {"problem": QUESTION, "answer": "Laptop", "image": png()},
        {"problem": QUESTION, "answer": "Laptop", "images": ["plots/a.png"]},
        {"problem": QUESTION, "answer": "Laptop", "images": json.dumps(["plots/a.png"])},
        {"problem": QUESTION, "answer": "Laptop", "images": [{"bytes": None, "path": "plots/a.png"}]},
        {"problem": QUESTION, "answer": "Laptop", "images": [{"image": "plots/a.png"}]},  # verl
        {"problem": QUESTION, "answer": "Laptop", "images": [{"image": png()}]},
        {
            "prompt": json.dumps([{"role": "user", "content": QUESTION}]),
            "reward_model": json.dumps({"ground_truth": "Laptop"}),
            "images": [png()],
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": QUESTION[7:]}]}
            ],
            "answer": "Laptop",
            "images": [png()],
        },
    ],
)
def test_other_tools_rows_mean_the_same(tmp_path: Path, row: dict[str, Any]):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.png").write_bytes(png())
    example = only(save(tmp_path, [row]))
    image, text = example.messages[0].parts
    assert text == Part("text", text="Desktop or Laptop?")
    assert image.media.uid == hashlib.sha256(png()).hexdigest()[:32]
    assert (image.media.width, image.media.height) == (20, 10)
    assert (image.media.data is None) == (image.media.path != "")
    assert (example.answer, example.data_source) == ("Laptop", "")


def test_files_of_the_datasets_library_are_read(tmp_path: Path):
    import datasets

    picture = Image.open(io.BytesIO(png(3)))
    features = datasets.Features(
        {"problem": datasets.Value("string"), "answer": datasets.Value("string"), "images": [datasets.Image()]}
    )
    rows = {"problem": [QUESTION], "answer": ["Laptop"], "images": [[picture]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    media = only(str(tmp_path / "train.parquet")).messages[0].parts[0].media
    decoded = np.asarray(Image.open(io.BytesIO(media.data)))
    assert (decoded == np.asarray(picture)).all()


def test_rows_as_pandas_gives_them(tmp_path: Path):
    write_rows(tmp_path / "train.parquet", [our_row(4)])
    row = {str(name): value for name, value in pd.read_parquet(tmp_path / "train.parquet").iloc[0].items()}
    assert isinstance(row["prompt"], np.ndarray)
    example = example_from_row(row, "train.parquet:0", tmp_path)
    assert example.messages == only(str(tmp_path / "train.parquet")).messages
    assert example_from_row(row | {"reward_model": float("nan")}, "x:0", tmp_path).answer == "Laptop"


TYPES: list[Any] = [
    {"boxes": [[1, 2], [3, 4]], "unit": "s"}, ["a", "b"], [0.5, 1.5], 7, 0, 2.5, True, False, "text", '{"a": 1}', "[1, 2]",
    "12", [], {"none": None},
]  # fmt: skip


@pytest.mark.parametrize("value", TYPES)
@pytest.mark.parametrize("column", ["reward_model", "answer", "ground_truth", "json"])
def test_the_ground_truth_keeps_its_type_for_rewards_in_verls_form(tmp_path: Path, value: Any, column: str):
    row: dict[str, Any] = {"problem": "What?"}
    if column == "json":  # the column as text: what is inside keeps its type, and text inside stays text
        row["reward_model"] = json.dumps({"ground_truth": value})
    else:
        row[column] = {"ground_truth": value, "style": "rule"} if column == "reward_model" else value
    for example in (only(save(tmp_path, [row])), example_from_row(pandas_row(save(tmp_path, [row])), "x:0", tmp_path)):
        seen: list[Any] = []

        def compute_score(solution_str: str, ground_truth: Any, seen: list[Any] = seen) -> float:
            seen.append(ground_truth)
            return 1.0

        nothing: dict[str, Any] = {name: [] for name in ("token_ids", "mask", "logprobs", "versions", "media")}
        as_reward(compute_score)(Rollout(id="x", text="", finish_reason="stop", **nothing), example)
        assert seen == [value]
        assert type(seen[0]) is type(value)
        text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, (dict, list)) else str(value)
        assert example.answer == text


def pandas_row(file: str) -> dict[str, Any]:
    """The first row with numpy's arrays and scalars, as pandas gives it."""
    return {str(name): value for name, value in pd.read_parquet(file).iloc[0].items()}


@pytest.mark.parametrize("nothing", [None, "", "  ", [], np.array([]), float("nan")])
def test_an_empty_column_does_not_hide_the_filled_one(tmp_path: Path, nothing: Any):
    full = {"question": QUESTION, "ground_truth": "Laptop", "image": [png()]}
    empty = dict.fromkeys(("prompt", "messages", "problem", "reward_model", "answer", "images"), nothing)
    example = example_from_row(empty | full, "x:0", tmp_path)
    assert example.messages[0].parts[1].text == "Desktop or Laptop?"
    assert example.messages[0].parts[0].media is not None
    assert example.answer == "Laptop"
    assert example_from_row(full | {"reward_model": {"ground_truth": nothing}}, "x:0", tmp_path).answer == "Laptop"
    assert example_from_row(full | {"images": "[]", "prompt": "[]"}, "x:0", tmp_path).messages == example.messages
    picture = {"bytes": nothing if nothing is None else b"", "path": None, "image": png()}
    assert example_from_row(full | {"image": [picture]}, "x:0", tmp_path).messages == example.messages


DATA_URL = "data:image/png;base64," + base64.b64encode(png()).decode()
PARTS: list[dict[str, Any]] = [
    {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}},  # OpenAI
    {"type": "image_url", "image_url": {"url": "plots/a b.png"}},
    {"type": "image_url", "image_url": {"url": "file://plots/a b.png"}},
    {"type": "image_url", "image_url": DATA_URL},
    {"type": "input_image", "image_url": DATA_URL},  # OpenAI's other interface
    {"type": "image", "image": "plots/a b.png"},  # Qwen
    {"type": "image", "image": DATA_URL.replace("image/png", "image")},
    {"type": "image", "image": {"bytes": None, "path": "plots/a b.png"}},
    {"type": "image", "path": "plots/a b.png"},  # transformers
    {"type": "image", "url": DATA_URL},
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("encoded", [True, False])
def test_an_image_inside_a_message_is_read(tmp_path: Path, part: dict[str, Any], encoded: bool):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a b.png").write_bytes(png())
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "Desktop or Laptop?"}]}]
    row = {"prompt": json.dumps(turns) if encoded else turns, "answer": "Laptop", "images": []}
    file = save(tmp_path, [row])
    for example in (only(file), example_from_row(pandas_row(file), "x:0", tmp_path)):
        image, text = example.messages[0].parts
        assert text == Part("text", text="Desktop or Laptop?")
        assert image.media.uid == hashlib.sha256(png()).hexdigest()[:32]
        assert (image.media.width, image.media.height) == (20, 10)


def test_images_inside_and_beside_the_messages(tmp_path: Path):
    own = {"type": "image_url", "image_url": {"url": DATA_URL}}
    bare = {"type": "image", "image_url": {"url": None}}  # as parquet fills up a column of such parts
    text = {"type": "text", "text": "Which?"}
    row = {"prompt": [{"role": "user", "content": [bare, text]}], "answer": "x", "images": [png(1)]}
    assert only(save(tmp_path, [row])).messages[0].parts[0].media.data == png(1)
    row["prompt"] = [{"role": "user", "content": [own, text]}]
    with pytest.raises(InputError, match="images are in the images column and in the messages; give them in one place"):
        read_examples([save(tmp_path, [row])])
    row |= {"images": [], "prompt": [{"role": "user", "content": [own, bare, text]}]}
    with pytest.raises(InputError, match="1 <image> markers in the prompt, 0 images in the row"):
        read_examples([save(tmp_path, [row])])


@pytest.mark.parametrize("part", [{"type": "video", "video": "v.mp4", "fps": 2.0},
                                  {"type": "video_url", "video_url": {"url": "v.mp4"}, "fps": 2.0}])  # fmt: skip
def test_a_video_inside_a_message_is_read(tmp_path: Path, part: dict[str, Any]):
    (tmp_path / "v.mp4").write_bytes(b"not opened")
    turns = [{"role": "user", "content": [part, {"type": "text", "text": "Which?"}]}]
    media = only(save(tmp_path, [{"prompt": json.dumps(turns), "answer": "x"}])).messages[0].parts[0].media
    assert (media.kind, media.path, media.fps) == ("video", str(tmp_path / "v.mp4"), 2.0)


def test_markers_become_parts_in_order(tmp_path: Path):
    (tmp_path / "v.mp4").write_bytes(b"not opened")
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a<image>b<video>c<image>"}]
    row = {"prompt": prompt, "answer": "x", "images": [png(1), png(2)], "videos": ["v.mp4"]}
    system, user = only(save(tmp_path, [row])).messages
    assert system == Message("system", [Part("text", text="Be brief.")])
    assert [part.kind for part in user.parts] == ["text", "image", "text", "video", "text", "image"]
    assert user.parts[1].media.data == png(1)
    assert user.parts[5].media.data == png(2)
    assert user.parts[3].media.path == str(tmp_path / "v.mp4")


def test_a_question_in_square_brackets_is_a_question(tmp_path: Path):
    row = {"problem": "[1, 2, 3] is what?", "answer": "a list"}
    assert only(save(tmp_path, [row])).messages[0].parts == [Part("text", text="[1, 2, 3] is what?")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": [{"role": "user", "content": "no marker"}]}, "0 <image> markers in the prompt, 1 images"),
        ({"prompt": [{"role": "user", "content": "<image><image>two"}]}, "2 <image> markers in the prompt, 1 images"),
        ({"prompt": [{"role": "user", "content": "<image><video>a"}]}, "1 <video> markers in the prompt, 0 videos"),
        ({"prompt": [{"role": "user", "content": "<image> "}]}, "empty prompt"),
        ({"prompt": [], "problem": " "}, "empty prompt"),
        ({"prompt": None, "problem": json.dumps([{"role": "user", "content": 7}])}, "the content of a message is 7"),
        (
            {"prompt": None, "problem": json.dumps([{"role": "user", "content": [{"type": "text", "text": 7}]}])},
            "text a string",
        ),
        ({"prompt": [{"role": "robot", "content": "<image>a"}]}, "role of system, user, assistant, tool"),
        ({"images": [{"bytes": png()[:200], "path": None}]}, r"corrupt image \(200 bytes\)"),
        ({"images": [{"bytes": b"GIF, not really", "path": None}]}, "corrupt image"),
        ({"images": [{"bytes": png(width=201, height=1), "path": None}]}, "201 x 1 pixels: .* at most 200-fold"),
        ({"images": [{"bytes": None, "path": "https://a.org/b.png"}]}, "https://a.org/b.png is a URL"),
        ({"images": [{"bytes": None, "path": "data:image/png;base64,iVBO"}]}, r"corrupt image \(3 bytes\)"),
        ({"images": [{"bytes": None, "path": "data:image/png;base64,iV?O"}]}, "cannot be decoded"),
        ({"images": [{"bytes": None, "path": "data:image/png,iVBO"}]}, "not in base64"),
        ({"images": [{"bytes": None, "path": "a" * 300}]}, "does not exist"),
        (
            {"prompt": [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": QUESTION}]},
            "begins with an assistant turn",
        ),
        ({"images": [{"bytes": None, "path": "gone.png"}]}, "gone.png does not exist"),
        ({"images": [{"bytes": None, "path": None}]}, "neither bytes nor path"),
        ({"reward_model": {"ground_truth": "", "style": "rule"}, "answer": " "}, "no answer"),
    ],
)
def test_bad_rows_are_named_or_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
):
    file = tmp_path / "train.parquet"
    write_rows(file, [our_row(0), our_row(1, **changes)])
    with pytest.raises(InputError, match=rf"1 of 2 rows cannot be used:\n  .*train.parquet, row 1: .*{reason}"):
        read_examples([str(file)])
    with caplog.at_level(logging.WARNING):
        examples, bad = read_examples([str(file)], on_bad_row="skip")
    assert [e.id for e in examples] == ["train.parquet:0"]
    assert [(b.file, b.row) for b in bad] == [(str(file), 1)]
    assert "1 of 2 rows" in caplog.text


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_is_cut_off_is_found(tmp_path: Path, kind: str, share: float):
    whole = png(width=120, height=80, kind=kind)
    media = image_media(whole, tmp_path)
    assert (media.width, media.height) == (120, 80)
    with pytest.raises(InputError, match="corrupt image"):
        image_media(whole[: int(share * len(whole))], tmp_path)


@pytest.mark.parametrize("missing", [8, 12, 13, 16, 30])
def test_a_png_without_its_last_bytes_is_found(tmp_path: Path, missing: int):
    with pytest.raises(InputError, match="corrupt image"):  # the last chunk has 12 bytes: length, name, checksum
        image_media(png()[:-missing], tmp_path)


def test_a_png_with_a_changed_byte_is_found(tmp_path: Path):
    data = bytearray(png(width=120, height=80))
    data[len(data) // 2] ^= 1
    with pytest.raises(InputError, match="corrupt image"):
        image_media(bytes(data), tmp_path)


def test_only_the_first_bad_rows_are_listed_and_an_empty_rest_is_an_error(tmp_path: Path):
    write_rows(tmp_path / "t.parquet", [our_row(i, prompt=[], problem="") for i in range(8)])
    with pytest.raises(InputError, match=r"8 of 8 rows[\s\S]*row 4: [\s\S]*and 3 more[\s\S]*No row is left"):
        read_examples([str(tmp_path / "t.parquet")], on_bad_row="skip")


def test_bad_files_are_errors_whatever_on_bad_row_says(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.parquet' does not exist"):
        read_examples([str(tmp_path / "gone.parquet")], on_bad_row="skip")
    (tmp_path / "zero.parquet").touch()
    with pytest.raises(InputError, match="not a readable parquet file"):
        read_examples([str(tmp_path / "zero.parquet")])
    pq.write_table(pa.table({"prompt": pa.array([], pa.string()), "answer": pa.array([], pa.string())}), tmp_path / "e")
    with pytest.raises(InputError, match="has no rows"):
        read_examples([str(tmp_path / "e")])
    with pytest.raises(InputError, match=r"has no prompt column \(one of prompt, messages, problem, question\)"):
        read_examples([save(tmp_path, [{"text": "a", "answer": "b"}])])
    with pytest.raises(InputError, match="has no answer column"):
        read_examples([save(tmp_path, [{"prompt": "a"}])])
    with pytest.raises(InputError, match="allowed: raise, skip"):
        read_examples([], on_bad_row="ignore")


def test_ids_are_unique_over_files(tmp_path: Path):
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "train.parquet", [our_row()])
        files.append(str(tmp_path / folder / "train.parquet"))
    examples, _ = read_examples(files)
    assert [e.id for e in examples] == ["a/train.parquet:0", "b/train.parquet:0"]
    with pytest.raises(InputError, match="given twice"):
        read_examples([files[0], files[0]])


def truth(answer: str) -> dict[str, str]:
    return {"ground_truth": answer, "style": "rule"}


def test_answers_take_the_tasks_spelling_and_impossible_ones_are_bad_rows(tmp_path: Path):
    answers = ("laptop", "Desktop ", "Laptop", "Tablet")
    rows = [our_row(i, reward_model=truth(answer)) for i, answer in enumerate(answers)]
    file = tmp_path / "train.parquet"
    write_rows(file, [*rows, our_row(4, reward_model=truth("Tablet"), data_source="y")])  # has no task: stays
    examples, _ = read_examples([str(file)])
    task = SimpleNamespace(name="ctu", evaluation=Classification(labels=("Desktop", "Laptop")))
    spelled, bad = with_task_answers(examples, {"computer_dataset": task})
    reason = "the answer does not fit task ctu: 'Tablet' is none of the labels Desktop, Laptop"
    assert bad == [BadRow(str(file), 3, reason)]
    assert [e.answer for e in spelled] == ["Laptop", "Desktop", "Laptop", "Tablet"]
    old = [*examples[:3], examples[4]]
    assert [replace(new, answer=e.answer) for new, e in zip(spelled, old, strict=True)] == old
    assert with_task_answers(examples, {}) == (examples, [])


def test_all_rows_are_counted_bad_ones_too(tmp_path: Path):
    write_rows(tmp_path / "a.parquet", [our_row(0), our_row(1, answer="", reward_model=None)])
    write_rows(tmp_path / "b.parquet", [our_row(0)])
    assert count_rows([str(tmp_path / name) for name in ("a.parquet", "b.parquet")]) == 3
    with pytest.raises(InputError, match="does not exist"):
        count_rows([str(tmp_path / "c.parquet")])


def test_a_large_row_group_is_read_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Row groups beyond 2 GiB cannot be read whole; that a group's size does not matter is what can be tested fast."""
    data = np.random.default_rng(0).bytes(1 << 19)
    rows = [our_row(i, images=[{"bytes": data, "path": None}]) for i in range(96)]
    group = pa.Table.from_pylist([{name: row[name] for name in row if name != "data"} for row in rows])
    pq.write_table(group, tmp_path / "large.parquet", row_group_size=len(rows), write_batch_size=1)
    del group
    metadata = pq.ParquetFile(tmp_path / "large.parquet").metadata
    assert (metadata.num_row_groups, metadata.num_rows) == (1, 96)  # 48 MiB
    held = [0]

    def look(row: dict[str, Any], *_: Any) -> Any:
        held.append(pa.total_allocated_bytes() - before)
        raise InputError("looked at")

    monkeypatch.setattr("timemaster.data.store.example_from_row", look)
    monkeypatch.setattr("timemaster.tasks.audit_rows.example_from_row", look)
    before = pa.total_allocated_bytes()
    with pytest.raises(InputError, match="96 of 96"):
        read_examples([str(tmp_path / "large.parquet")])
    bad: list[str] = []
    assert list(read_rows(tmp_path / "large.parquet", {}, bad)) == []
    assert (len(bad), len(held)) == (96, 1 + 96 + 96)
    assert max(held) < 24 << 20  # 32 rows of 0.5 MiB are 16 MiB
    texts = take_rows(tmp_path / "large.parquet", [1, 33, 95], ["extra_info"]).to_pylist()
    assert [row["extra_info"]["index"] for row in texts] == [1, 33, 95]


def test_default_source_serves_files_without_the_column(tmp_path: Path):
    file = save(tmp_path, [{"problem": "a", "answer": "b"}])
    assert read_examples([file], default_source="ctu")[0][0].data_source == "ctu"
