"""The order of rows: seeded, resumable, without gaps; of one set, or of several mixed by weight.

Step k takes rows [k * batch, (k + 1) * batch) of one endless sequence of shuffled epochs, so the position is a number.
A batch that runs over the end of an epoch never holds a row twice: rows just used go to the end of the next epoch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

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


class Mixture:
    """Indices of rows of several data sources, a batch at a time, each source with the same share of every batch."""

    def __init__(self, stream: Stream, sources: Sequence[str], weights: Mapping[str, float]) -> None:
        """`sources` is the data_source of each row of `stream`; `weights` are relative and sum to anything positive.

        Shares are rounded to whole rows of a batch (largest remainder). Raises InputError when a source has rows and no
        weight, or a weight and no rows, and when a share rounds to no row at all or to more rows than the source has.
        """
        self.num_rows, self.batch_size, self._whole = stream.num_rows, stream.batch_size, stream
        found = sorted(set(sources))
        if set(weights) != set(found) or min(weights.values()) <= 0:
            raise InputError(
                f"data.mixture gives weights to {dict(weights)}; the rows are of {found}. Give each of these a weight "
                "greater than 0, and no other."
            )
        exact = {name: weights[name] / sum(weights.values()) * self.batch_size for name in found}
        self.counts = {name: int(share) for name, share in exact.items()}
        by_remainder = sorted(found, key=lambda name: (self.counts[name] - exact[name], name))
        for name in by_remainder[: self.batch_size - sum(self.counts.values())]:
            self.counts[name] += 1
        if not all(self.counts.values()):
            raise InputError(
                f"data.mixture: of data.train_batch_size={self.batch_size} rows, the sources get {self.counts}; each "
                "needs one. Raise the batch size or the smallest weight."
            )
        self._rows = {name: [i for i, source in enumerate(sources) if source == name] for name in found}
        for name, rows in self._rows.items():
            if len(rows) < self.counts[name]:
                raise InputError(
                    f"data.mixture: {name!r} gets {self.counts[name]} of the data.train_batch_size={self.batch_size} "
                    f"rows, but has only {len(rows)} usable ones: lower its weight or the batch size, or add rows."
                )
        self._parts = {
            name: Stream(len(self._rows[name]), self.counts[name], stream.seed, stream.shuffle) for name in found
        }

    def batch(self, step: int) -> list[int]:
        """The rows of step 0, 1, 2, … in any order of calls, sources shuffled together."""
        rows = [self._rows[name][i] for name, part in self._parts.items() for i in part.batch(step)]
        random.Random(f"{self._whole.seed}/mixture/{step}").shuffle(rows)
        return rows

    def num_steps(self, epochs: int) -> int:
        """Steps that take as many rows as `epochs` passes over all of them."""
        return self._whole.num_steps(epochs)


Order = Stream | Mixture


def make_stream(
    sources: Sequence[str], batch_size: int, seed: int, shuffle: bool, weights: Mapping[str, float]
) -> Order:
    """The order of rows whose data sources are `sources`; mixed by `weights` where there are any."""
    stream = Stream(len(sources), batch_size, seed, shuffle)
    return Mixture(stream, sources, weights) if weights else stream
