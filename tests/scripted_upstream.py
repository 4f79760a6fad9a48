"""An OpenAI-compatible server that streams what a script says, and fails where a script says so.

The last message (or the prompt) is the script if it begins with `!`. Other texts are answered in capitals.

    !slow 0.1 50     fifty words, one each 0.1 s
    !wait 3          silence of 3 s, then the answer
    !status 500      this HTTP status, with Retry-After: 7
    !half            a cut JSON in the stream
    !cut             the connection closes in the middle of the stream
    !junk            no server-sent events at all
    !error           an error event within the stream
    !odd             an event whose choices have another form
    !surrogate       half of a surrogate pair within the answer
    !say TEXT        this text, for example hostile HTML
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Upstream(ThreadingHTTPServer):
    """The server. `active` counts requests that it is answering, `abandoned` those whose client left."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, models: tuple[str, ...] = ("toy",), port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.models = models
        self.lock = threading.Lock()
        self.active = self.most_active = self.answered = self.abandoned = self.failed = 0
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None:
        """Clients that leave are part of the tests."""

    def count(self, **changes: int) -> None:
        """Change counters."""
        with self.lock:
            for name, change in changes.items():
                setattr(self, name, getattr(self, name) + change)
            self.most_active = max(self.most_active, self.active)


class _Handler(BaseHTTPRequestHandler):
    server: Upstream
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(200, {"object": "list", "data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
        if self.path.endswith("/embeddings"):
            self._embed(body["input"])
            return
        if "messages" in body:
            script = body["messages"][-1]["content"] if body["messages"] else ""
        else:
            script = body.get("prompt", "")
        self.server.count(active=1)
        try:
            self._answer(script if isinstance(script, str) else "ids", body)
            self.server.count(answered=1)
        except OSError:
            self.server.count(abandoned=1)
            self.close_connection = True
        finally:
            self.server.count(active=-1)

    def _answer(self, script: str, body: dict[str, Any]) -> None:
        verb, _, rest = script[1:].partition(" ") if script.startswith("!") else ("", "", "")
        words = [f"{word} " for word in script.upper().split()[:20]] or ["NOTHING"]
        gap = 0.0
        if verb in ("status", "half", "cut", "junk", "error", "odd"):
            self.server.count(failed=1)
        if verb == "status":
            message = {"error": {"message": f"status {rest}, as the script says"}}
            self._reply(int(rest), message, {"Retry-After": "7"})
            return
        if verb == "junk":
            self._reply(200, {"what": "no stream"})
            return
        if verb == "wait":
            self._wait(float(rest))
        elif verb == "slow":
            gap, words = float(rest.split()[0]), ["word "] * int(rest.split()[1])
        elif verb == "say":
            words = [rest]
        elif verb == "surrogate":
            words = ["half \ud83d of a pair"]
        self._stream(words, gap, verb, "messages" in body)

    def _embed(self, texts: list[Any]) -> None:
        rows = [{"index": index, "embedding": [0.5, -0.5]} for index, _ in enumerate(texts)]
        self._reply(200, {"object": "list", "data": rows, "usage": {"prompt_tokens": 1, "total_tokens": 1}})

    def _stream(self, words: list[str], gap: float, verb: str, is_chat: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for number, word in enumerate(words):
            if number == len(words) // 2 and verb in ("half", "cut", "error", "odd"):
                ending = {
                    "half": b'data: {"choices": [{"ind',
                    "cut": b"",
                    "error": _event({"error": "lost"}),
                    "odd": _event({"choices": [{"delta": ["a", "list"]}]}),
                }
                self._write(ending[verb])
                return
            self._write(_event(_chunk(word, is_chat)))
            self._wait(gap)
        usage = {"prompt_tokens": 3, "completion_tokens": len(words)}
        self._write(_event(_chunk(None, is_chat)) + _event({"choices": [], "usage": usage}))
        self._write(b"data: [DONE]\n\n")

    def _wait(self, seconds: float) -> None:
        """Sleep, and notice within 20 ms if the client leaves."""
        end = time.monotonic() + seconds
        self.connection.settimeout(0.02)
        while time.monotonic() < end:
            with suppress(TimeoutError):
                if self.connection.recv(1) == b"":
                    raise ConnectionResetError
        self.connection.settimeout(None)

    def _write(self, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()

    def _reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self._write(content)

    def log_message(self, *_: object) -> None:
        pass


def _event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def _chunk(text: str | None, is_chat: bool) -> dict[str, Any]:
    piece = {"delta": {"content": text} if text else {}} if is_chat else {"text": text or ""}
    choice = {"index": 0, **piece, "finish_reason": None if text else "stop"}
    return {"id": "x", "object": "chunk", "choices": [choice]}


@contextmanager
def scripted_upstream(*models: str, port: int = 0) -> Iterator[Upstream]:
    """Run the server in a thread."""
    with Upstream(models or ("toy",), port) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()
