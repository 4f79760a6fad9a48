"""Applications of `meditron.serve` behind real sockets."""

import http.client
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from meditron.serve.config import ServeConfig
from meditron.serve.state import ModelInfo, ServeState
from meditron.store.people import People


class NoModels:
    """A source without models."""

    def __init__(self, *names: str) -> None:
        self.models = [ModelInfo(id=name) for name in names]

    def list_models(self) -> Sequence[ModelInfo]:
        return self.models

    def stream(self, call: Any) -> Any:
        raise NotImplementedError


def serve_state(
    folder: Path, *, people: People | None = None, models: Any = None, **settings: Any
) -> ServeState:
    """Return the state of a server without models."""
    config = ServeConfig(**settings)
    return ServeState(config=config, models=models or NoModels(), data=folder, people=people or People())


@dataclass
class Reply:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Address:
    """Where a test's server listens."""

    port: int

    def raw(self, *pieces: bytes, wait: float = 20.0) -> bytes:
        """Send bytes, and return everything that the server answers until it closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), wait) as connection:
            for piece in pieces:
                connection.sendall(piece)
            answer = b""
            while received := connection.recv(65536):
                answer += received
        return answer

    def request(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """Send one request exactly as given: no normalized paths, no added headers but Host."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(
                method, target, skip_host="Host" in (headers or {}), skip_accept_encoding=True
            )
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None and "Transfer-Encoding" not in (headers or {}):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            raw = answer.getheaders()
            return Reply(answer.status, {name.lower(): value for name, value in raw}, answer.read(), raw)
        finally:
            connection.close()


@contextmanager
def listening(app: ASGIApp, **settings: Any) -> Iterator[Address]:
    """Run an application in uvicorn, in a thread of this process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", server_header=False, proxy_headers=False, **settings
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the server did not start"
        try:
            yield Address(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(10)
