"""OpenAI-like chat servers for tests, made with aiohttp in a thread of their own: well-behaved, slow, rude or absent."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from aiohttp import web

Answer = Callable[["ChatServer", dict[str, Any], web.Request], Awaitable[web.StreamResponse]]


def completion(text: Any, prompt_tokens: int = 100, completion_tokens: int = 10) -> dict[str, Any]:
    """The body of a chat completion that says `text`."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


@dataclass
class ChatServer:
    """Answers POST /v1/chat/completions with `answer`; counts what it gets. Use it in a `with` block."""

    answer: Answer
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of arrival, seconds
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> ChatServer:
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/chat/completions", self._take)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        await web.SockSite(self._runner, sock).start()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(body)
        self.times.append(asyncio.get_running_loop().time())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.answer(self, body, request)
        finally:
            self.in_flight -= 1


def says(text: Any, seconds: float = 0.0) -> Answer:
    """A server that always answers `text`, after a while."""

    async def answer(server: ChatServer, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return web.json_response(completion(text))

    return answer


def in_waves(size: int, text: Any) -> Answer:
    """A server that answers `text`, but holds its answers until `size` requests wait, then answers these together.

    Before each wave it waits a moment for requests that should not come.
    """
    full: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def answer(server: ChatServer, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        wave, place = divmod(len(server.requests) - 1, size)
        if place == size - 1:
            await asyncio.sleep(0.05)
            full[wave].set()
        await full[wave].wait()
        return web.json_response(completion(text))

    return answer


def replies(of: Callable[[dict[str, Any]], Any]) -> Answer:
    """A server that answers what `of` makes of the request's body."""

    async def answer(server: ChatServer, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        return web.json_response(completion(of(body)))

    return answer


def fails(status: int, times: int = 10**9, then: Any = "", headers: dict[str, str] | None = None) -> Answer:
    """A server that fails with `status` for the first `times` requests, then answers `then`."""

    async def answer(server: ChatServer, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        if len(server.requests) <= times:
            return web.json_response({"error": {"message": f"no {status}"}}, status=status, headers=headers)
        return web.json_response(completion(then))

    return answer


async def silent(server: ChatServer, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
    """Takes the request and says nothing for 30 seconds."""
    await asyncio.sleep(30)
    return web.json_response(completion("too late"))


async def dripping(server: ChatServer, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
    """Sends a space every tenth of a second, for ever: never silent, never done."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.1)


async def cutting(server: ChatServer, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
    """Begins an answer and cuts the connection."""
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.close()
    return response


def raw(body: bytes, kind: str = "application/json") -> Answer:
    """A server that answers these bytes, whatever they are, with status 200."""

    async def answer(server: ChatServer, _: dict[str, Any], request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=kind)

    return answer
