"""What was asked of chat models and what it has cost, in one SQLite file that processes share and a resumed run goes on
with.
"""

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
    """What may be spent under one account of a cache file; 0 is no limit.

    Calls in flight may exceed it: `max_calls` by their retries, `max_cost` by their cost. What a call has cost that
    failed is not known, and not counted. Raises InputError for a cost limit without prices, which would limit nothing.
    """

    max_calls: int = 0  # requests, retries too
    max_cost: float = 0.0  # in the currency of the prices
    price_in: float = 0.0  # of a million tokens sent
    price_out: float = 0.0  # of a million tokens received

    def __post_init__(self) -> None:
        if self.max_cost and not (self.price_in or self.price_out):
            raise InputError(f"max_cost={self.max_cost:g} limits nothing without price_in and price_out: set them too.")


class Store:
    """Replies by request, and what each account has spent, in one SQLite file.

    Safe between threads and processes of one machine; with `several_hosts` also between machines, on a disk that they
    share and whose file locks work (NFS from version 4, Lustre, GPFS), at the price of slower writing.
    """

    def __init__(self, path: Path, several_hosts: bool = False) -> None:
        self.path = path
        # Threads share the connection, and with it the number of rows that the last statement changed.
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            # A write-ahead log is read through shared memory, which machines do not have in common.
            self._db.execute(f"PRAGMA journal_mode={'DELETE' if several_hosts else 'WAL'}")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(SCHEMA)
        except OSError as error:
            raise InputError(f"{path}: its folder cannot be made: {error.strerror}. Name another file.") from error
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: not a cache of replies ({error}); move it away or name another file.") from error

    def get(self, request: str) -> str | None:
        """The reply to an equal request, if there was one."""
        row = self._row("SELECT text FROM replies WHERE request = ?", request)
        return row[0] if row else None

    def put(self, request: str, text: str) -> None:
        """Keep a reply."""
        self._change("INSERT OR REPLACE INTO replies VALUES (?, ?)", request, text)

    def spent(self, account: str) -> tuple[int, float]:
        """(calls, cost) of an account so far."""
        row = self._row("SELECT calls, cost FROM spent WHERE account = ?", account)
        return (row[0], row[1]) if row else (0, 0.0)

    def reserve(self, account: str, budget: Budget) -> bool:
        """Count one more call, unless the budget has no room for it."""
        self._change("INSERT OR IGNORE INTO spent VALUES (?, 0, 0)", account)
        limits = (budget.max_calls, budget.max_calls, budget.max_cost, budget.max_cost)
        within = "(? = 0 OR calls < ?) AND (? = 0 OR cost < ?)"
        return self._change(f"UPDATE spent SET calls = calls + 1 WHERE account = ? AND {within}", account, *limits) == 1

    def count(self, account: str) -> None:
        """Count a call that is made whatever the budget: a retry."""
        self._change("UPDATE spent SET calls = calls + 1 WHERE account = ?", account)

    def pay(self, account: str, cost: float) -> None:
        """Add what a call has cost."""
        self._change("UPDATE spent SET cost = cost + ? WHERE account = ?", cost, account)

    def _row(self, statement: str, *values: Any) -> tuple[Any, ...] | None:
        with self._lock:
            return self._db.execute(statement, values).fetchone()

    def _change(self, statement: str, *values: Any) -> int:
        """The number of rows changed."""
        with self._lock:
            return self._db.execute(statement, values).rowcount
