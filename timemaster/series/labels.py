"""Labels as people write them."""

from __future__ import annotations

import unicodedata


def label_key(text: str) -> str:
    """What two writings of one label have in common: case, outer spaces and Unicode's ways to write a letter are gone.

    Source: canonical caseless matching, The Unicode Standard, section 3.13, D145.
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", text.strip()).casefold())
