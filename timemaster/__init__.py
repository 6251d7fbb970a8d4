"""Reinforcement-learning post-training of Qwen2.5-VL on temporal data.

What a recipe, a reward or an environment needs is here:

    from timemaster import Example, PlotStyle, RewardPart, Rollout, Series, SeriesClassification

A name is imported from its module when it is first used. `import timemaster` imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; the same names as in PUBLIC
    from timemaster.environments import Environment, EnvironmentSpec
    from timemaster.rewards import RewardPart, accuracy, extension, format_strict, format_tags, predict_label
    from timemaster.series.plot import PlotStyle
    from timemaster.series.splits import Series
    from timemaster.tasks import Answer, Evaluation, Number, SeriesClassification, Task, load_task
    from timemaster.types import Example, Group, InputError, Media, Message, Part, Reply, Rollout, Score, Turn

__version__ = "0.2.0"

PUBLIC = {  # module: the names that it offers here
    "timemaster.environments": ("Environment", "EnvironmentSpec"),
    "timemaster.rewards": ("RewardPart", "accuracy", "extension", "format_strict", "format_tags", "predict_label"),
    "timemaster.series.plot": ("PlotStyle",),
    "timemaster.series.splits": ("Series",),
    "timemaster.tasks": ("Answer", "Evaluation", "Number", "SeriesClassification", "Task", "load_task"),
    "timemaster.types": (
        "Example", "Group", "InputError", "Media", "Message", "Part", "Reply", "Rollout", "Score", "Turn",
    ),
}  # fmt: skip

__all__ = ["__version__", *(name for names in PUBLIC.values() for name in names)]

if not TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> Any:
        for module, names in PUBLIC.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
