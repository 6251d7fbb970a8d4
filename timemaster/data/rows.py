"""One row of a parquet file -> one `Example`, in the dialects that are about: verl, EasyR1, TimeMaster, `datasets`.

| what | where it may stand |
|---|---|
| prompt | `prompt`, `messages`, `problem`, `question`: a string, or a list of {role, content}, also JSON-encoded |
| content | a string with `<image>` and `<video>` markers, or a list of {"type": "image"}, {"type": "text", "text": …} |
| answer | `reward_model.ground_truth`, `answer`, `ground_truth` |
| images | `images` or `image`: dicts {bytes, path} or {image}, encoded bytes, paths, data URLs; one or a list |
| videos | `videos` or `video`: paths, or dicts with `video` or `path`, and `fps` |

Of several columns for one thing, the first that is not empty counts. A part may hold its image or video itself, as
{"type": "image_url", "image_url": {"url": …}} does (OpenAI's form) or {"type": "image", "image": …}; then the columns
have none. An answer is text for people, labels and metrics; a reward in verl's form gets it with the type it has in the
file (`Example.truth`), where text stays text, JSON or not.

Lists may be numpy arrays (as pandas gives them). Relative paths start at the parquet file's folder; nothing is fetched
from a URL. Every image is checked for damage and for a size that the model takes.
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
# Types of a content part: OpenAI has two interfaces, in which they are called otherwise.
KINDS = {"text": "text", "input_text": "text", "image": "image", "image_url": "image", "input_image": "image"}
KINDS |= {"video": "video", "video_url": "video"}
OWN = ("bytes", "path", "url", "image", "image_url", "video", "video_url")  # where a dict may name its image or video
MARKER = re.compile(r"<(image|video)>")


def example_from_row(row: Mapping[str, Any], example_id: str, folder: Path, default_source: str = "") -> Example:
    """The example of one row; `extra` is the row's extra_info. Raises InputError with the reason when it has none."""
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
    """A field with Python's own types; pandas' NaN for "nothing here" as None."""
    value = _python(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _python(value: Any) -> Any:
    """numpy arrays and scalars as lists and numbers, inside of lists and dicts too."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _python(item) for name, item in value.items()}
    return [_python(item) for item in value] if isinstance(value, (list, tuple)) else value


def _decoded(value: Any) -> Any:
    """A JSON-encoded list or object decoded; everything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing: no value, blank text, no element. False and 0 are something."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {}, b"")


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of the columns that is not empty, JSON-encoded or not; without one, the first that is there."""
    values = [value for name in names if (value := _plain(row.get(name))) is not None]
    return next((value for value in values if not is_empty(_decoded(value))), values[0] if values else None)


def _as_list(value: Any) -> list[Any]:
    value = _decoded(value)
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _truth(row: Mapping[str, Any]) -> Any:
    """The ground truth as the file has it. InputError without one."""
    reward_model = _decoded(_plain(row.get("reward_model")))
    found = [_plain(reward_model.get("ground_truth"))] if isinstance(reward_model, Mapping) else []
    found += [_plain(row.get(name)) for name in ANSWERS[1:]]
    truth = next((value for value in found if not is_empty(value)), None)
    if truth is None:
        truth = next((value for value in found if value in ([], {})), None)  # "none of them" may be the answer
    if truth is None:
        raise InputError("no answer (reward_model.ground_truth or answer is empty)")
    return truth


def read_messages(prompt: Any, images: Sequence[Any], videos: Sequence[Any], folder: Path) -> list[Message]:
    """The messages of a prompt, with the images and videos that stand beside it at its markers.

    Raises InputError with the reason when it cannot be used.
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
        raise InputError(f"the prompt is no text and no list of messages with a role of {', '.join(ROLES)}")
    messages = [(turn["role"], _parts(turn.get("content"), turn["role"], folder)) for turn in turns]
    parts = [part for _, some in messages for part in some]
    if not any(part.text.strip() for part in parts):
        raise InputError("empty prompt")
    if messages[0][0] == "assistant":
        raise InputError("the prompt begins with an assistant turn; the first turn must be system or user")
    if messages[-1][0] == "system":
        raise InputError("the prompt ends with a system turn; the last turn must be user, tool or assistant")
    for kind, items in media.items():
        if items and any(part.kind == kind and part.media for part in parts):
            raise InputError(f"{kind}s stand both beside and inside the messages; one place is needed")
        num_markers = sum(part.kind == kind and part.media is None for part in parts)
        if num_markers != len(items):
            raise InputError(
                f"{num_markers} <{kind}> markers in the prompt, {len(items)} {kind}s in the row; they must be as many"
            )
    rest = {kind: iter(items) for kind, items in media.items()}
    return [
        Message(role, [p if p.kind == "text" or p.media else Part(p.kind, media=next(rest[p.kind])) for p in some])
        for role, some in messages
    ]


def _parts(content: Any, role: str, folder: Path) -> list[Part]:
    """The parts of one message; where a marker stands, without media. What an assistant writes is text in any case."""
    if content is None:
        return []
    if isinstance(content, str):
        if role == "assistant":
            return [Part("text", text=content)]
        # With one group, split gives text, kind, text, kind, …, text.
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
        if _own(part) is None:
            parts.append(Part(kind))
        else:
            parts.append(Part(kind, media=(image_media if kind == "image" else video_media)(part, folder)))
    return parts


def _own(item: Mapping[str, Any]) -> Any:
    """The image or video that a dict names: encoded bytes, a path or a URL. None where it names none."""
    named = (_own(value) if isinstance(value, Mapping) else value for value in map(item.get, OWN))
    return next((value for value in named if not is_empty(value)), None)


def image_media(item: Any, folder: Path) -> Media:
    """The image that one entry of the column, or a content part, stands for.

    Raises InputError when it is missing or damaged, too long, or nothing that can be shown.
    """
    data, path = _own(item) if isinstance(item, Mapping) else item, None
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
    except Exception as error:  # Pillow raises many kinds for a damaged file
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
    """Raises what Pillow raises for a file that is cut off or changed, and InputError for what cannot be shown."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        check_still(image)
        if image.format == "PNG":
            image.verify()  # every chunk has a checksum, and the last one is demanded: no need to decode
        else:
            as_seen(image)  # of other formats, verify() reads the header at best


def video_media(item: Any, folder: Path) -> Media:
    """The video that one entry of the column stands for; the file must be there but is not opened."""
    path, fps = item, 0.0
    if isinstance(item, Mapping):
        path, fps = _own(item), float(item.get("fps") or 0.0)
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
