"""Environments: what answers the policy's turns midway (tools, code, further images), one object a rollout.

    class Calculator:
        def step(self, turn: Turn) -> Reply: ...
        def close(self) -> None: ...

    Task(..., environment=EnvironmentSpec(make=lambda example: Calculator(), stop=("</code>",)))

Knows nothing of engines, tokens or rewards.
"""

from timemaster.environments.protocol import Environment, EnvironmentSpec

__all__ = ["Environment", "EnvironmentSpec"]
