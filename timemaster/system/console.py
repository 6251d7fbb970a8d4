"""What a command prints, whatever the console's encoding. Nothing here imports anything of the project."""

from __future__ import annotations

import io
import logging
import sys

from tqdm import tqdm


def print_any_letter() -> None:
    """Letters that the console's encoding lacks are printed as escapes (\\xfc). Else the first one ends the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # pythonw has none; a caller may have put in another
            stream.reconfigure(errors="backslashreplace")


class ConsoleHandler(logging.Handler):
    """Log lines that do not tear the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


def setup_logging() -> None:
    """Our lines bare, warnings marked; other libraries only from errors on."""
    handler = ConsoleHandler()
    handler.setFormatter(_Format())
    logging.basicConfig(level=logging.ERROR, handlers=[handler], force=True)
    for name in ("timemaster", "recipes", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)


class _Format(logging.Formatter):
    """Minutes and seconds since the program started, then the message; warnings and errors are marked."""

    def format(self, record: logging.LogRecord) -> str:
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        if not record.getMessage().strip() or record.getMessage().startswith((" ", "\n")):
            return record.getMessage()  # a line of a table
        minutes, seconds = divmod(int(record.relativeCreated / 1000), 60)
        return f"{minutes:02d}:{seconds:02d} {mark}{super().format(record)}"
