"""The numeric modality: the same rows with the series written as numbers in the place of the plot.

    dim_0: 0.1,-0.3,1.2
    dim_1: 0.0,0.0,0.4

Knows nothing about models; how many tokens the numbers cost is the tokenizer's business (one per digit for Qwen2.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from timemaster.config import NumericConfig
from timemaster.types import Example, InputError, Message, Part

DECIMALS = 2  # where neither data.numeric.decimals nor a task says


def write_series(values: Sequence[Sequence[float]], names: Sequence[str], style: NumericConfig) -> str:
    """A series [channels][length] as text. `names` may be empty: channels are then called dim_0, dim_1, …"""
    decimals = DECIMALS if style.decimals is None else style.decimals
    lines = [style.separator.join(_number(value, decimals) for value in channel) for channel in values]
    if len(lines) == 1 and not names:
        return lines[0]
    names = names or [f"dim_{i}" for i in range(len(lines))]
    if len(names) != len(lines):
        raise InputError(f"the series has {len(lines)} channels, its task names {len(names)}: {', '.join(names)}")
    named = [style.channel.format(name=name, values=line) for name, line in zip(names, lines, strict=True)]
    return style.channel_separator.join(named)


def _number(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text  # no -0.0


def as_numbers(example: Example, names: Sequence[str], style: NumericConfig) -> Example:
    """`example` with its one image replaced by `extra["series"]` in numbers. InputError when it has not one of each."""
    values = example.extra.get("series")
    images = [part for message in example.messages for part in message.parts if part.media is not None]
    if not values:
        raise InputError("data.modality=numeric needs the raw series (the column `data`), and the row has none")
    if len(images) != 1:
        raise InputError(
            f"data.modality=numeric writes one series in the place of one image; the row has {len(images)}"
        )
    text = Part("text", text=write_series(values, names, style))
    messages = [Message(m.role, [text if part.media else part for part in m.parts]) for m in example.messages]
    return replace(example, messages=messages)
