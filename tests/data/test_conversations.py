"""Conversation-style JSON becomes rows for SFT; entries that cannot be used are named with their number and reason."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import picture
from timemaster.data.store import read_examples
from timemaster.models.folder import load_model_config
from timemaster.models.vision import vision_spec
from timemaster.tasks.conversations import import_conversations, main
from timemaster.tokens.render import Renderer
from timemaster.types import Example, InputError

ANSWER = "<think>Flat, not <class>Desktop</class>.</think><class> Laptop </class>"
LLAVA = {
    "id": "1",
    "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": ANSWER}],
}
OPENAI = {
    "messages": [
        {"role": "system", "content": "You read plots."},
        {"role": "user", "content": "<image><image>Which of the two?"},
        {"role": "assistant", "content": "The second."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ],
    "images": ["a.png", "b.png"],
}
QWEN = {
    "system": "You read plots.",
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image", "image": "sub/c.png"}, {"type": "text", "text": "Which?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
    ],
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes entries to a JSON file beside three pictures."""
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(("a.png", "b.png", "sub/c.png")):
        (tmp_path / name).write_bytes(picture(i).data or b"")

    def write(*entries: Any) -> Path:
        file = tmp_path / "talk.json"
        file.write_text(json.dumps(entries), encoding="utf-8")
        return file

    return write


def imported(file: Path, **options: Any) -> list[Example]:
    out = file.with_name("out.parquet")
    import_conversations(file, out, file.parent, **options)
    return read_examples([str(out)])[0]


def test_both_forms_become_rows_with_the_pictures_inside(save: Callable[..., Path], tiny: str) -> None:
    file = save(LLAVA, OPENAI, QWEN)
    examples = imported(file, data_source="ctu")
    for name in ("a.png", "b.png", "sub/c.png"):
        (file.parent / name).unlink()  # no longer needed
    llava, openai, qwen = examples
    assert [m.role for m in llava.messages] == ["user", "assistant"]
    assert [part.kind for part in llava.messages[0].parts] == ["image", "text"]
    assert llava.messages[0].parts[0].media == picture(0)
    assert llava.messages[0].parts[1].text == "\nWhich?"
    assert llava.messages[1].parts[0].text == ANSWER
    assert (llava.answer, llava.data_source) == ("Laptop", "ctu")  # the class outside of the reasoning
    assert [m.role for m in openai.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [part.media for part in openai.messages[1].parts[:2]] == [picture(0), picture(1)]
    assert openai.answer == "Yes."  # without a class, the whole of the last turn
    assert [m.role for m in qwen.messages] == ["system", "user", "assistant"]
    assert qwen.messages[1].parts[0].media == picture(2)
    renderer = Renderer(tiny, vision_spec(load_model_config(tiny), 784, 50176))
    for example in examples:
        assert sum(renderer.sample(example).mask) > 2


def test_openais_own_image_parts_are_read(save: Callable[..., Path]) -> None:
    answer = {"role": "assistant", "content": "Winter"}
    data = "data:image/png;base64," + base64.b64encode(picture(1).data or b"").decode()
    for url in ("b.png", data):
        part = {"type": "image_url", "image_url": {"url": url}}
        user = {"role": "user", "content": [part, {"type": "text", "text": "Which?"}]}
        (example,) = imported(save({"messages": [user, answer]}))
        assert [p.media for p in example.messages[0].parts] == [picture(1), None]
        assert example.extra["question"] == "<image>Which?"


def test_an_empty_field_does_not_hide_the_filled_one(save: Callable[..., Path]) -> None:
    entry = LLAVA | {"images": [], "messages": LLAVA["conversations"], "conversations": []}
    assert [e.answer for e in imported(save(entry))] == ["Laptop"]
    turns = [{"from": None, "role": "user", "value": None, "content": "<image>Which?"}, LLAVA["conversations"][1]]
    assert [e.answer for e in imported(save(LLAVA | {"conversations": turns}))] == ["Laptop"]


def test_lines_of_json_a_list_of_images_and_another_tag_are_read(save: Callable[..., Path]) -> None:
    entry = LLAVA | {"image": ["a.png"]}
    entry["conversations"] = [LLAVA["conversations"][0], {"from": "gpt", "value": "<label>Laptop</label> it is"}]
    file = save().with_name("talk.jsonl")
    file.write_text(f"{json.dumps(entry)}\n\n{json.dumps(entry)}\n", encoding="utf-8")
    assert [e.answer for e in imported(file, answer_tag="label")] == ["Laptop", "Laptop"]
    assert [e.answer for e in imported(file)] == ["<label>Laptop</label> it is"] * 2


def test_a_line_of_json_ends_at_a_line_feed_only(save: Callable[..., Path]) -> None:
    answer = "up\u2028down\u2029left\x85right"
    entry = LLAVA | {"conversations": [LLAVA["conversations"][0], {"from": "gpt", "value": answer}]}
    file = save().with_name("talk.jsonl")
    file.write_text(f"{json.dumps(entry, ensure_ascii=False)}\n" * 2, encoding="utf-8")
    assert [e.answer for e in imported(file)] == [answer] * 2


def test_the_output_must_not_be_the_input(save: Callable[..., Path]) -> None:
    file = save(LLAVA)
    before = file.read_bytes()
    with pytest.raises(InputError, match="is the file that is read, which would be overwritten"):
        import_conversations(file, file.parent / "sub" / ".." / file.name, file.parent)
    assert file.read_bytes() == before


BAD: list[tuple[Any, str]] = [
    ("text", "a dict with conversations or messages is needed"),
    ({"image": "a.png"}, "neither conversations nor messages"),
    (LLAVA | {"conversations": []}, "neither conversations nor messages"),
    (LLAVA | {"image": "nowhere.png"}, "nowhere.png does not exist"),
    (LLAVA | {"image": "talk.json"}, "corrupt image"),
    (LLAVA | {"image": "http://host/a.png"}, "is a URL"),
    (LLAVA | {"image": ["a.png", "b.png"]}, "1 <image> markers in the prompt, 2 images"),
    (LLAVA | {"image": None}, "1 <image> markers in the prompt, 0 images"),
    (LLAVA | {"image": 7}, "an image is a int"),
    (LLAVA | {"system": "\ud83d"}, "half a surrogate pair"),
    (LLAVA | {"video": "a.mp4"}, "only images can be read"),
    (LLAVA | {"conversations": LLAVA["conversations"][:1]}, "the last turn is the user's"),
    (LLAVA | {"conversations": LLAVA["conversations"][1:]}, "begins with an assistant turn"),
    (LLAVA | {"conversations": [{"from": "bing", "value": "hi"}]}, "turn 0 is {'from': 'bing'"),
    (LLAVA | {"conversations": ["hello"]}, "turn 0 is 'hello'"),
    (
        LLAVA | {"conversations": [*LLAVA["conversations"][:1], {"from": "gpt", "value": 7}]},
        "turn 1 is 7; text or a list of parts is needed",
    ),
    (LLAVA | {"conversations": [*LLAVA["conversations"][:1], {"from": "gpt", "value": " "}]}, "text is empty"),
    (
        LLAVA | {"conversations": [*LLAVA["conversations"][:1], {"from": "gpt", "value": "<class> </class>"}]},
        "<class> is empty",
    ),
    (QWEN | {"images": ["a.png"]}, "give them in one place"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://h/a.png"}}]}]},
        "is a URL",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "video", "video": "a.png"}]}]}, "empty prompt"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "video", "video": "a.png"}, {"type": "text", "text": "?"}]}
            ]
        },
        "only images can be read",
    ),
    (QWEN | {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "its type must be text, image or video"),
]


@pytest.mark.parametrize(("entry", "reason"), BAD)
def test_an_entry_that_cannot_be_used_is_named(save: Callable[..., Path], entry: Any, reason: str) -> None:
    file = save(LLAVA, entry)
    with pytest.raises(InputError) as caught:
        imported(file)
    assert f"{file}, row 1: " in str(caught.value)
    assert reason in str(caught.value)
    assert "--on-bad-row skip" in str(caught.value)
    assert not list(file.parent.glob("*out.parquet*"))
    assert [e.answer for e in imported(file, on_bad_row="skip")] == ["Laptop"]
    with pytest.raises(InputError, match="No row is left"):
        imported(save(entry), on_bad_row="skip")


@pytest.mark.parametrize("text", ["", "[", "{}", "[]", "null", "\xff", "[" * 100_000])
def test_a_file_that_holds_no_conversations_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "talk.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"talk\.json"):
        import_conversations(file, tmp_path / "out.parquet", tmp_path)


def test_the_command_reads_pictures_from_their_folder(
    save: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = save(LLAVA)
    apart = tmp_path / "elsewhere" / "talk.json"
    apart.parent.mkdir()
    file.rename(apart)
    out = tmp_path / "new" / "out.parquet"
    with pytest.raises(SystemExit):
        main([str(apart), "--out", str(out)])
    main([str(apart), "--out", str(out), "--image-folder", str(tmp_path), "--data-source", "ctu"])
    assert [e.data_source for e in read_examples([str(out)])[0]] == ["ctu"]
