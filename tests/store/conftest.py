"""An empty cache for every test, and a real HTTP server that can misbehave."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDITRON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@dataclass
class Site:
    """What the server holds, how it behaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"one"'
    ranges: bool = True
    drops: list[int] = field(default_factory=list)
    """Bytes of the body after which the next connections break."""
    statuses: list[int] = field(default_factory=list)
    """What the next requests are answered with instead."""
    redirect: str | None = None
    asked: list[dict[str, str]] = field(default_factory=list)


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(dict(self.headers.items()) | {"path": self.path})
            body = site.files.get(self.path.lstrip("/"))
            if site.statuses:
                self.respond(site.statuses.pop(0), b"")
            elif site.redirect:
                self.send_response(302)
                self.send_header("Location", site.redirect)
                self.end_headers()
            elif body is None:
                self.respond(404, b"")
            else:
                self.send_body(body)

        def send_body(self, body: bytes) -> None:
            asked = self.headers.get("Range")
            valid = self.headers.get("If-Range") in (None, site.etag)
            if not (asked and site.ranges and valid):
                self.respond(200, body)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.respond(416, b"", f"bytes */{len(body)}")
            else:
                self.respond(206, body[start:], f"bytes {start}-{len(body) - 1}/{len(body)}")

        def respond(self, status: int, body: bytes, span: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if site.etag:
                self.send_header("ETag", site.etag)
            if span:
                self.send_header("Content-Range", span)
            self.end_headers()
            if body and site.drops:
                self.wfile.write(body[: site.drops.pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("meditron.store.download._PAUSES", (0.01, 0.01))
    held = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(held))
    held.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield held
    server.shutdown()
    thread.join()
    server.server_close()
