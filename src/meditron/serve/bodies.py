"""Request bodies: JSON only, of bounded size, received within bounded time."""

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

__all__ = ["check_body_type", "read_body", "replay"]


def check_body_type(method: str, headers: Headers) -> None:
    """Refuse what a form of another site can send: any body that is not declared as JSON.

    Raises:
        HTTPException: 415.
    """
    declared = headers.getlist("content-type")
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if method == "DELETE" and not has_body and not declared:
        return
    if [value.partition(";")[0].strip().lower() for value in declared] != ["application/json"]:
        raise HTTPException(415, "the Content-Type must be application/json")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "compressed bodies are not accepted")


async def read_body(receive: Receive, headers: Headers, limit: int, idle: float, total: float) -> bytes:
    """Receive a body.

    Args:
        receive: The request's messages.
        headers: The request's headers.
        limit: Largest number of bytes.
        idle: Longest time in seconds between two pieces.
        total: Longest time in seconds for the whole body.

    Raises:
        HTTPException: 413 if the body is too large, 408 if it is too slow.
        ConnectionError: the client is gone.
    """
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit)
    loop = asyncio.get_running_loop()
    deadline, body = loop.time() + total, bytearray()
    while True:
        try:
            async with asyncio.timeout_at(min(loop.time() + idle, deadline)):
                message = await receive()
        except TimeoutError as error:
            # The connection cannot be used again: the rest of the body may still arrive on it.
            raise HTTPException(408, "the request body is too slow", {"connection": "close"}) from error
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client is gone")
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the request body has more than {limit:,} bytes")


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields a body that was read, then what follows."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message
