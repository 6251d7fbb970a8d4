"""Turns one row of a parquet file into one `Example`. Reads the formats of verl, EasyR1, TimeMaster and `datasets`.

| field | columns and forms that are understood |
|---|---|
| prompt | `prompt`, `messages`, `problem`, `question`: a string, or a list of {role, content}, also JSON-encoded |
| content | a string with `<image>` and `<video>` markers, or a list of {"type": "image"}, {"type": "text", "text": …} |
| answer | `reward_model.ground_truth`, `answer`, `ground_truth` |
| images | `images` or `image`: dicts {bytes, path} or {image}, encoded bytes, paths, data URLs; one or a list |
| videos | `videos` or `video`: paths, or dicts with `video` or `path`, and `fps` |

If several columns hold the same field, the first one that is not empty is used. A content part may contain its image
or video, as in {"type": "image_url", "image_url": {"url": …}} (OpenAI's form) or {"type": "image", "image": …}; then
the image and video columns must be empty. `Example.answer` is text, for people, labels and metrics. `Example.truth`
keeps the type that the answer has in the file, for rewards in verl's form; a string is never parsed as JSON.

Lists may be numpy arrays, as pandas returns them. Relative paths start at the parquet file's folder. Nothing is
downloaded from a URL. Every image is checked for damage and for a size that the model accepts.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from timemaster.media.images import as_seen, check_size, check_still
from timemaster.media.images import image_media as encoded_image
from timemaster.types import Example, InputError, Media, Message, Part

PROMPTS = ("prompt", "messages", "problem", "question")
ANSWERS = ("reward_model", "answer", "ground_truth")
IMAGES = ("images", "image")
VIDEOS = ("videos", "video")
ROLES = ("system", "user", "assistant", "tool")
# Types of a content part. OpenAI's two interfaces use different names.
KINDS = {"text": "text", "input_text": "text", "image": "image", "image_url": "image", "input_image": "image"}
KINDS |= {"video": "video", "video_url": "video"}
# Keys under which a dict may hold its image or video.
MEDIA_KEYS = ("bytes", "path", "url", "image", "image_url", "video", "video_url")
MARKER = re.compile(r"<(image|video)>")


def example_from_row(row: Mapping[str, Any], example_id: str, folder: Path, default_source: str = "") -> Example:
    """Return the example of one row; `extra` is the row's extra_info.

    Relative paths start at `folder`. Raises InputError with the reason if the row cannot be used.
    """
    images, videos = _as_list(_first(row, IMAGES)), _as_list(_first(row, VIDEOS))
    truth = _truth(row)
    extra = _decoded(_plain(row.get("extra_info")))
    return Example(
        id=example_id,
        messages=read_messages(_first(row, PROMPTS), images, videos, folder),
        answer=json.dumps(truth, ensure_ascii=False, default=str) if isinstance(truth, (dict, list)) else str(truth),
        truth=None if isinstance(truth, str) else truth,
        data_source=str(_plain(row.get("data_source")) or default_source),
        extra=dict(extra) if isinstance(extra, Mapping) else {},
    )


def _plain(value: Any) -> Any:
    """Convert a field to Python's own types; NaN, which is how pandas marks a missing value, becomes None."""
    value = _python(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _python(value: Any) -> Any:
    """Convert numpy arrays and scalars to lists and numbers, also inside lists and dicts."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _python(item) for name, item in value.items()}
    return [_python(item) for item in value] if isinstance(value, (list, tuple)) else value


def _decoded(value: Any) -> Any:
    """Decode a JSON-encoded list or object; return everything else unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def is_empty(value: Any) -> bool:
    """Whether a field is empty: None, blank text, or a container without elements. False and 0 are not empty."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {}, b"")


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """Return the first of the columns `names` that is not empty; if all are empty, the first that exists."""
    values = [value for name in names if (value := _plain(row.get(name))) is not None]
    return next((value for value in values if not is_empty(_decoded(value))), values[0] if values else None)


def _as_list(value: Any) -> list[Any]:
    value = _decoded(value)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _truth(row: Mapping[str, Any]) -> Any:
    """Return the ground truth with the type it has in the file. Raises InputError if there is none."""
    reward_model = _decoded(_plain(row.get("reward_model")))
    candidates = [_plain(reward_model.get("ground_truth"))] if isinstance(reward_model, Mapping) else []
    candidates += [_plain(row.get(name)) for name in ANSWERS[1:]]
    truth = next((value for value in candidates if not is_empty(value)), None)
    if truth is None:
        truth = next((value for value in candidates if value in ([], {})), None)  # an empty list can be the answer
    if truth is None:
        raise InputError("no answer (reward_model.ground_truth or answer is empty)")
    return truth


def read_messages(prompt: Any, images: Sequence[Any], videos: Sequence[Any], folder: Path) -> list[Message]:
    """Return the messages of a prompt; each marker is replaced by the next item of `images` or `videos`.

    Raises InputError with the reason if the prompt cannot be used.
    """
    media = {
        "image": [image_media(item, folder) for item in images],
        "video": [video_media(item, folder) for item in videos],
    }
    decoded = _decoded(prompt)
    if isinstance(prompt, str) and not (isinstance(decoded, list) and all(isinstance(t, Mapping) for t in decoded)):
        decoded = [{"role": "user", "content": prompt}]
    turns = list(decoded or [])
    if not all(isinstance(turn, Mapping) and turn.get("role") in ROLES for turn in turns):
        raise InputError(f"the prompt must be text or a list of messages, each with a role of {', '.join(ROLES)}")
    messages = [(turn["role"], _parts(turn.get("content"), turn["role"], folder)) for turn in turns]
    parts = [part for _, contents in messages for part in contents]
    if not any(part.text.strip() for part in parts):
        raise InputError("empty prompt")
    if messages[0][0] == "assistant":
        raise InputError("the prompt begins with an assistant turn; the first turn must be system or user")
    if messages[-1][0] == "system":
        raise InputError("the prompt ends with a system turn; the last turn must be user, tool or assistant")
    for kind, items in media.items():
        if items and any(part.kind == kind and part.media for part in parts):
            raise InputError(f"{kind}s are in the {kind}s column and in the messages; give them in one place")
        num_markers = sum(part.kind == kind and part.media is None for part in parts)
        if num_markers != len(items):
            raise InputError(
                f"{num_markers} <{kind}> markers in the prompt, {len(items)} {kind}s in the row; one a marker is needed"
            )
    rest = {kind: iter(items) for kind, items in media.items()}
    return [
        Message(role, [p if p.kind == "text" or p.media else Part(p.kind, media=next(rest[p.kind])) for p in contents])
        for role, contents in messages
    ]


def _parts(content: Any, role: str, folder: Path) -> list[Part]:
    """Return the parts of one message. A marker becomes a part without media; in an assistant's message it is text."""
    if content is None:
        return []
    if isinstance(content, str):
        if role == "assistant":
            return [Part("text", text=content)]
        # Because MARKER has one group, split returns text, kind, text, kind, …, text.
        split = MARKER.split(content)
        return [Part(text) if i % 2 else Part("text", text=text) for i, text in enumerate(split) if text]
    if not isinstance(content, list):
        raise InputError(f"the content of a message is {content!r:.60}; text or a list of parts is needed")
    parts: list[Part] = []
    for part in content:
        kind = KINDS.get(str(part.get("type"))) if isinstance(part, Mapping) else None
        if kind is None or not isinstance(part.get("text") or "", str):
            raise InputError(f"a content part is {part!r:.200}; its type must be text, image or video, text a string")
        if kind == "text":
            parts += _parts(part.get("text"), role, folder)
            continue
        if _media_source(part) is None:
            parts.append(Part(kind))
        else:
            parts.append(Part(kind, media=(image_media if kind == "image" else video_media)(part, folder)))
    return parts


def _media_source(item: Mapping[str, Any]) -> Any:
    """Return the image or video that a dict holds: encoded bytes, a path or a URL. None if it holds none."""
    sources = (_media_source(value) if isinstance(value, Mapping) else value for value in map(item.get, MEDIA_KEYS))
    return next((value for value in sources if not is_empty(value)), None)


def image_media(item: Any, folder: Path) -> Media:
    """Return the image of one entry of the image column, or of a content part.

    Raises InputError if it is missing, damaged, animated or of a size that the model does not accept.
    """
    data, path = _media_source(item) if isinstance(item, Mapping) else item, None
    if is_empty(data):
        raise InputError("an image has neither bytes nor path")
    if isinstance(data, str) and data.startswith("data:"):
        data = _from_data_url(data)
    elif isinstance(data, str):
        path = _file(data, folder)
        data = path.read_bytes()
    if not isinstance(data, bytes):
        raise InputError(f"an image is a {type(data).__name__}; give encoded bytes, a path or {{bytes, path}}")
    try:
        _check_undamaged(data)
        media = encoded_image(data)
        check_size(media.height, media.width)
    except InputError as error:
        raise InputError(f"an image has {error}") from error
    except Exception as error:  # Pillow raises many types of exceptions for a damaged file
        raise InputError(f"corrupt image ({len(data)} bytes): {error}") from error
    return media if path is None else replace(media, data=None, path=str(path))


def _from_data_url(url: str) -> bytes:
    head, _, body = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("not in base64")
        return base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        raise InputError(f"{url:.60} cannot be decoded ({error}): data:image/png;base64,… is needed") from error


def _check_undamaged(data: bytes) -> None:
    """Raise Pillow's error for a truncated or changed file, and InputError for an image that cannot be shown."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        check_still(image)
        if image.format == "PNG":
            image.verify()  # checks the checksum of every chunk up to the last one, without decoding
        else:
            as_seen(image)  # for other formats verify() reads only the header


def video_media(item: Any, folder: Path) -> Media:
    """Return the video of one entry of the video column. The file must exist; it is not opened."""
    path, fps = item, 0.0
    if isinstance(item, Mapping):
        path, fps = _media_source(item), float(item.get("fps") or 0.0)
    if not isinstance(path, str):
        raise InputError(f"a video is {item!r:.80}; give a path or a dict with video or path")
    file = _file(path, folder)
    stat = file.stat()  # hashing gigabytes is too slow: path, size and time identify the content
    uid = hashlib.sha256(f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{fps}".encode()).hexdigest()[:32]
    return Media(kind="video", uid=uid, path=str(file), fps=fps)


def _file(path: str, folder: Path) -> Path:
    path = path.removeprefix("file://")
    if "://" in path or path.startswith("data:"):
        raise InputError(f"{path:.80} is a URL; fetch it, and give a path or the encoded bytes")
    file = folder / path
    try:
        exists = file.is_file()
    except OSError:  # the name is too long for the system
        exists = False
    if not exists:
        raise InputError(f"{file!s:.200} does not exist")
    return file
