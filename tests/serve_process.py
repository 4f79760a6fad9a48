"""The real `meditron serve` process in front of a scripted upstream."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from served_app import Address, Reply
from serving import serving as start


class Served(Address):
    """A running server."""

    process: "subprocess.Popen[str]"
    errors: Path

    def ask(self, script: str, *, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
        """Send a chat request; return the response."""
        body = {"model": "toy", "messages": [{"role": "user", "content": script}], **fields}
        sent = {"Content-Type": "application/json", **(headers or {})}
        return self.request("POST", "/v1/chat/completions", json.dumps(body).encode(), sent)

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


def chat_request(script: str, *, stream: bool = True, more: bytes = b"") -> bytes:
    """Return the bytes of a chat request."""
    body = json.dumps({"model": "toy", "stream": stream, "messages": [{"role": "user", "content": script}]})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n" + more + b"\r\n" + body.encode()


@contextmanager
def serving(folder: Path, upstream: str, *flags: str) -> Iterator[Served]:
    """Run `meditron serve --upstream` on a free port."""
    with start(folder, "--upstream", upstream, *flags) as server:
        served = Served(int(server.url.rstrip("/").rpartition(":")[2]))
        served.process, served.errors = server.process, server.log
        yield served
