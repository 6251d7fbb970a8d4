"""The replies of chat models and what they cost, in one SQLite file. Processes share it; resumed runs reuse it."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timemaster.types import InputError

SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (account TEXT PRIMARY KEY, calls INTEGER NOT NULL, cost REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The limits of one account in a cache file; 0 means no limit.

    The retries of calls in flight may exceed `max_calls`, and their cost `max_cost`. The cost of failed calls is
    unknown and not counted. Raises InputError for a cost limit without prices, which would limit nothing.
    """

    max_calls: int = 0  # requests, including retries
    max_cost: float = 0.0  # in the currency of the prices
    price_in: float = 0.0  # price of a million tokens sent
    price_out: float = 0.0  # price of a million tokens received

    def __post_init__(self) -> None:
        if self.max_cost and not (self.price_in or self.price_out):
            raise InputError(f"max_cost={self.max_cost:g} limits nothing without price_in and price_out: set them too.")


class Store:
    """Replies by request, and what each account has spent, in one SQLite file.

    Threads and processes of one machine can use it at the same time. With `several_hosts`, machines can, too: on a
    shared disk whose file locks work (NFS from version 4, Lustre, GPFS). Writing is slower then.
    """

    def __init__(self, path: Path, several_hosts: bool = False) -> None:
        self.path = path
        # Threads share the connection and its count of the rows that the last statement changed.
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            # A write-ahead log needs shared memory, which machines do not share.
            self._db.execute(f"PRAGMA journal_mode={'DELETE' if several_hosts else 'WAL'}")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(SCHEMA)
        except OSError as error:
            raise InputError(f"{path}: its folder cannot be created: {error.strerror}. Name another file.") from error
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: not a cache of replies ({error}); move it away or name another file.") from error

    def get(self, request: str) -> str | None:
        """The stored reply to an equal request; None when there is none."""
        row = self._row("SELECT text FROM replies WHERE request = ?", request)
        return row[0] if row else None

    def put(self, request: str, text: str) -> None:
        """Store a reply."""
        self._change("INSERT OR REPLACE INTO replies VALUES (?, ?)", request, text)

    def spent(self, account: str) -> tuple[int, float]:
        """(calls, cost) of an account so far."""
        row = self._row("SELECT calls, cost FROM spent WHERE account = ?", account)
        return (row[0], row[1]) if row else (0, 0.0)

    def reserve(self, account: str, budget: Budget) -> bool:
        """Count one more call if the budget allows it. Returns whether it does."""
        self._change("INSERT OR IGNORE INTO spent VALUES (?, 0, 0)", account)
        limits = (budget.max_calls, budget.max_calls, budget.max_cost, budget.max_cost)
        within = "(? = 0 OR calls < ?) AND (? = 0 OR cost < ?)"
        return self._change(f"UPDATE spent SET calls = calls + 1 WHERE account = ? AND {within}", account, *limits) == 1

    def count(self, account: str) -> None:
        """Count a call that is made regardless of the budget: a retry."""
        self._change("UPDATE spent SET calls = calls + 1 WHERE account = ?", account)

    def pay(self, account: str, cost: float) -> None:
        """Add the cost of a call."""
        self._change("UPDATE spent SET cost = cost + ? WHERE account = ?", cost, account)

    def _row(self, statement: str, *values: Any) -> tuple[Any, ...] | None:
        with self._lock:
            return self._db.execute(statement, values).fetchone()

    def _change(self, statement: str, *values: Any) -> int:
        """The number of rows changed."""
        with self._lock:
            return self._db.execute(statement, values).rowcount
