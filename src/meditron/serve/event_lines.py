"""Server-sent events of an HTTP response, read as they arrive."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

__all__ = ["read_events"]

_LONGEST = 32 << 20  # bytes of one event; a server that sends more is broken


async def read_events(parts: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any]]:
    """Yield the JSON of each event, until the stream or its `[DONE]` ends.

    Not httpx's `aiter_lines`, which also ends a line at characters such as U+2028 or U+0085 inside of a text.

    Raises:
        ValueError: an event is not a JSON object, or far too long.
    """
    pending = b""
    async for part in parts:
        *lines, pending = (pending + part).split(b"\n")
        if len(pending) > _LONGEST:
            raise ValueError(f"an event exceeds {_LONGEST} bytes")
        for line in lines:
            kind, _, content = line.rstrip(b"\r").partition(b":")
            if kind not in (b"data", b"error"):  # an empty line, or a ping: a line that begins with a colon
                continue
            if content.strip() == b"[DONE]":
                return
            event = json.loads(content)
            if not isinstance(event, dict):
                raise TypeError("an event is not an object")
            yield {"error": event} if kind == b"error" and "error" not in event else event
