"""Responses that end their work when the client goes away, streamed or not."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from types import MappingProxyType
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from meditron.serve.errors import CLIENT_CLOSED_REQUEST, error_body, error_response

__all__ = ["EventStream", "event", "until_disconnect"]

_FIRST_EVENT_SECONDS = 30.0
"""Time in which an error still becomes an HTTP status. Later the stream is open, and an error is an event."""
_PING_SECONDS = 15.0  # proxies close connections that are silent for a minute
_PING = b": ping\n\n"
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
T = TypeVar("T")


def event(value: Mapping[str, Any] | str, name: str | None = None) -> bytes:
    """Return a server-sent event with JSON, or with a text such as `[DONE]`."""
    data = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode(errors="replace")


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Return the response of some work, which is cancelled if the client goes away."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        await _cancel(task, watch)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """A stream of server-sent events.

    The response begins with the first event, so that an error before it has an HTTP status. Pings keep the
    connection open while a long prompt is processed. The iterator is closed when the client goes away.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        failure: Callable[[Mapping[str, Any]], bytes] = event,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Stream events; `failure` makes the event for an error's body."""
        super().__init__()
        self._more_headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._events, self._failure = events, failure
        self._begun = False
        self._last = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        tasks = [
            asyncio.create_task(work)
            for work in (self._send_events(scope, receive, send), _disconnected(receive), self._ping(send))
        ]
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            await _cancel(*tasks)

    async def _send_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with aclosing(self._events) as events:
                async for content in events:
                    await self._send(send, content)
        except Exception as error:
            if not self._begun:
                await error_response(error)(scope, receive, send)
                return
            await self._send(send, self._failure(error_body(error)[1]))
        with suppress(OSError):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, content: bytes) -> None:
        self._last = time.monotonic()
        if not self._begun:
            self._begun = True
            await send(
                {"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *self._more_headers]}
            )
        await send({"type": "http.response.body", "body": content, "more_body": True})

    async def _ping(self, send: Send) -> None:
        while True:
            silence = _PING_SECONDS if self._begun else _FIRST_EVENT_SECONDS
            wait = self._last + silence - time.monotonic()
            if wait <= 0:
                await self._send(send, _PING)
            else:
                await asyncio.sleep(wait)
