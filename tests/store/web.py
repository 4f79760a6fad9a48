"""A real HTTP server that can misbehave."""

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler


@dataclass
class Site:
    """What the server holds, how it behaves, and what it was requests."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"one"'
    ranges: bool = True
    if_range: bool = True
    """Whether it minds If-Range."""
    drops: list[int] = field(default_factory=list)
    """Bytes of the body after which the next connections break."""
    statuses: list[int] = field(default_factory=list)
    """What the next requests are answered with instead."""
    redirect: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """More headers of every answer, or others than its own."""
    status: int = 200
    """What a request for a whole file is answered with."""
    whole: int | None = None
    """The size that Content-Range says, where it is another than the file's."""
    requests: list[dict[str, str]] = field(default_factory=list)


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(dict(self.headers.items()) | {"path": self.path})
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
            requests = self.headers.get("Range")
            valid = self.headers.get("If-Range") in (None, site.etag) or not site.if_range
            if not (requests and site.ranges and valid):
                self.respond(site.status, body)
                return
            start = int(requests.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.respond(416, b"", f"bytes */{len(body)}")
            else:
                self.respond(206, body[start:], f"bytes {start}-{len(body) - 1}/{site.whole or len(body)}")

        def respond(self, status: int, body: bytes, span: str | None = None) -> None:
            kind = "text/html" if self.path.endswith("/") else "application/octet-stream"
            own = {"Content-Length": str(len(body)), "Content-Type": kind}
            own |= ({"ETag": site.etag} if site.etag else {}) | ({"Content-Range": span} if span else {})
            self.send_response(status)
            for name, value in (own | site.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if body and site.drops:
                self.wfile.write(body[: site.drops.pop(0)])
                self.close_connection = True
            else:
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    return Handler
