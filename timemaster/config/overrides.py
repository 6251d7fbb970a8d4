"""The settings that this process was given on its command line."""

from __future__ import annotations

from collections.abc import Sequence

_given: list[str] = []


def set_overrides(arguments: Sequence[str]) -> None:
    """Keep the settings as they were typed: ["data.seed=2", …]."""
    _given[:] = arguments


def overrides() -> list[str]:
    """The settings of the command line as they were typed; [] if this process was not started by a command line."""
    return list(_given)
