"""Finds fonts for the letters of a text: matplotlib's own font has no Chinese, Japanese, Korean or Indian letters."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

log = logging.getLogger(__name__)


def fonts_for(texts: Iterable[str]) -> list[Any]:
    """matplotlib's font entries (`name`, `fname`, `index`) that together have all letters of `texts`.

    The first is matplotlib's own; installed fonts are opened only if it lacks a letter. Warns of letters that no font
    has.
    """
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    default_file = font_manager.findfont("DejaVu Sans")
    installed = font_manager.fontManager.ttflist
    upright = [
        font for font in installed if font.style == "normal" and font.weight == 400 and "Last Resort" not in font.name
    ]
    upright.sort(key=lambda font: (font.fname != default_file, font.fname))
    missing = {letter for text in texts for letter in text if letter.isprintable() and not letter.isspace()}
    chosen: list[Any] = []
    for font in upright:
        covered = missing & {chr(code) for code in FT2Font(font.fname, face_index=font.index).get_charmap()}
        if covered or not chosen:
            chosen.append(font)
            missing -= covered
        if not missing:
            return chosen
    some = "".join(sorted(missing)[:20])
    log.warning("no installed font has %s: a box is drawn instead. Debian and Ubuntu: apt-get install fonts-noto", some)
    return chosen
