"""The order of rows: seeded, resumable, without gaps.

Step k takes rows [k * batch, (k + 1) * batch) of one endless sequence of shuffled epochs, so the position is a number.
A batch that runs over the end of an epoch never holds a row twice: rows just used go to the end of the next epoch.
"""

from __future__ import annotations

import random

from timemaster.types import InputError


class Stream:
    """Indices of rows, a batch at a time."""

    def __init__(self, num_rows: int, batch_size: int, seed: int, shuffle: bool) -> None:
        if num_rows < batch_size:
            raise InputError(
                f"data.train_batch_size={batch_size}, but only {num_rows} usable rows: lower it or add rows."
            )
        self.num_rows, self.batch_size, self.seed, self.shuffle = num_rows, batch_size, seed, shuffle
        self._epoch = 0
        self._order = self._shuffled(0)

    def batch(self, step: int) -> list[int]:
        """The rows of step 0, 1, 2, … in any order of calls."""
        first = step * self.batch_size
        return [self._at(position) for position in range(first, first + self.batch_size)]

    def epoch(self, step: int) -> int:
        """The epoch in which a step begins."""
        return step * self.batch_size // self.num_rows

    def num_steps(self, epochs: int) -> int:
        """Steps that see every row `epochs` times; the last one may run over."""
        return -(-epochs * self.num_rows // self.batch_size)

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.num_rows)
        if epoch < self._epoch:
            self._epoch, self._order = 0, self._shuffled(0)
        while self._epoch < epoch:
            self._epoch += 1
            used = self._epoch * self.num_rows % self.batch_size
            just_used = self._order[len(self._order) - used :] if used else []
            late = set(just_used)
            self._order = [row for row in self._shuffled(self._epoch) if row not in late] + just_used
        return self._order[place]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(self.num_rows))
        if self.shuffle:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order
