"""Names that settings choose from, where the code behind a name stands in a room above `config`.

A room reads its own table: config does not import engines or sinks. Losses, KL terms, advantages and schedules have
their registries in `algo`, which stands below.
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
    """What an import path of a registry names. Example: load("timemaster.run.sinks:TensorBoard")"""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
