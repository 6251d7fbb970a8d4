"""The plots of rollouts, each once in the page as a thumbnail; when the page is full, links to the files."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from timemaster.media.images import open_image

MAX_WIDTH = 320  # pixels
MAX_HEIGHT = 640
MAX_BYTES = 15_000_000  # of all thumbnails as encoded in the page


def embed(names: Iterable[str], folder: Path, page: Path, notes: list[str]) -> dict[str, dict[str, str | int]]:
    """For a name: `src` (a data URL, or a link when the page is full), `width` and `height` of the thumbnail, `file`.

    The files are in `folder`; links are relative to `page`. Names without a readable file are left out.
    """
    images: dict[str, dict[str, str | int]] = {}
    used = linked = broken = 0
    base = quote(Path(os.path.relpath(folder.resolve(), page.resolve().parent)).as_posix())
    for name in dict.fromkeys(names):
        if not name or name != Path(name).name or not (folder / name).is_file():
            continue  # not a file of this folder: files outside of it are never read
        link = f"{base}/{quote(name)}"
        made = thumbnail(folder / name)
        if made is None:
            broken += 1
            continue
        encoded, width, height = made
        src = "data:image/webp;base64," + base64.b64encode(encoded).decode()
        if used + len(src) > MAX_BYTES:
            src, linked = link, linked + 1
        else:
            used += len(src)
        images[name] = {"src": src, "width": width, "height": height, "file": link}
    if linked:
        notes.append(f"{linked} plots are links to {folder}: {used / 1e6:.0f} MB of thumbnails are in the page")
    if broken:
        notes.append(f"{broken} plots could not be read")
    return images


def thumbnail(path: Path) -> tuple[bytes, int, int] | None:
    """(WebP, width, height) of a picture, at most MAX_WIDTH wide; None when it cannot be read."""
    from PIL import Image

    try:
        picture = open_image(path)
    except (OSError, ValueError, Image.DecompressionBombError):  # a damaged file, or no picture
        return None
    picture.thumbnail((MAX_WIDTH, MAX_HEIGHT), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return buffer.getvalue(), picture.width, picture.height
