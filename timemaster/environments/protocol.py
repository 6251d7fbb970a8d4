"""The protocol of an environment, and how a task asks for one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from timemaster.types import Example, InputError, Reply, Turn


class Environment(Protocol):
    """One object per rollout. Its steps run while sequences are decoded: in a thread, or, if async, on an event loop.

    An exception in `step`, or a step that exceeds the time limit, is a failure of the infrastructure: the rollout
    ends and is not scored. Mistakes of the model belong in `Reply.error`.
    """

    def step(self, turn: Turn) -> Reply | Awaitable[Reply]:
        """Answer the turn that was just sampled. Called after every sampled turn that is not cut off."""

    def close(self) -> Awaitable[None] | None:
        """Free the rollout's resources. Called once, however the rollout ends, perhaps while a step still runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec:
    """The environment of a task's rollouts. Example: EnvironmentSpec(make=Calculator, stop=("</code>",))

    Raises InputError when a number is out of range or a stop string is empty.
    """

    # A new environment for each rollout, made after its first sampled turn; must not change the example. May be async.
    make: Callable[[Example], Environment | Awaitable[Environment]]
    stop: tuple[str, ...] = ()  # stop strings of sampled turns; a turn that ends with one is answered by `step`
    max_turns: int = 8  # sampled turns of a rollout
    max_segment_tokens: int = 0  # in one sampled turn; 0: all that data.max_response_length leaves
    max_images: int = 0  # images that replies may add to one rollout
    timeout: float = 60.0  # seconds for each call of `make`, `step` and `close`; 0: no limit

    def __post_init__(self) -> None:
        for name in ("max_segment_tokens", "max_images", "timeout"):
            if getattr(self, name) < 0:
                raise InputError(f"EnvironmentSpec: {name} is {getattr(self, name)}; give 0 or more.")
        if self.max_turns < 1:
            raise InputError(f"EnvironmentSpec: max_turns is {self.max_turns}; give 1 or more.")
        if isinstance(self.stop, str) or "" in self.stop:
            raise InputError(f"EnvironmentSpec: stop is {self.stop!r}; give a tuple of strings, none of them empty.")
