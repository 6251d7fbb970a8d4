"""Files that are written completely or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new path in the folder of `path` to write to. When the block ends without an error, it replaces `path`.

    with replacing(folder / "metrics.jsonl") as temporary:
        temporary.write_text(text, encoding="utf-8")
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
