"""The protocol of an environment, and how a task asks for one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from timemaster.types import Example, InputError, Reply, Turn


class Environment(Protocol):
    """One object a rollout. Its steps run beside decoding, in a thread, or on an event loop when they are async.

    What `step` raises, and a step that takes longer than the limit, is a failure of the infrastructure. Errors that
    the model made belong into `Reply.error`.
    """

    def step(self, turn: Turn) -> Reply | Awaitable[Reply]:
        """Answer the turn that was just sampled."""

    def close(self) -> None:
        """Free what the rollout held. Called once, however the rollout ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """How a task's rollouts meet their environment. Example: EnvironmentSpec(make=Calculator, stop=("</code>",))"""

    make: Callable[[Example], Environment]  # a new one for each rollout
    stop: tuple[str, ...] = ()  # stop strings of sampled turns; their end is a turn for the environment
    max_turns: int = 8  # sampled turns of a rollout
    max_segment_tokens: int = 0  # of one sampled turn; 0: what data.max_response_length leaves
    max_images: int = 0  # that replies may add to one rollout
    timeout: float = 60.0  # seconds that a step may take; 0 is no limit

    def __post_init__(self) -> None:
        for name in ("max_segment_tokens", "max_images", "timeout"):
            if getattr(self, name) < 0:
                raise InputError(f"EnvironmentSpec: {name} is {getattr(self, name)}; give 0 or more.")
        if self.max_turns < 1:
            raise InputError(f"EnvironmentSpec: max_turns is {self.max_turns}; give 1 or more.")
        if "" in self.stop:
            raise InputError("EnvironmentSpec: a stop string is empty.")
