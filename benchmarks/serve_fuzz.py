"""Fuzzing of `meditron serve`: its OpenAPI document, random values for all routes, and mutated bytes.

python -m benchmarks.serve_fuzz                  ten minutes
python -m benchmarks.serve_fuzz --seconds 30     half a minute

The server runs in front of a scripted upstream, which fails in every tenth answer. The only statuses of 5xx
that may be seen are those that the script caused (502, 503, 504). After each round the server must still be
healthy, must have freed every slot, and must not have grown.
"""

import argparse
import json
import random
import re
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok
from starlette.routing import Route

from meditron.serve.app import build_app

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from scripted_upstream import Upstream, scripted_upstream  # type: ignore[import-not-found]
from serve_process import Served, chat_request, serving  # type: ignore[import-not-found]
from served_app import serve_state  # type: ignore[import-not-found]

_EXAMPLES = 25  # of an operation in a round
_FAILURES = ("!status 500", "!status 429", "!half", "!cut", "!junk", "!error", "!slow 0.001 50", "!wait 0.05")
_UPSTREAM_STATUSES = frozenset({502, 503, 504})
_GROWTH = 96 << 20  # bytes of memory after the first round, of which fragmentation is a part
_PARAMETER = re.compile(r"\{[^}]+\}")
_VALUES = (
    *("", "a", "toy", "..", "\0", "<b>", "%", "-1", "0", "9" * 30, "é" * 300, "x" * 5000, "NaN", "latest"),
    *("user", "system", "2026-01-01", "a/b", "' OR 1=1 --", "\N{GRINNING FACE}", "{{ 7 * 7 }}", "md"),
)
_NAMES = (
    *("name", "model", "models", "text", "parent", "conversation", "system", "sampling", "prompt", "title"),
    *("messages", "label", "version", "reason", "answer", "question", "scores", "comment", "rater", "key"),
    *("next", "page", "limit", "before", "after", "query", "tags", "metadata", "content", "tokens", "input"),
)
_PROBLEMS = re.compile(rb"Traceback|File \"|site-packages")


class Fuzzer:
    """Sends requests, and collects what must not happen."""

    def __init__(self, server: Served, upstream: Upstream, number: int) -> None:
        self.server, self.upstream = server, upstream
        self.random = random.Random(number)  # noqa: S311
        self.statuses: Counter[int] = Counter()
        self.problems: list[str] = []

    def check(self, label: str, status: int, body: bytes) -> None:
        """Record a response, and a problem if it is one that no request may get."""
        self.statuses[status] += 1
        failed = sum(self.statuses[each] for each in _UPSTREAM_STATUSES)
        if status >= 500 and (status not in _UPSTREAM_STATUSES or failed > self.upstream.failed):
            self.problems.append(f"{label}: {status} {body[:300]!r}")
        if _PROBLEMS.search(body):
            self.problems.append(f"{label}: the answer shows code: {body[:300]!r}")

    def run_operation(self, operation: Any, number: int, mode: Any) -> None:
        """Send requests to one operation of the document."""

        @seed(number)
        @settings(
            max_examples=_EXAMPLES,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode), st.integers(0, 99))
        def send(case: Any, choice: int) -> None:
            if isinstance(case.body, dict):
                self._aim(case.body, choice)
            response = case.call(base_url=f"http://127.0.0.1:{self.server.port}", timeout=30)
            self.check(
                f"{case.method} {case.path} {case.body!r:.300}", response.status_code, response.content
            )

        with suppress(Unsatisfiable):  # an operation without parameters has no wrong ones
            send()

    def _aim(self, body: dict[str, Any], choice: int) -> None:
        """Let most requests name the model that exists, and some a script that fails."""
        if choice < 80:
            body["model"] = "toy"
        if choice < 10:
            script = _FAILURES[choice % len(_FAILURES)]
            if "messages" in body:
                body["messages"] = [{"role": "user", "content": script}]
            elif "prompt" in body:
                body["prompt"] = script

    def run_bytes(self, count: int) -> None:
        """Send mutated bytes of valid requests, some of whose clients leave."""
        for _ in range(count):
            request = bytearray(chat_request("hello", stream=self.random.random() < 0.5))
            for _ in range(self.random.randrange(1, 6)):
                self._mutate(request)
            try:
                with socket.create_connection(("127.0.0.1", self.server.port), 5) as connection:
                    connection.sendall(request)
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(self.random.choice((0.001, 1.0)))
                    answer = connection.recv(1 << 16)
            except OSError:
                continue
            if answer[:5] == b"HTTP/":
                self.check(f"{bytes(request[:300])!r}", int(answer.split()[1]), answer)

    def run_routes(self, routes: Sequence[Route], count: int) -> None:
        """Send requests to random routes, the pages' included, with random values in path, query and body."""
        for _ in range(count):
            route = self.random.choice(routes)
            method = self.random.choice(sorted(route.methods or ()))
            target = _PARAMETER.sub(lambda _: quote(self.random.choice(_VALUES), safe=""), route.path)
            query = [(self.random.choice(_NAMES), self.random.choice(_VALUES)) for _ in range(2)]
            headers = {"Accept": self.random.choice(("text/html", "*/*")), "Content-Type": "application/json"}
            body = None if method in ("GET", "HEAD") else json.dumps(self._value(0)).encode()
            reply = self.server.request(method, f"{target}?{urlencode(query)}", body, headers)
            self.check(f"{method} {target} {body!r:.300}", reply.status, reply.body)

    def _value(self, depth: int) -> Any:  # any JSON
        """Return a random JSON value; at the top mostly an object with the names that bodies have."""
        choice = self.random.randrange(3 if depth > 2 else 6)
        if depth == 0 or choice > 4:
            return {
                self.random.choice(_NAMES): self._value(depth + 1) for _ in range(self.random.randrange(7))
            }
        if choice > 2:
            return [self._value(depth + 1) for _ in range(self.random.randrange(4))]
        return (
            self.random.choice((None, True, -1, 0, 1 << 64, 1e308)) if choice else self.random.choice(_VALUES)
        )

    def _mutate(self, request: bytearray) -> None:
        place = self.random.randrange(len(request))
        choice = self.random.randrange(4)
        if choice == 0:
            request[place] = self.random.randrange(256)
        elif choice == 1:
            del request[place : place + self.random.randrange(1, 20)]
        elif choice == 2:
            request[place:place] = self.random.choice((b"\0", b"\r\n", b"\xff", b"%00", b"A" * 9000, b" "))
        else:
            request[place:place] = request[: self.random.randrange(200)]

    def check_health(self, first_memory: float) -> None:
        """Record a problem if the server lost a slot, grew, or does not answer."""
        deadline = time.monotonic() + 10
        while (figures := self.figures())["meditron_running_requests"] and time.monotonic() < deadline:
            time.sleep(0.05)
        if figures["meditron_running_requests"] or figures["meditron_waiting_requests"]:
            self.problems.append(f"a slot or a place in the queue is lost: {figures}")
        if figures["process_resident_memory_bytes"] > first_memory + _GROWTH:
            self.problems.append(f"memory grew from {first_memory:,.0f}: {figures}")
        reply = self.server.ask("hello")
        if reply.status != 200:
            self.problems.append(f"the server does not answer any more: {reply.status}")

    def figures(self) -> dict[str, float]:
        """Return the sums of the server's metrics."""
        sums: Counter[str] = Counter()
        for line in self.server.request("GET", "/metrics").body.decode().splitlines():
            if line[0] != "#":
                sums[line.split("{")[0].split(" ")[0]] += float(line.rsplit(" ", 1)[1])  # type: ignore[assignment]
        return sums  # type: ignore[return-value]


@contextmanager
def _servers() -> Iterator[tuple[Served, Upstream]]:
    with (
        tempfile.TemporaryDirectory() as folder,
        scripted_upstream() as upstream,
        serving(Path(folder), upstream.url, "--max-body", "65536") as server,
    ):
        yield server, upstream


def fuzz(seconds: float, number: int, progress: Callable[[str], None] = lambda text: None) -> Fuzzer:
    """Fuzz a new server for some seconds; return what was seen."""
    with _servers() as (server, upstream):
        server.ask("hello")
        fuzzer = Fuzzer(server, upstream, number)
        document = json.loads(server.request("GET", "/openapi.json").body)
        schema = schemathesis.openapi.from_dict(document)
        operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
        modes = list(schemathesis.GenerationMode)
        routes = [each for each in build_app(serve_state(Path())).routes if isinstance(each, Route)]
        end, turn, memory = time.monotonic() + seconds, number * 1000, 0.0
        while time.monotonic() < end and not fuzzer.problems:
            for operation in operations:
                fuzzer.run_operation(operation, turn, modes[turn % len(modes)])
                turn += 1
                if time.monotonic() > end or fuzzer.problems:
                    break
            fuzzer.run_bytes(_EXAMPLES)
            fuzzer.run_routes(routes, 20 * _EXAMPLES)
            memory = memory or fuzzer.figures()["process_resident_memory_bytes"]
            fuzzer.check_health(memory)
            progress(f"{sum(fuzzer.statuses.values()):,} requests: {dict(sorted(fuzzer.statuses.items()))}")
        if "Traceback" in server.errors.read_text():
            fuzzer.problems.append(server.errors.read_text()[-3000:])
        if server.stop() != 0:
            fuzzer.problems.append("SIGTERM did not end the server with exit code 0")
        return fuzzer


def main() -> int:
    """Fuzz, and print the problems."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    fuzzer = fuzz(arguments.seconds, arguments.seed, print)
    print(*fuzzer.problems, sep="\n")
    return int(bool(fuzzer.problems))


if __name__ == "__main__":
    sys.exit(main())
