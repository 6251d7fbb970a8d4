"""What the driver gives a trainer rank in addition to the settings. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec:
    """How a trainer rank starts. Example: TrainerSpec(num_updates=200, with_reference=True)"""

    num_updates: int  # optimizer updates of the whole run, for the learning rate's schedule
    with_reference: bool  # whether a reference model is loaded, for the KL term
    checkpoint: str = ""  # folder to resume from; "" for a new run
    updates_done: int = 0  # optimizer updates up to that checkpoint
