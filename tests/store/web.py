"""A real HTTP server that can misbehave."""

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler


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


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
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
            kind = "text/html" if self.path.endswith("/") else "application/octet-stream"
            self.send_header("Content-Type", kind)
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
