"""Asking an OpenAI-compatible chat model, within a budget and never twice: for judges, traces and comparisons.

The `openai` package's async client does the calling, the bounded retries with growing pauses, and the waiting that a
Retry-After header asks for. Here are the cap on calls in flight, the time limit over all tries, and the reading of a
body that may be anything.
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
MAX_FAILURES = 100  # calls in a row that fail for good; then nothing more is asked
NUM_TRIES = 2  # for a reply that is of no use to who asked
LONGEST_PAUSE = 120.0  # seconds; a Retry-After beyond it ends the tries
NUM_SHOWN = 300  # characters of a server's message


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A chat model and how to call it. Example: Endpoint(base_url="http://judge:8000/v1", model="Qwen2.5-72B")"""

    base_url: str = ""  # "" is the openai package's default: $OPENAI_BASE_URL or https://api.openai.com/v1
    model: str
    # The environment variable that holds the key, white space around it aside; servers without keys need none.
    api_key_env: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 512  # of a reply
    timeout: float = 60.0  # seconds without a word from the server
    max_retries: int = 4  # after 408, 409, 429, 5xx, a cut connection or a time-out
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # more fields of the request; None takes one away

    @property
    def address(self) -> str:
        """Where the calls go."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer, or why there is none. Example: Reply(text="Laptop"), Reply(error="429 after 5 tries")"""

    text: str = ""
    error: str = ""


class ChatRefused(InputError):
    """No call can succeed until the user changes something: key, address, model, budget. Never counted as a score."""


class BudgetSpent(ChatRefused):
    """The next call would exceed the budget."""


class _Lane:
    """What belongs to one event loop: connections, the calls in flight and their cap."""

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
        self.asked: dict[str, asyncio.Task[Reply]] = {}


class Chat:
    """Asks one endpoint. Make it in any thread, ask in any event loop; `concurrency` calls at once in each.

    Raises ChatRefused for an address, a key or a proxy of the environment with which no call can be made.
    """

    def __init__(self, endpoint: Endpoint, budget: Budget, store: Store, account: str, concurrency: int) -> None:
        import openai  # noqa: F401 - takes a second, which no call should wait for

        _check_url(endpoint)
        try:
            _Lane(endpoint, concurrency, lambda: None)  # what cannot be set up is found now
        except ChatRefused:
            raise
        except Exception as error:  # of the client's libraries: a proxy or a certificate file that is none, no socksio
            advice = " Install it: uv pip install socksio." if isinstance(error, ImportError) else ""
            raise ChatRefused(
                f"no connection to {endpoint.address} can be set up{_by_proxy(endpoint)}: {error!r}.{advice}"
            ) from error
        self.endpoint, self.budget, self.store, self.account = endpoint, budget, store, account
        self.concurrency = concurrency
        self._lanes: dict[asyncio.AbstractEventLoop, _Lane] = {}
        self._failed = 0  # calls in a row

    async def ask(
        self, messages: Sequence[Mapping[str, Any]], check: Callable[[str], str] | None = None, fresh: bool = False,
        **options: Any,
    ) -> Reply:  # fmt: skip
        """The model's reply to `messages` (OpenAI's form); `options` are further fields such as response_format.

        An equal request is answered from the cache, unless `fresh`, or waits for the one in flight. A call that fails
        for good gives a Reply with `error`; so does a reply to which `check` says why it is of no use, twice: it is not
        kept.
        Raises BudgetSpent, and ChatRefused when the server refuses key, address or model, or nothing comes of any call.
        """
        e = self.endpoint
        body = {"model": e.model, "messages": messages, "temperature": e.temperature, "max_tokens": e.max_tokens}
        body |= options | dict(e.extra_body)
        body = {name: value for name, value in body.items() if value is not None}
        key = hashlib.sha256(json.dumps([e.address, body], sort_keys=True).encode()).hexdigest()
        kept = None if fresh else self.store.get(key)
        if kept is not None:
            return Reply(text=kept)
        lane = self._lane()
        if key not in lane.asked:
            lane.asked[key] = asyncio.create_task(self._call(lane, key, body, check))
            lane.asked[key].add_done_callback(lambda _: lane.asked.pop(key, None))
        return await asyncio.shield(lane.asked[key])

    def _lane(self) -> _Lane:
        loop = asyncio.get_running_loop()
        if loop not in self._lanes:  # connections of a loop that has ended are of no use to the next one
            self._lanes = {one: lane for one, lane in self._lanes.items() if not one.is_closed()}
            self._lanes[loop] = _Lane(self.endpoint, self.concurrency, lambda: self.store.count(self.account))
        return self._lanes[loop]

    async def _call(self, lane: _Lane, key: str, body: dict[str, Any], check: Callable[[str], str] | None) -> Reply:
        reply, why = Reply(), ""
        async with lane.slots:
            for _ in range(NUM_TRIES if check else 1):
                self._reserve()
                reply = await self._try(lane, body)
                why = check(reply.text) if check and reply.text else ""
                if not why:
                    break
        if reply.text and not why:
            self._failed = 0
            self.store.put(key, reply.text)
            return reply
        reply = Reply(error=reply.error or why)
        self._failed += 1
        if self._failed == 1:  # the rest is counted by who asks
            logger.warning("%s gave no answer: %s", self.endpoint.model, reply.error)
        if self._failed >= MAX_FAILURES:
            raise ChatRefused(
                f"{self._failed} calls in a row to {self.endpoint.model!r} at {self.endpoint.address} gave nothing; "
                f"the last: {reply.error}. Mend that and start again; replies so far are kept in {self.store.path}"
            )
        return reply

    def _reserve(self) -> None:
        if not self.store.reserve(self.account, self.budget):
            calls, cost = self.store.spent(self.account)
            raise BudgetSpent(
                f"the budget of {self.account!r} is used up ({calls} calls, cost {cost:.2f}): raise max_calls or "
                f"max_cost and start again; replies so far are kept in {self.store.path}"
            )

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
                f"{e.address} refuses model {e.model!r}{_by_proxy(e)}: {str(error)[:NUM_SHOWN]}. Look at base_url, "
                f"model and the key in ${e.api_key_env}{'' if _header(e.api_key_env) else ' (not set)'}."
            ) from error
        except openai.APIError as error:
            why = f"{error} {error.__cause__ or ''}".strip()
            tries = f"{type(error).__name__} after at most {e.max_retries + 1} tries{_by_proxy(e)}"
            return Reply(error=f"{tries}: {why}"[:NUM_SHOWN])
        except TimeoutError:
            return Reply(error=f"no whole answer within {limit:.0f} seconds")
        except (ValueError, RecursionError) as error:
            return Reply(error=f"the body is no JSON: {error}"[:NUM_SHOWN])
        tokens_in, tokens_out = _usage(content) or (len(json.dumps(body)) // 4, e.max_tokens)  # no word of it: the most
        cost = tokens_in * self.budget.price_in + tokens_out * self.budget.price_out
        self.store.pay(self.account, cost / 1e6)
        return _answer(content)


def _check_url(endpoint: Endpoint) -> None:
    """ChatRefused for an address that no call can reach; without this, every call would fail as if the network had."""
    url, name = endpoint.address, "base_url" if endpoint.base_url else "$OPENAI_BASE_URL"
    try:
        parts = urlsplit(url)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        ok = False
    if not ok or re.search(r"[^!-~\w]|[\"'<>]", url):  # urlsplit drops line ends in silence
        raise ChatRefused(f"{name}={url!r} is no address; write it as http://host:8000/v1.")
    if parts.path.rstrip("/").endswith("/completions"):
        raise ChatRefused(f"{name}={url!r}: leave out /chat/completions, which is added to it.")


def _header(variable: str) -> str:
    """An environment variable that is sent in a header, without white space around it (files of keys end with a line
    end). ChatRefused when a header cannot carry it. "" when it is not set.
    """
    value = os.environ.get(variable, "").strip()
    bad = next((i for i, mark in enumerate(value) if not " " <= mark <= "~"), None)
    if bad is not None:
        what = "a line end" if value[bad] in "\r\n" else f"the character {value[bad]!r}"
        raise ChatRefused(
            f"${variable} holds {what} at position {bad + 1} of {len(value)}, which no HTTP header can carry: "
            "set it to the key alone, on one line and in plain ASCII."
        )
    return value


def _by_proxy(endpoint: Endpoint) -> str:
    """Which proxy of the environment stands in between; "" for none."""
    parts = urlsplit(endpoint.address)
    found = getproxies().get(parts.scheme) or getproxies().get("all")
    if not found or proxy_bypass(parts.hostname or ""):
        return ""
    shown = found.rpartition("@")[2]  # without a password
    return f" by way of the proxy {shown} (NO_PROXY={parts.hostname} goes without it)"


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
