"""Messages and pictures in OpenAI's form."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from timemaster.media.images import web_image
from timemaster.types import InputError, Media, Message


def chat_turn(message: Message) -> dict[str, Any]:
    """A message in OpenAI's form, including its pictures. Raises InputError for a video."""
    content = []
    for part in message.parts:
        if part.media is None:
            content.append({"type": "text", "text": part.text})
        elif part.media.kind == "image":
            content.append(image_part(encoded(part.media)))
        else:
            raise InputError(f"a row holds a {part.media.kind}; chat models are asked about images and text only")
    return {"role": message.role, "content": content}


def encoded(media: Media) -> bytes:
    """The encoded file of an image."""
    return media.data if media.data is not None else Path(media.path).read_bytes()


def image_part(data: bytes) -> dict[str, Any]:
    """An encoded picture as a content part of a message, in a format that vision models take."""
    kind, file = web_image(data)
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(file).decode()}"}}
