"""The protocol of an environment, and how a task asks for one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from timemaster.types import Example, InputError, Reply, Turn


class Environment(Protocol):
    """One object per rollout. Its steps run beside decoding: in a thread, or on an event loop when they are async.

    An exception of `step`, and a step that takes longer than the limit, is a failure of the infrastructure: the rollout
    ends and is not scored. Mistakes of the model belong in `Reply.error`.
    """

    def step(self, turn: Turn) -> Reply | Awaitable[Reply]:
        """Answer the turn that was just sampled. Called after every sampled turn that is not cut off."""

    def close(self) -> Awaitable[None] | None:
        """Free what the rollout held. Called once, however the rollout ends; may come while a step still runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """What environment a task's rollouts have. Example: EnvironmentSpec(make=Calculator, stop=("</code>",))

    Raises InputError when a number is out of range or a stop string is empty.
    """

    # A new environment for each rollout, made after its first sampled turn; must not change the example. May be async.
    make: Callable[[Example], Environment | Awaitable[Environment]]
    stop: tuple[str, ...] = ()  # stop strings of sampled turns; a turn that ends with one is answered by `step`
    max_turns: int = 8  # sampled turns of a rollout
    max_segment_tokens: int = 0  # of one sampled turn; 0: what data.max_response_length leaves
    max_images: int = 0  # that replies may add to one rollout
    timeout: float = 60.0  # seconds that making, a step or closing may take; 0: no limit

    def __post_init__(self) -> None:
        for name in ("max_segment_tokens", "max_images", "timeout"):
            if getattr(self, name) < 0:
                raise InputError(f"EnvironmentSpec: {name} is {getattr(self, name)}; give 0 or more.")
        if self.max_turns < 1:
            raise InputError(f"EnvironmentSpec: max_turns is {self.max_turns}; give 1 or more.")
        if isinstance(self.stop, str) or "" in self.stop:
            raise InputError(f"EnvironmentSpec: stop is {self.stop!r}; give a tuple of strings, none of them empty.")
