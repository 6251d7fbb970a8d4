"""Names that settings choose from, for code in packages that import `config`.

These packages load the code of a name (`pkgutil.resolve_name`), so config does not import engines or sinks. Losses, KL
terms, advantages and schedules have their registries in `algo`, which config imports.
"""

from __future__ import annotations

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
