"""The settings as `--help` prints them."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import fields
from typing import Any

from timemaster.config.keys import Setting, all_settings

COLUMN = 42  # where meanings begin


def help_text(cfg: Any, width: int) -> str:
    """Every setting of a Config with its default, its meaning and, in brackets, its rule, in lines of `width`."""
    out = []
    for section in fields(cfg):
        node = getattr(cfg, section.name)
        out.append(f"\n{section.name}: {inspect.cleandoc(type(node).__doc__ or '').splitlines()[0]}\n")
        out += [_lines(item, width) for item in all_settings(node, f"{section.name}.")]
    return "".join(out)


def _lines(item: Setting, width: int) -> str:
    about = item.meaning + (f" [{item.rule.describe()}]" if item.rule else "")
    lines = textwrap.wrap(about, max(width - COLUMN, 30), break_long_words=False, break_on_hyphens=False)
    key = f"  {item.key}={typed(item.value)}"
    first = f"{key}\n" if len(key) >= COLUMN else key.ljust(COLUMN) + lines.pop(0) + "\n"
    return first + "".join(f"{' ' * COLUMN}{line}\n" for line in lines)


def typed(value: object) -> str:
    """A value as one types it on the command line. Example: typed(["a", "b"]) == "[a,b]", typed(True) == "true" """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return str(value[0]) if len(value) == 1 else f"[{','.join(map(str, value))}]"
    return str(value).replace("\n", r"$'\n'")  # as a shell wants it
