"""Names that settings choose from, for code in packages that import `config`.

These packages load the code of a name, so config does not import engines or sinks. Losses, KL terms, advantages and
schedules have their registries in `algo`, which config imports.
"""

from __future__ import annotations

import importlib
from typing import Any

ENGINES = {  # rollout.name -> import path of an Engine, see timemaster/rollout/engines.py
    "vllm": "timemaster.rollout.vllm:VllmEngine",
    "hf": "timemaster.rollout.hf:HfEngine",
}
SINKS = {  # trainer.logger -> import path of a sink, see timemaster/run/sinks.py
    "tensorboard": "timemaster.run.sinks:TensorBoard",
    "wandb": "timemaster.run.sinks:Wandb",
}
ON_BAD_ROW = ("raise", "skip")
ON_ERROR = ("raise", "zero")


def load(path: str) -> Any:
    """The object that an import path of a registry names. Example: load("timemaster.run.sinks:TensorBoard")"""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
