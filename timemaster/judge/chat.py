"""Asking an OpenAI-compatible chat model, within a budget and never twice: for judges, traces and comparisons.

The `openai` package's async client does the calling, the bounded retries with growing pauses, and the waiting that a
Retry-After header asks for. Here are the cap on calls in flight, the time limit over all tries, the reading of a body
that may be anything, and the budget and the cache, both in one SQLite file that processes of a machine share and that
a resumed run goes on with.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from timemaster.types import InputError, Media, Message

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 120.0  # seconds; a Retry-After beyond it ends the tries
NUM_SHOWN = 300  # characters of a server's message

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


class ChatRefused(InputError):
    """No call can succeed until the user changes something: key, address, model, budget. Never counted as a score."""


class BudgetSpent(ChatRefused):
    """The next call would exceed the budget."""


class Store:
    """Replies by request, and what each account has spent, in one SQLite file.

    Safe between threads and between processes of one machine (not over a network disk: it needs shared memory).
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        try:
            # Made in one thread, used in the scoring thread: the sqlite3 module locks each call by itself.
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(SCHEMA)
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: not a cache of replies ({error}); move it away or name another file.") from error

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


class _Lane:
    """What belongs to one event loop: connections, the calls in flight and their cap."""

    def __init__(self, endpoint: Endpoint, concurrency: int) -> None:
        import openai

        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
            max_connections=concurrency, max_keepalive_connections=concurrency
        )
        self.client = openai.AsyncOpenAI(
            base_url=endpoint.base_url or None,
            api_key=os.environ.get(endpoint.api_key_env) or "none",
            timeout=endpoint.timeout,
            max_retries=endpoint.max_retries,
            http_client=openai.DefaultAsyncHttpxClient(limits=limits, timeout=endpoint.timeout),
        )
        self.slots = asyncio.Semaphore(concurrency)
        self.asked: dict[str, asyncio.Task[Reply]] = {}


class Chat:
    """Asks one endpoint. Make it in any thread, ask in any event loop; `concurrency` calls at once in each."""

    def __init__(self, endpoint: Endpoint, budget: Budget, store: Store, account: str, concurrency: int) -> None:
        import openai  # noqa: F401 - takes a second, which no call should wait for

        _check_url(endpoint.base_url)
        self.endpoint, self.budget, self.store, self.account = endpoint, budget, store, account
        self._concurrency = concurrency
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}
        self._warned = False

    async def ask(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Reply:
        """The model's reply to `messages` (OpenAI's form); `options` are further fields such as response_format.

        An equal request is answered from the cache, or waits for the one in flight. A call that fails for good gives a
        Reply with `error`. Raises BudgetSpent, and ChatRefused when the server refuses key, address or model.
        """
        e = self.endpoint
        body = {"model": e.model, "messages": messages, "temperature": e.temperature, "max_tokens": e.max_tokens}
        body |= options | dict(e.extra_body)
        key = hashlib.sha256(json.dumps([e.base_url, body], sort_keys=True).encode()).hexdigest()
        kept = self.store.get(key)
        if kept is not None:
            return Reply(text=kept)
        lane = self._lane()
        if key not in lane.asked:
            lane.asked[key] = asyncio.create_task(self._call(lane, key, body))
            lane.asked[key].add_done_callback(lambda _: lane.asked.pop(key, None))
        return await asyncio.shield(lane.asked[key])

    def _lane(self) -> _Lane:
        loop = asyncio.get_running_loop()
        if loop not in self._lanes:  # connections of a loop that has ended are of no use to the next one
            self._lanes = {one: lane for one, lane in self._lanes.items() if not one.is_closed()}
            self._lanes[loop] = _Lane(self.endpoint, self._concurrency)
        return self._lanes[loop]

    async def _call(self, lane: _Lane, key: str, body: dict[str, Any]) -> Reply:
        async with lane.slots:
            if not self.store.reserve(self.account, self.budget):
                calls, cost = self.store.spent(self.account)
                raise BudgetSpent(
                    f"the budget of {self.account!r} is used up ({calls} calls, cost {cost:.2f}): raise max_calls or "
                    f"max_cost and start again; replies so far are kept in {self.store.path}"
                )
            reply = await self._try(lane, body)
        if reply.text:
            self.store.put(key, reply.text)
        elif not self._warned:
            self._warned = True  # the rest is counted by who asks
            logger.warning("%s gave no answer (the first time): %s", self.endpoint.model, reply.error)
        return reply

    async def _try(self, lane: _Lane, body: dict[str, Any]) -> Reply:
        import openai

        e = self.endpoint
        # The client's time-out is for silence; a server that drips its answer would hold a slot for ever.
        limit = (e.max_retries + 1) * e.timeout + e.max_retries * LONGEST_PAUSE
        try:
            async with asyncio.timeout(limit):
                # Not chat.completions.create: it takes longer to convert a request and a reply than all else together.
                content: Any = await lane.client.post("/chat/completions", cast_to=object, body=body)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise ChatRefused(
                f"{e.base_url or 'api.openai.com'} refuses model {e.model!r}: {str(error)[:NUM_SHOWN]}. "
                f"Look at base_url, model and the key in ${e.api_key_env}."
            ) from error
        except openai.APIError as error:
            return Reply(error=f"{type(error).__name__} after at most {e.max_retries + 1} tries: {error}"[:NUM_SHOWN])
        except TimeoutError:
            return Reply(error=f"no whole answer within {limit:.0f} seconds")
        except (ValueError, RecursionError) as error:
            return Reply(error=f"the body is no JSON: {error}"[:NUM_SHOWN])
        tokens_in, tokens_out = _usage(content) or (len(json.dumps(body)) // 4, e.max_tokens)  # no word of it: the most
        cost = tokens_in * self.budget.price_in + tokens_out * self.budget.price_out
        self.store.pay(self.account, cost / 1e6)
        return _answer(content)


def _check_url(url: str) -> None:
    """ChatRefused for an address that no call can reach; without this, every call would fail as if the network had."""
    try:
        parts = urlsplit(url)
        ok = not url or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
    except ValueError:
        ok = False
    if not ok:
        raise ChatRefused(f"base_url={url!r} is no address; write it as http://host:8000/v1.")


def _usage(content: Any) -> tuple[int, int] | None:
    """(tokens sent, tokens received) as a body tells them."""
    usage = content.get("usage") if isinstance(content, dict) else None
    found = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    counts = [n for n in found if isinstance(n, int) and n >= 0]
    return (counts[0], counts[1]) if len(counts) == 2 else None


def _answer(content: Any) -> Reply:
    """The text of a chat completion, whatever the body turns out to be."""
    try:
        text = content["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return Reply(error=f"the body is no chat completion: {content!r}"[:NUM_SHOWN])
    if not isinstance(text, str) or not text.strip():
        return Reply(error=f"the reply holds no text: {content['choices'][0]!r}"[:NUM_SHOWN])
    return Reply(text=text.encode(errors="replace").decode())  # half a surrogate pair cannot be kept


def chat_turn(message: Message) -> dict[str, Any]:
    """A message in OpenAI's form, pictures inside. InputError for a video."""
    content = []
    for part in message.parts:
        if part.media is None:
            content.append({"type": "text", "text": part.text})
        elif part.media.kind == "image":
            content.append(image_part(encoded(part.media)))
        else:
            raise InputError(f"a row holds a {part.media.kind}; chat models are asked about images and text only")
    return {"role": message.role, "content": content}


def encoded(media: Media) -> bytes:
    """The file of an image, read when only its path is known."""
    return media.data if media.data is not None else Path(media.path).read_bytes()


def image_part(data: bytes) -> dict[str, Any]:
    """A PNG or JPEG as a content part of a message."""
    kind = "jpeg" if data[:2] == b"\xff\xd8" else "png"
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}
