"""What a command prints, whatever the console's encoding. Nothing here imports anything of the project."""

from __future__ import annotations

import io
import sys


def print_any_letter() -> None:
    """Letters that the console's encoding lacks are printed as escapes (\\xfc). Else the first one ends the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # pythonw has none; a caller may have put in another
            stream.reconfigure(errors="backslashreplace")
