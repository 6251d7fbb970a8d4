"""The order of training rows: seeded and resumable, for one data source or for several mixed by weight.

Step k takes rows [k * batch, (k + 1) * batch) of an endless sequence of shuffled epochs, so the step number is all that
a checkpoint needs. A batch that crosses the end of an epoch contains no row twice: the rows of its first part move to
the end of the next epoch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from timemaster.types import InputError


class Stream:
    """Row indices of one data source, batch by batch."""

    def __init__(self, num_rows: int, batch_size: int, seed: int, shuffle: bool) -> None:
        if num_rows < batch_size:
            raise InputError(
                f"data.train_batch_size={batch_size}, but only {num_rows} usable rows: lower it or add rows."
            )
        self.num_rows, self.batch_size, self.seed, self.shuffle = num_rows, batch_size, seed, shuffle
        self._epoch = 0
        self._order = self._shuffled(0)

    def batch(self, step: int) -> list[int]:
        """Return the row indices of a step, counted from 0. Steps may be asked for in any order."""
        first = step * self.batch_size
        return [self._at(position) for position in range(first, first + self.batch_size)]

    def epoch(self, step: int) -> int:
        """Return the epoch in which a step begins."""
        return step * self.batch_size // self.num_rows

    def num_steps(self, epochs: int) -> int:
        """Return how many steps use every row `epochs` times; the last step may reach into the next epoch."""
        return -(-epochs * self.num_rows // self.batch_size)

    def _at(self, position: int) -> int:
        epoch, place = divmod(position, self.num_rows)
        if epoch < self._epoch:
            self._epoch, self._order = 0, self._shuffled(0)
        while self._epoch < epoch:
            self._epoch += 1
            # The batch that crosses the end of the previous epoch has this many rows of it.
            num_used = self._epoch * self.num_rows % self.batch_size
            used = self._order[len(self._order) - num_used :] if num_used else []
            used_set = set(used)
            self._order = [row for row in self._shuffled(self._epoch) if row not in used_set] + used
        return self._order[place]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(self.num_rows))
        if self.shuffle:
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order


class Mixture:
    """Row indices of several data sources, batch by batch; a source has the same share of every batch."""

    def __init__(self, stream: Stream, sources: Sequence[str], weights: Mapping[str, float]) -> None:
        """`sources` holds the data_source of each row of `stream`; `weights` are relative and need not sum to 1.

        Shares are rounded to whole rows by the largest-remainder method. Raises InputError if a source has rows but no
        weight or a weight but no rows, and if a share is rounded to 0 rows or to more rows than the source has.
        """
        self.num_rows, self.batch_size, self._stream = stream.num_rows, stream.batch_size, stream
        names = sorted(set(sources))
        if set(weights) != set(names) or min(weights.values()) <= 0:
            raise InputError(
                f"data.mixture gives weights to {dict(weights)}; the rows are of {names}. Give each of these a weight "
                "greater than 0, and no other."
            )
        exact = {name: weights[name] / sum(weights.values()) * self.batch_size for name in names}
        self.counts = {name: int(share) for name, share in exact.items()}
        by_remainder = sorted(names, key=lambda name: (self.counts[name] - exact[name], name))
        for name in by_remainder[: self.batch_size - sum(self.counts.values())]:
            self.counts[name] += 1
        if not all(self.counts.values()):
            raise InputError(
                f"data.mixture: of data.train_batch_size={self.batch_size} rows, the sources get {self.counts}; each "
                "needs one. Raise the batch size or the smallest weight."
            )
        self._rows = {name: [i for i, source in enumerate(sources) if source == name] for name in names}
        for name, rows in self._rows.items():
            if len(rows) < self.counts[name]:
                raise InputError(
                    f"data.mixture: {name!r} gets {self.counts[name]} of the data.train_batch_size={self.batch_size} "
                    f"rows, but has only {len(rows)} usable ones: lower its weight or the batch size, or add rows."
                )
        self._parts = {
            name: Stream(len(self._rows[name]), self.counts[name], stream.seed, stream.shuffle) for name in names
        }

    def batch(self, step: int) -> list[int]:
        """Return the row indices of a step, counted from 0, with the sources shuffled together."""
        rows = [self._rows[name][i] for name, part in self._parts.items() for i in part.batch(step)]
        random.Random(f"{self._stream.seed}/mixture/{step}").shuffle(rows)
        return rows

    def num_steps(self, epochs: int) -> int:
        """Return how many steps take as many rows as `epochs` passes over all sources."""
        return self._stream.num_steps(epochs)


Order = Stream | Mixture


def make_stream(
    sources: Sequence[str], batch_size: int, seed: int, shuffle: bool, weights: Mapping[str, float]
) -> Order:
    """Return the order of the rows whose data sources are `sources`; a Mixture if there are `weights`."""
    stream = Stream(len(sources), batch_size, seed, shuffle)
    return Mixture(stream, sources, weights) if weights else stream
