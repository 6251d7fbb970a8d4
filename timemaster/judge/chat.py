"""Asking an OpenAI-compatible chat model, within a budget and never twice: for judges, traces and comparisons.

The `openai` package's async client does the calling, the bounded retries with growing pauses, and the waiting that a
Retry-After header asks for. Here are the cap on calls in flight, the budget and the cache, both in one SQLite file that
processes of a machine share and that a resumed run goes on with.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timemaster.types import InputError

SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (request TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (account TEXT PRIMARY KEY, calls INTEGER NOT NULL, cost REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A chat model and how to call it. Example: Endpoint(base_url="http://judge:8000/v1", model="Qwen2.5-72B")"""

    base_url: str = ""  # "" is the openai package's default, https://api.openai.com/v1
    model: str
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key; servers without keys need none
    temperature: float = 0.0
    max_tokens: int = 512  # of a reply
    timeout: float = 60.0  # seconds without a word from the server
    max_retries: int = 4  # after 408, 409, 429, 5xx, a cut connection or a time-out
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # more fields of the request, as a server knows them


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent under one account of a cache file; 0 is no limit. Calls in flight may exceed the cost."""

    max_calls: int = 0
    max_cost: float = 0.0  # in the currency of the prices
    price_in: float = 0.0  # of a million tokens sent
    price_out: float = 0.0  # of a million tokens received


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, or why there is none. Example: Reply(text="Laptop"), Reply(error="429 after 5 tries")"""

    text: str = ""
    error: str = ""


class BudgetSpent(InputError):
    """The next call would exceed the budget."""


class Store:
    """Replies by request, and what each account has spent, in one SQLite file. Safe between processes of a machine."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(SCHEMA)

    def get(self, request: str) -> str | None:
        """The reply to an equal request, if there was one."""
        row = self._db.execute("SELECT text FROM replies WHERE request = ?", (request,)).fetchone()
        return row[0] if row else None

    def put(self, request: str, text: str) -> None:
        """Keep a reply."""
        self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (request, text))

    def spent(self, account: str) -> tuple[int, float]:
        """(calls, cost) of an account so far."""
        row = self._db.execute("SELECT calls, cost FROM spent WHERE account = ?", (account,)).fetchone()
        return (row[0], row[1]) if row else (0, 0.0)

    def reserve(self, account: str, budget: Budget) -> bool:
        """Count one more call, unless the budget has no room for it."""
        self._db.execute("INSERT OR IGNORE INTO spent VALUES (?, 0, 0)", (account,))
        counted = self._db.execute(
            "UPDATE spent SET calls = calls + 1 WHERE account = ? AND (? = 0 OR calls < ?) AND (? = 0 OR cost < ?)",
            (account, budget.max_calls, budget.max_calls, budget.max_cost, budget.max_cost),
        )
        return counted.rowcount == 1

    def pay(self, account: str, cost: float) -> None:
        """Add what a call has cost."""
        self._db.execute("UPDATE spent SET cost = cost + ? WHERE account = ?", (cost, account))


class Chat:
    """Asks one endpoint. Use it from one event loop; `concurrency` calls are in flight at most."""

    def __init__(self, endpoint: Endpoint, budget: Budget, store: Store, account: str, concurrency: int) -> None:
        from openai import AsyncOpenAI

        self.endpoint, self.budget, self.store, self.account = endpoint, budget, store, account
        self._client = AsyncOpenAI(
            base_url=endpoint.base_url or None,
            api_key=os.environ.get(endpoint.api_key_env) or "none",
            timeout=endpoint.timeout,
            max_retries=endpoint.max_retries,
        )
        self._slots = asyncio.Semaphore(concurrency)
        self._asked: dict[str, asyncio.Task[Reply]] = {}

    async def ask(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Reply:
        """The model's reply to `messages` (OpenAI's form); `options` are further fields such as response_format.

        An equal request is answered from the cache, or waits for the one in flight. A call that fails for good gives a
        Reply with `error`. Raises BudgetSpent, and InputError when the server refuses key, address or model.
        """
        e = self.endpoint
        body = {"model": e.model, "messages": messages, "temperature": e.temperature, "max_tokens": e.max_tokens}
        body |= options | ({"extra_body": dict(e.extra_body)} if e.extra_body else {})
        key = hashlib.sha256(json.dumps([e.base_url, body], sort_keys=True).encode()).hexdigest()
        kept = self.store.get(key)
        if kept is not None:
            return Reply(text=kept)
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._call(key, body))
            self._asked[key].add_done_callback(lambda _: self._asked.pop(key, None))
        return await asyncio.shield(self._asked[key])

    async def _call(self, key: str, body: dict[str, Any]) -> Reply:
        import openai

        async with self._slots:
            if not self.store.reserve(self.account, self.budget):
                calls, cost = self.store.spent(self.account)
                raise BudgetSpent(
                    f"the budget of {self.account!r} is used up ({calls} calls, cost {cost:.2f}): raise max_calls or "
                    f"max_cost and start again; replies so far are kept in {self.store.path}"
                )
            try:
                answer = await self._client.chat.completions.create(**body)
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise InputError(
                    f"{self.endpoint.base_url or 'api.openai.com'} refuses model {self.endpoint.model!r}: {error}. "
                    f"Look at base_url, model and the key in ${self.endpoint.api_key_env}."
                ) from error
            except openai.APIError as error:
                return Reply(error=f"{type(error).__name__}: {error}")
            except ValueError as error:  # a body that is no JSON
                return Reply(error=f"unreadable reply: {error}")
        return self._take(key, answer)

    def _take(self, key: str, answer: Any) -> Reply:
        usage = getattr(answer, "usage", None)
        if usage is not None:
            cost = usage.prompt_tokens * self.budget.price_in + usage.completion_tokens * self.budget.price_out
            self.store.pay(self.account, cost / 1e6)
        choices = getattr(answer, "choices", None)
        text = choices[0].message.content if choices else None
        if not text:
            return Reply(error="the reply holds no text")
        self.store.put(key, text)
        return Reply(text=text)


def image_part(data: bytes) -> dict[str, Any]:
    """A PNG or JPEG as a content part of a message."""
    kind = "jpeg" if data[:2] == b"\xff\xd8" else "png"
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}
