"""A local OpenAI-compatible server that fails in every way that servers fail."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers a prompt with its own text in capitals, after the failures that the test has planned."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.models = ["toy"]
        self.failures: Callable[[str, int], str] = lambda prompt, attempt: ""
        """Prompt and number of the attempt → name of the failure."""
        self.text: Callable[[str, int], str] = lambda prompt, seed: prompt.upper()
        """Prompt and seed → the answer."""
        self.attempts: dict[str, int] = {}
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.active = self.most_active = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None:
        """Clients that give up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.reply(200, json.dumps({"data": [{"id": name} for name in self.server.models]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers))
            attempt = self.server.attempts[prompt] = self.server.attempts.get(prompt, 0) + 1
            self.server.active += 1
            self.server.most_active = max(self.server.most_active, self.server.active)
        time.sleep(0.02)
        try:
            self.answer(
                self.server.text(prompt, body["seed"]),
                "messages" in body,
                self.server.failures(prompt, attempt),
            )
        finally:
            with self.server.lock:
                self.server.active -= 1

    def answer(self, text: str, chat: bool, failure: str) -> None:
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        answer = {"choices": [{**choice, "finish_reason": "stop"}], "usage": {"completion_tokens": 7}}
        content = json.dumps(answer).encode()
        if failure.isdecimal():
            message = json.dumps({"error": {"message": f"no, {self.headers.get('Authorization')}"}}).encode()
            self.reply(int(failure), message, {"Retry-After": "0.3"} if failure == "429" else {})
        elif failure == "half":
            self.reply(200, content[: len(content) // 2])
        elif failure == "cut":
            self.reply(200, content[: len(content) // 2], length=len(content))
        elif failure == "closed":
            self.connection.close()
        elif failure == "never":
            time.sleep(4)
        elif failure == "drip":
            self.reply(200, b"", length=1000)
            for _ in range(40):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
        elif failure.startswith("data:"):
            self.reply(200, failure.encode(), {"Content-Type": "text/event-stream"})
        elif failure == "event without an end":
            self.reply(200, b"data: ", {"Content-Type": "text/event-stream"}, length=1000)
            for _ in range(40):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.1)
        elif failure == "damaged gzip":
            self.reply(200, b"no gzip", {"Content-Encoding": "gzip"})
        elif failure[:1] in ("{", "["):
            self.reply(200, failure.encode())
        elif failure == "other":
            self.reply(200, b'{"choices": []}')
        else:
            self.reply(200, content)

    def reply(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def scripted_judge(decide: Callable[[str, str], bool | str]) -> Callable[[str, int], str]:
    """Return a text function of a judge: `decide(answer, criterion)` gives its verdict, or its whole text."""

    def text(prompt: str, seed: int) -> str:
        parts = re.search(
            r"=== ANSWER TO GRADE ===\n(.*)\n=== CRITERION ===\n(.*)\n=== END ===", prompt, re.DOTALL
        )
        assert parts is not None, prompt
        verdict = decide(parts[1], parts[2])
        if isinstance(verdict, str):
            return verdict
        return f"Because of the words.\n\nVerdict: {'met' if verdict else 'not met'}"

    return text


@contextmanager
def running_server() -> Iterator[Server]:
    """Run a server in a thread."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()
