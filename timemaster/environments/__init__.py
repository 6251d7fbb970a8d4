"""Environments answer the policy's turns: tools, code, further images. Each rollout has its own object.

    class Calculator:
        def step(self, turn: Turn) -> Reply: ...
        def close(self) -> None: ...

    Task(..., environment=EnvironmentSpec(make=lambda example: Calculator(), stop=("</code>",)))

Knows nothing of engines, tokens or rewards.
"""

from timemaster.environments.protocol import Environment, EnvironmentSpec
from timemaster.environments.record import environment_metrics

__all__ = ["Environment", "EnvironmentSpec", "environment_metrics"]
