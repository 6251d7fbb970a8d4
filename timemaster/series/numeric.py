"""The numeric modality: the series is written as numbers instead of drawn as a plot.

    dim_0: 0.1,-0.3,1.2
    dim_1: 0.0,0.0,0.4

Knows nothing about models. How many tokens the numbers cost depends on the tokenizer (Qwen2.5: one for each digit).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from timemaster.config import NumericConfig
from timemaster.types import Example, InputError, Message, Part

DECIMALS = 2  # if neither data.numeric.decimals nor the task sets them
LARGEST = 2.0**53  # from here on, a float does not represent every whole number


def series_of(example: Example) -> list[list[float]]:
    """The raw series of a row that was read with its column `data`, as [channels][length].

    The column may also be one list of numbers, for a single channel. Raises InputError when there is no series, when
    channels are empty or differ in length, and for a reading that is missing or not a finite number.
    """
    column = example.extra.get("series")
    if column is None:
        raise InputError("the raw series (the column `data`) is needed, and the row has none: prepare the data again")
    if not isinstance(column, (list, tuple)):
        raise InputError(f"the raw series is {column!r:.60}; expected a list of numbers, or one such list per channel")
    channels = column if any(isinstance(item, (list, tuple)) for item in column) else [column]
    values = [_readings(channel, f"channel {number}") for number, channel in enumerate(channels)]
    lengths = [len(channel) for channel in values]
    if len(set(lengths)) > 1:
        raise InputError(f"the channels of the raw series have {lengths} readings; all must have the same number")
    return values


def _readings(channel: Any, where: str) -> list[float]:
    if not isinstance(channel, (list, tuple)) or not channel:
        raise InputError(f"{where} of the raw series is {channel!r:.60}; expected a list of numbers that is not empty")
    for number, value in enumerate(channel):
        is_number = isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            what = "missing" if value is None else f"{value!r:.60}"
            raise InputError(f"{where} of the raw series, reading {number}, is {what}; expected a finite number")
    return [float(value) for value in channel]


def write_series(values: Sequence[Sequence[float]], names: Sequence[str], style: NumericConfig) -> str:
    """A series [channels][length] as text. If `names` is empty, several channels are called dim_0, dim_1, …"""
    decimals = DECIMALS if style.decimals is None else style.decimals
    lines = [style.separator.join(_number(value, decimals) for value in channel) for channel in values]
    if len(lines) == 1 and not names:
        return lines[0]
    names = names or [f"dim_{i}" for i in range(len(lines))]
    if len(names) != len(lines):
        raise InputError(
            f"the series has {len(lines)} channels, but its task has names for {len(names)}: {', '.join(names)}"
        )
    named = [style.channel.format(name=name, values=line) for name, line in zip(names, lines, strict=True)]
    return style.channel_separator.join(named)


def _number(value: float, decimals: int) -> str:
    if not abs(value) < LARGEST:  # true for nan, too
        raise InputError(f"a reading is {value}, which cannot be written with {decimals} decimals: scale the series")
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text  # no -0.0


def as_numbers(example: Example, names: Sequence[str], style: NumericConfig) -> Example:
    """`example` with its image replaced by the numbers of `extra["series"]`.

    In the result, `extra["series"]` is [channels][length], for rewards. Raises InputError unless the row has one
    image and a series.
    """
    values = series_of(example)
    images = [part for message in example.messages for part in message.parts if part.media is not None]
    if len(images) != 1:
        raise InputError(
            f"data.modality=numeric replaces exactly one image by a series; the row has {len(images)} images"
        )
    text = Part("text", text=write_series(values, names, style))
    messages = [Message(m.role, [text if part.media else part for part in m.parts]) for m in example.messages]
    return replace(example, messages=messages, extra={**example.extra, "series": values})
