"""One row of a parquet file -> one `Example`, in the dialects that are about: verl, EasyR1, TimeMaster, `datasets`.

| what | where it may stand |
|---|---|
| prompt | `prompt`, `messages`, `problem`, `question`: a string, or a list of {role, content}, also JSON-encoded |
| content | a string with `<image>` and `<video>` markers, or a list of {"type": "image"}, {"type": "text", "text": …} |
| answer | `reward_model.ground_truth`, `answer`, `ground_truth` |
| images | `images` or `image`: dicts {bytes, path} or {image}, encoded bytes, paths; one or a list |
| videos | `videos` or `video`: paths, or dicts with `video` or `path`, and `fps` |

Lists may be numpy arrays (as pandas gives them). Relative paths start at the parquet file's folder; nothing is fetched
from a URL. Every image is checked for damage and for a size that the model takes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from timemaster.data.media import check_size
from timemaster.data.media import image_media as encoded_image
from timemaster.types import Example, InputError, Media, Message, Part

PROMPTS = ("prompt", "messages", "problem", "question")
ANSWERS = ("reward_model", "answer", "ground_truth")
IMAGES = ("images", "image")
VIDEOS = ("videos", "video")
ROLES = ("system", "user", "assistant", "tool")
MARKER = re.compile(r"<(image|video)>")


def example_from_row(row: Mapping[str, Any], example_id: str, folder: Path, default_source: str = "") -> Example:
    """The example of one row; `extra` is the row's extra_info. Raises InputError with the reason when it has none."""
    media = {
        "image": [image_media(item, folder) for item in _as_list(_first(row, IMAGES))],
        "video": [video_media(item, folder) for item in _as_list(_first(row, VIDEOS))],
    }
    extra = _decoded(_plain(row.get("extra_info")))
    return Example(
        id=example_id,
        messages=_messages(_first(row, PROMPTS), media),
        answer=_answer(row),
        data_source=str(_plain(row.get("data_source")) or default_source),
        extra=dict(extra) if isinstance(extra, Mapping) else {},
    )


def _plain(value: Any) -> Any:
    """numpy arrays as lists; pandas' NaN for "nothing here" as None."""
    if hasattr(value, "tolist") and not isinstance(value, bytes):
        value = value.tolist()
    return None if isinstance(value, float) and math.isnan(value) else value


def _decoded(value: Any) -> Any:
    """A JSON-encoded list or object decoded; everything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of the columns that holds something."""
    return next((value for name in names if (value := _plain(row.get(name))) is not None), None)


def _as_list(value: Any) -> list[Any]:
    value = _decoded(value)
    if value is None or value == "":
        return []
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else [value]


def _answer(row: Mapping[str, Any]) -> str:
    reward_model = _decoded(_plain(row.get("reward_model")))
    truth = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    truth = _first(row, ANSWERS[1:]) if truth is None else truth
    if truth is None or str(truth).strip() == "":
        raise InputError("no answer (reward_model.ground_truth or answer is empty)")
    return str(truth)


def _messages(prompt: Any, media: dict[str, list[Media]]) -> list[Message]:
    decoded = _decoded(prompt)
    if isinstance(prompt, str) and not (isinstance(decoded, list) and all(isinstance(t, Mapping) for t in decoded)):
        decoded = [{"role": "user", "content": prompt}]
    turns = list(decoded or [])
    if not all(isinstance(turn, Mapping) and turn.get("role") in ROLES for turn in turns):
        raise InputError(f"the prompt is no text and no list of messages with a role of {', '.join(ROLES)}")
    pieces = [(turn["role"], _pieces(_plain(turn.get("content")), turn["role"])) for turn in turns]
    if not any(text.strip() for _, parts in pieces for kind, text in parts if kind == "text"):
        raise InputError("empty prompt")
    if pieces[0][0] == "assistant":
        raise InputError("the prompt begins with an assistant turn; the first turn must be system or user")
    if pieces[-1][0] == "system":
        raise InputError("the prompt ends with a system turn; the last turn must be user, tool or assistant")
    for kind, items in media.items():
        num_markers = sum(k == kind for _, parts in pieces for k, _ in parts)
        if num_markers != len(items):
            raise InputError(
                f"{num_markers} <{kind}> markers in the prompt, {len(items)} {kind}s in the row; they must be as many"
            )
    rest = {kind: iter(items) for kind, items in media.items()}
    return [
        Message(
            role,
            [Part("text", text=text) if kind == "text" else Part(kind, media=next(rest[kind])) for kind, text in parts],
        )
        for role, parts in pieces
    ]


def _pieces(content: Any, role: str) -> list[tuple[str, str]]:
    """[(kind, text)] of one message; a marker has no text. What an assistant writes is text, whatever it looks like."""
    if isinstance(content, str):
        if role == "assistant":
            return [("text", content)]
        # With one group, split gives text, kind, text, kind, …, text.
        split = MARKER.split(content)
        return [(text, "") if i % 2 else ("text", text) for i, text in enumerate(split) if text]
    pieces: list[tuple[str, str]] = []
    for part in content or []:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image", "video"):
            pieces.append((kind, ""))
        elif kind == "text":
            pieces.extend(_pieces(part.get("text") or "", role))
        else:
            raise InputError(f"a content part is {part!r}; its type must be text, image or video")
    return pieces


def image_media(item: Any, folder: Path) -> Media:
    """The image that one entry of the column stands for. Raises InputError when it is missing, damaged or too long."""
    data, path = item, None
    if isinstance(item, Mapping):
        if item.get("bytes") is None and not item.get("path") and item.get("image") is not None:
            return image_media(item["image"], folder)
        data, path = item.get("bytes"), item.get("path")
    elif isinstance(item, str):
        data, path = None, item
    if data is None:
        if not path:
            raise InputError("an image has neither bytes nor path")
        path = _file(path, folder)
        data = path.read_bytes()
    if not isinstance(data, bytes):
        raise InputError(f"an image is a {type(data).__name__}; give encoded bytes, a path or {{bytes, path}}")
    try:
        _check_undamaged(data)
        media = encoded_image(data)
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise InputError(f"corrupt image ({len(data)} bytes): {error}") from error
    try:
        check_size(media.height, media.width)
    except InputError as error:
        raise InputError(f"an image has {error}") from error
    return replace(media, data=None, path=str(path)) if isinstance(path, Path) else media


def _check_undamaged(data: bytes) -> None:
    """Raises what Pillow raises for a file that is cut off or changed."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        if image.format == "PNG":
            image.verify()  # every chunk has a checksum, and the last one is demanded: no need to decode
        else:
            image.load()  # of other formats, verify() reads the header at best


def video_media(item: Any, folder: Path) -> Media:
    """The video that one entry of the column stands for; the file must be there but is not opened."""
    path, fps = item, 0.0
    if isinstance(item, Mapping):
        path, fps = item.get("video") or item.get("path"), float(item.get("fps") or 0.0)
    if not isinstance(path, str):
        raise InputError(f"a video is {item!r:.80}; give a path or a dict with video or path")
    file = _file(path, folder)
    stat = file.stat()  # reading gigabytes to hash them is too dear: name, size and time stand for the content
    uid = hashlib.sha256(f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{fps}".encode()).hexdigest()[:32]
    return Media(kind="video", uid=uid, path=str(file), fps=fps)


def _file(path: str, folder: Path) -> Path:
    path = path.removeprefix("file://")
    if "://" in path or path.startswith("data:"):
        raise InputError(f"{path:.80} is a URL; fetch it, and give a path or the encoded bytes")
    file = folder / path
    try:
        found = file.is_file()
    except OSError:  # a name too long for the system
        found = False
    if not found:
        raise InputError(f"{file!s:.200} does not exist")
    return file
