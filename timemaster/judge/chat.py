"""Calls an OpenAI-compatible chat model for judges, traces and comparisons, within a budget and with a cache.

The async client of the `openai` package sends the requests, retries with growing pauses, and obeys Retry-After headers.
This module adds the limit on concurrent calls, the time limit over all retries, and the checks of the reply's body.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from timemaster.judge.store import Budget, Store
from timemaster.types import InputError

logger = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
MAX_FAILURES = 100  # consecutive calls that fail after all retries; then the run ends
NUM_TRIES = 2  # requests at most, when the caller's check rejects a reply
LONGEST_PAUSE = 120.0  # seconds between retries; a longer Retry-After ends the retries
NUM_SHOWN = 300  # characters of a server's message that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A chat model and how to call it. Example: Endpoint(base_url="http://judge:8000/v1", model="Qwen2.5-72B")"""

    base_url: str = ""  # "" is the openai package's default: $OPENAI_BASE_URL or https://api.openai.com/v1
    model: str
    # The environment variable that holds the key; white space around it is ignored. Servers without keys need none.
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 512  # of a reply
    timeout: float = 60.0  # seconds without any data from the server
    max_retries: int = 4  # after 408, 409, 429, 5xx, a cut connection or a time-out
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # more fields of the request; None removes a field

    @property
    def address(self) -> str:
        """The URL that requests are sent to."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """The model's answer, or why there is none. Examples: ChatReply(text="Laptop"), ChatReply(error="429")"""

    text: str = ""
    error: str = ""


class ChatRefused(InputError):
    """No call can succeed until the user changes the key, address, model or budget. Ends the run; never scores 0."""


class BudgetSpent(ChatRefused):
    """The next call would exceed the budget."""


class _Connection:
    """What belongs to one event loop: the client, the calls in flight, and the limit on their number."""

    def __init__(self, endpoint: Endpoint, concurrency: int, on_retry: Callable[[], None]) -> None:
        import openai

        async def sent(request: Any) -> None:
            if request.headers.get("x-stainless-retry-count", "0") != "0":
                on_retry()

        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
            max_connections=concurrency, max_keepalive_connections=concurrency
        )
        self.client = openai.AsyncOpenAI(
            base_url=endpoint.address,
            api_key=_header(endpoint.api_key_env) or "none",
            organization=_header("OPENAI_ORG_ID") or None,
            project=_header("OPENAI_PROJECT_ID") or None,
            timeout=endpoint.timeout,
            max_retries=endpoint.max_retries,
            http_client=openai.DefaultAsyncHttpxClient(
                limits=limits, timeout=endpoint.timeout, event_hooks={"request": [sent]}
            ),
        )
        self.slots = asyncio.Semaphore(concurrency)
        self.pending: dict[str, asyncio.Task[ChatReply]] = {}  # by request


class Chat:
    """One endpoint, to be asked from any thread and event loop; at most `concurrency` concurrent calls in each loop.

    Raises ChatRefused when the address, the key or a proxy of the environment makes every call impossible.
    """

    def __init__(self, endpoint: Endpoint, budget: Budget, store: Store, account: str, concurrency: int) -> None:
        import openai  # noqa: F401 - takes a second, so import it before the first call

        _check_url(endpoint)
        try:
            _Connection(endpoint, concurrency, lambda: None)  # a trial, to find wrong settings now
        except ChatRefused:
            raise
        except Exception as error:  # of the client's libraries: a bad proxy or certificate file, or socksio is missing
            advice = " Install it: uv pip install socksio." if isinstance(error, ImportError) else ""
            raise ChatRefused(
                f"cannot set up a connection to {endpoint.address}{_by_proxy(endpoint)}: {error!r}.{advice}"
            ) from error
        self.endpoint, self.budget, self.store, self.account = endpoint, budget, store, account
        self.concurrency = concurrency
        self._connections: dict[asyncio.AbstractEventLoop, _Connection] = {}
        self._failed = 0  # consecutive calls

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], check: Callable[[str], str] | None = None, fresh: bool = False,
        **options: Any,
    ) -> ChatReply:  # fmt: skip
        """The model's reply to `messages` (in OpenAI's form). `options` are further fields such as response_format.

        A request that was answered before is answered from the cache, unless `fresh`. A request that equals one in
        flight shares its reply. `check` returns "" for a useful reply, and otherwise what is wrong with it; then the
        request is repeated once. A call that fails after all retries, or is rejected twice, returns a ChatReply with
        `error`, which is not cached.
        Raises BudgetSpent, and ChatRefused when the server refuses key, address or model, or when MAX_FAILURES
        consecutive calls have failed.
        """
        e = self.endpoint
        body = {"model": e.model, "messages": messages, "temperature": e.temperature, "max_tokens": e.max_tokens}
        body |= options | dict(e.extra_body)
        body = {name: value for name, value in body.items() if value is not None}
        key = hashlib.sha256(json.dumps([e.address, body], sort_keys=True).encode()).hexdigest()
        cached = None if fresh else self.store.get(key)
        if cached is not None:
            return ChatReply(text=cached)
        connection = self._connection()
        if key not in connection.pending:
            connection.pending[key] = asyncio.create_task(self._call(connection, key, body, check))
            connection.pending[key].add_done_callback(lambda _: connection.pending.pop(key, None))
        return await asyncio.shield(connection.pending[key])

    def _connection(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if loop not in self._connections:  # a connection cannot be used in another event loop
            self._connections = {other: c for other, c in self._connections.items() if not other.is_closed()}
            self._connections[loop] = _Connection(
                self.endpoint, self.concurrency, lambda: self.store.count(self.account)
            )
        return self._connections[loop]

    async def _call(
        self, connection: _Connection, key: str, body: dict[str, Any], check: Callable[[str], str] | None
    ) -> ChatReply:
        reply, why = ChatReply(), ""
        async with connection.slots:
            for _ in range(NUM_TRIES if check else 1):
                self._reserve()
                reply = await self._try(connection, body)
                why = check(reply.text) if check and reply.text else ""
                if not why:
                    break
        if reply.text and not why:
            self._failed = 0
            self.store.put(key, reply.text)
            return reply
        reply = ChatReply(error=reply.error or why)
        self._failed += 1
        if self._failed == 1:  # the caller counts further failures
            logger.warning("%s gave no answer: %s", self.endpoint.model, reply.error)
        if self._failed >= MAX_FAILURES:
            raise ChatRefused(
                f"{self._failed} consecutive calls to {self.endpoint.model!r} at {self.endpoint.address} failed; the "
                f"last one: {reply.error}. Fix this and start again; replies so far are kept in {self.store.path}"
            )
        return reply

    def _reserve(self) -> None:
        if not self.store.reserve(self.account, self.budget):
            calls, cost = self.store.spent(self.account)
            raise BudgetSpent(
                f"the budget of {self.account!r} is used up ({calls} calls, cost {cost:.2f}): raise max_calls or "
                f"max_cost and start again; replies so far are kept in {self.store.path}"
            )

    async def _try(self, connection: _Connection, body: dict[str, Any]) -> ChatReply:
        import openai

        e = self.endpoint
        # The client's timeout limits silence only: a server that sends its answer slowly could take a slot forever.
        limit = (e.max_retries + 1) * e.timeout + e.max_retries * LONGEST_PAUSE
        try:
            async with asyncio.timeout(limit):
                # Not chat.completions.create: its conversions take longer than everything else together.
                content: Any = await connection.client.post("/chat/completions", cast_to=object, body=body)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise ChatRefused(
                f"{e.address} refuses model {e.model!r}{_by_proxy(e)}: {str(error)[:NUM_SHOWN]}. Check base_url, "
                f"model and the key in ${e.api_key_env}{'' if _header(e.api_key_env) else ' (not set)'}."
            ) from error
        except openai.APIError as error:
            why = f"{error} {error.__cause__ or ''}".strip()
            tries = f"{type(error).__name__} after at most {e.max_retries + 1} tries{_by_proxy(e)}"
            return ChatReply(error=f"{tries}: {why}"[:NUM_SHOWN])
        except TimeoutError:
            return ChatReply(error=f"no complete answer within {limit:.0f} seconds")
        except (ValueError, RecursionError) as error:
            return ChatReply(error=f"the body is not JSON: {error}"[:NUM_SHOWN])
        # without usage in the body, assume the maximum
        tokens_in, tokens_out = _usage(content) or (len(json.dumps(body)) // 4, e.max_tokens)
        cost = tokens_in * self.budget.price_in + tokens_out * self.budget.price_out
        self.store.pay(self.account, cost / 1e6)
        return _answer(content)


def _check_url(endpoint: Endpoint) -> None:
    """Raise ChatRefused for a malformed address, which would otherwise fail in every call like a network error."""
    url, name = endpoint.address, "base_url" if endpoint.base_url else "$OPENAI_BASE_URL"
    try:
        parts = urlsplit(url)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        ok = False
    if not ok or re.search(r"[^!-~\w]|[\"'<>]", url):  # urlsplit silently drops line ends
        raise ChatRefused(f"{name}={url!r} is not an address; write it as http://host:8000/v1.")
    if parts.path.rstrip("/").endswith("/completions"):
        raise ChatRefused(f"{name}={url!r}: leave out /chat/completions, which is added to it.")


def _header(variable: str) -> str:
    """An environment variable that is sent as a header, without white space around it (key files end with a newline).

    "" when it is not set. Raises ChatRefused when a header cannot contain it.
    """
    value = os.environ.get(variable, "").strip()
    bad = next((i for i, mark in enumerate(value) if not " " <= mark <= "~"), None)
    if bad is not None:
        what = "a line end" if value[bad] in "\r\n" else f"the character {value[bad]!r}"
        raise ChatRefused(
            f"${variable} holds {what} at position {bad + 1} of {len(value)}, which an HTTP header cannot contain: "
            "set it to the key alone, on one line and in plain ASCII."
        )
    return value


def _by_proxy(endpoint: Endpoint) -> str:
    """For messages: the proxy of the environment that the call goes through; "" without one."""
    parts = urlsplit(endpoint.address)
    proxy = getproxies().get(parts.scheme) or getproxies().get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return ""
    shown = proxy.rpartition("@")[2]  # without a password
    return f" through the proxy {shown} (NO_PROXY={parts.hostname} avoids it)"


def _usage(content: Any) -> tuple[int, int] | None:
    """(tokens sent, tokens received) as the body reports them; None when it does not."""
    usage = content.get("usage") if isinstance(content, dict) else None
    values = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    counts = [n for n in values if isinstance(n, int) and n >= 0]
    return (counts[0], counts[1]) if len(counts) == 2 else None


def _answer(content: Any) -> ChatReply:
    """The text of a chat completion, or an error: the body can be anything."""
    try:
        text = content["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return ChatReply(error=f"the body is not a chat completion: {content!r}"[:NUM_SHOWN])
    if not isinstance(text, str) or not text.strip():
        return ChatReply(error=f"the reply has no text: {content['choices'][0]!r}"[:NUM_SHOWN])
    return ChatReply(text=text.encode(errors="replace").decode())  # half a surrogate pair cannot be stored
