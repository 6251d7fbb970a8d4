"""Output of the commands, with any console encoding."""

from __future__ import annotations

import io
import logging
import sys

from tqdm import tqdm


def print_any_letter() -> None:
    """Print letters that the console's encoding lacks as escapes (\\xfc) instead of ending with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not with pythonw, and not if a caller replaced the stream
            stream.reconfigure(errors="backslashreplace")


class ConsoleHandler(logging.Handler):
    """Writes log lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


def setup_logging() -> None:
    """Show our log lines from INFO on, and other libraries' from ERROR on."""
    handler = ConsoleHandler()
    handler.setFormatter(_Format())
    logging.basicConfig(level=logging.ERROR, handlers=[handler], force=True)
    for name in ("timemaster", "recipes", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)


class _Format(logging.Formatter):
    """Minutes and seconds since the program started, the level of warnings and errors, then the message."""

    def format(self, record: logging.LogRecord) -> str:
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        if not record.getMessage().strip() or record.getMessage().startswith((" ", "\n")):
            return record.getMessage()  # a line of a table
        minutes, seconds = divmod(int(record.relativeCreated / 1000), 60)
        return f"{minutes:02d}:{seconds:02d} {mark}{super().format(record)}"
