"""Comparing labels."""

from __future__ import annotations

import unicodedata


def label_key(text: str) -> str:
    """A key that is equal for equal labels: case, outer spaces and the Unicode form make no difference.

    Source: canonical caseless matching, The Unicode Standard, section 3.13, D145.
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", text.strip()).casefold())
