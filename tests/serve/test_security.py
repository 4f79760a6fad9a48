"""The security of the real `meditron serve` process, in front of a scripted upstream."""

import hashlib
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from meditron.cli import main
from scripted_upstream import Upstream, scripted_upstream
from serve_process import Served, chat_request, serving

AT_ONCE = 3.0  # seconds on a busy machine; 0.03 s on an idle one
KEY = "k" * 24
RATER_KEY = "r" * 24
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(1)</script>'


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with scripted_upstream("toy", HOSTILE) as server:
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Served]:
    """A server with two slots, and two places in the queue."""
    flags = ("--slots", "2", "--queue", "2", "--queue-seconds", "2", "--max-body", "65536", "--log-content")
    with serving(tmp_path_factory.mktemp("served"), upstream.url, *flags) as server:
        yield server


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait for a condition; return how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it did not happen"
        time.sleep(0.01)
    return time.monotonic() - start


def metric(server: Served, name: str, headers: dict[str, str] | None = None) -> float:
    text = server.request("GET", "/metrics", headers=headers).body.decode()
    values = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name}{{")]
    return sum(map(float, values))


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({"Host": "evil.example"}, {421}),
        ({"Host": "127.0.0.1.evil.example:80"}, {421}),
        ({"Origin": "http://evil.example"}, {403}),
        ({"Origin": "null"}, {403}),
        ({"Sec-Fetch-Site": "cross-site"}, {403}),
        ({"Content-Type": "text/plain"}, {415}),
        ({"Content-Type": "application/x-www-form-urlencoded"}, {415}),
        ({"Content-Encoding": "gzip"}, {415}),
    ],
)
def test_forged_requests_never_reach_a_model(
    served: Served, upstream: Upstream, headers: dict[str, str], statuses: set[int]
) -> None:
    before = len(upstream.bodies)
    reply = served.ask("hello", headers=headers)
    assert reply.status in statuses
    assert set(json.loads(reply.body)["error"]) == {"message", "type", "param", "code"}
    assert len(upstream.bodies) == before


def test_hostile_bodies_are_client_errors(served: Served) -> None:
    def post(body: bytes) -> int:
        headers = {"Content-Type": "application/json"}
        return served.request("POST", "/v1/chat/completions", body, headers).status

    assert post(b"x" * 65537) == 413
    for body in (
        b"",
        b"[",
        b"null",
        b"\xff",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"NaN",
        b"1e999",
        b'"\\ud800"',
    ):
        assert post(body) == 400, body[:20]
    message = '{"model": "toy", "messages": [{"role": "user", "content": "%s"}]}'
    assert post((message % "\\ud800").encode()) in (200, 400)
    assert post((message % "\\u0000").encode()) in (200, 400)
    assert post(b'{"model": "toy", "messages": [], "messages": []}') == 400
    assert served.ask("hello", n=10**9).status == 400
    assert served.ask("hello", max_tokens=10**12).status in (200, 400)
    assert served.ask("hello", n_discard=-1).status == 400  # the field of CVE-2026-21869
    for setting in ({"temperature": 999999.0}, {"top_p": -1.0}, {"repetition_penalty": 0.0}, {"seed": "x"}):
        assert served.ask("hello", **setting).status == 400
    assert served.ask("hello", tools=[{"type": "function"}]).status == 400
    assert served.request("GET", "/slots").status == served.request("GET", "/props").status == 404


@pytest.mark.parametrize(
    "target", ["/..%2f..%2fetc/passwd", "/static/%2e%2e/%2e%2e/run.py", "/v1/models/..%2f"]
)
def test_paths_stay_inside(served: Served, target: str) -> None:
    reply = served.request("GET", target)
    assert reply.status == 404
    assert b"root:" not in reply.body


@pytest.mark.parametrize("script", ["!status 500", "!status 401", "!half", "!cut", "!junk", "!error", "!odd"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_upstream_is_a_503_and_never_a_traceback(served: Served, script: str, stream: bool) -> None:
    reply = served.ask(script, stream=stream)
    assert reply.status == 503 or (stream and b'"error"' in reply.body)
    assert b"Traceback" not in reply.body
    assert b"its log has the reason" not in reply.body  # the other server is named instead
    assert served.ask("hello").status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_half_of_a_surrogate_pair_is_replaced(served: Served, stream: bool) -> None:
    reply = served.ask("!surrogate", stream=stream)
    assert (reply.status, b"half ? of a pair" in reply.body) == (200, True)


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_an_upstream_that_ignores_n_is_named(served: Served, path: str) -> None:
    asked = (
        {"messages": [{"role": "user", "content": "hello"}]}
        if path.startswith("chat")
        else {"prompt": "hello"}
    )
    body = json.dumps({"model": "toy", "n": 4, **asked}).encode()
    reply = served.request("POST", f"/v1/{path}", body, {"Content-Type": "application/json"})
    assert (reply.status, b"1 answers instead of 4" in reply.body) == (503, True)


def test_an_upstream_that_starts_later_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with serving(tmp_path, f"http://127.0.0.1:{port}/v1") as server:
        assert server.request("GET", "/ready").status == 503
        with scripted_upstream("toy", port=port):
            eventually(lambda: server.request("GET", "/ready").status == 200)
            models = json.loads(server.request("GET", "/chat/models").body)["models"]
    assert [model["id"] for model in models] == ["toy"]


def test_an_upstream_that_is_busy_says_when_to_come_back(served: Served) -> None:
    reply = served.ask("!status 429")
    assert (reply.status, reply.headers["retry-after"]) == (429, "7")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_before_the_first_token_frees_its_slot(
    served: Served, upstream: Upstream, stream: bool
) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(chat_request("!wait 60", stream=stream))
        eventually(lambda: upstream.active == 1)
    assert eventually(lambda: upstream.active == 0) < AT_ONCE


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_vanishes_frees_its_slot(served: Served, upstream: Upstream, stream: bool) -> None:
    abandoned = upstream.abandoned
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(chat_request("!slow 0.05 2000", stream=stream))
        eventually(lambda: upstream.active == 1)
        if stream:
            assert b"200 OK" in client.recv(4096)
    seconds = eventually(lambda: upstream.active == 0)
    assert upstream.abandoned == abandoned + 1
    assert seconds < AT_ONCE
    assert metric(served, "meditron_running_requests") == 0


def test_the_queue_is_bounded_and_a_waiting_client_can_leave_it(served: Served, upstream: Upstream) -> None:
    clients, before = [], len(upstream.bodies)
    try:
        for number in range(4):
            client = socket.create_connection(("127.0.0.1", served.port))
            clients.append(client)
            client.sendall(chat_request("!slow 0.05 2000"))
            name = "meditron_running_requests" if number < 2 else "meditron_waiting_requests"
            eventually(lambda name=name, number=number: metric(served, name) == number % 2 + 1)
        assert upstream.active == 2
        refused = served.ask("hello")
        assert refused.status == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert json.loads(refused.body)["error"]["type"] == "rate_limit_error"
        clients[3].close()
        assert eventually(lambda: metric(served, "meditron_waiting_requests") < 2) < AT_ONCE
        assert upstream.active == 2  # requests with a slot do not notice
        answer = clients[2].recv(4096)  # it waited two seconds
        assert b" 503 " in answer.splitlines()[0]
        assert b"retry-after" in answer.lower()
    finally:
        for client in clients:
            client.close()
    eventually(lambda: upstream.active == 0)
    assert len(upstream.bodies) == before + 2  # the two that waited were never sent to a model
    assert served.ask("hello").status == 200


def test_a_full_disk_does_not_stop_the_server(served: Served) -> None:
    """No file of the process can grow, those of the log and of stderr included."""
    old = resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (0, old[1]))
    try:
        for _ in range(3):
            assert served.ask("hello").status == 200
        assert served.ask("hello", stream=True).body.endswith(b"[DONE]\n\n")
        assert served.ask("!status 500").status == 503
        assert served.request("GET", "/health").status == 200
    finally:
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, old)
    assert served.ask("hello").status == 200


class Markup(HTMLParser):
    """Finds the links of a page, and what only a hostile text can have put there."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.hostile: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        source = values.get("src", "/static/")
        is_foreign = not source.startswith("/") or (tag == "script" and not source.startswith("/static/"))
        is_inline = tag == "script" and "src" not in values
        schemes = [v for v in values.values() if v.strip().lower().startswith(("javascript:", "data:text"))]
        if is_foreign or is_inline or schemes or any(name[:2] == "on" for name in values):
            self.hostile.append(self.get_starttag_text() or tag)
        if tag == "a" and values.get("href", "").startswith("/"):
            self.links.add(values["href"].partition("#")[0])


def test_hostile_names_and_answers_are_text_on_every_page(served: Served) -> None:
    """Pages are followed from the first one. Parts of the server that are not there answer with 404."""
    json_body = {"Content-Type": "application/json"}
    bodies = {
        "/chat/send": {"models": [HOSTILE], "text": f"!say {HOSTILE} [a](javascript:alert(1))"},
        "/api/prompts": {"name": "hostile", "system": HOSTILE, "description": HOSTILE},
    }
    for address, body in bodies.items():
        reply = served.request("POST", address, json.dumps(body).encode(), json_body)
        assert reply.status in (200, 201, 404)
    assert served.ask(f"!say {HOSTILE}").status == 200
    assert served.ask(HOSTILE, model=HOSTILE).status == 200
    todo, done = {"/", f"/{HOSTILE}".replace(" ", "%20"), "/login?next=%22%3E%3Cscript%3E"}, set[str]()
    while todo and len(done) < 40:
        address = todo.pop()
        done.add(address)
        page = served.request("GET", address, headers={"Accept": "text/html"})
        assert page.status in (200, 404), address
        if page.headers["content-type"].startswith("text/html"):
            markup = Markup(page.body)
            assert not markup.hostile, address
            todo |= markup.links - done
    assert len(done) >= 3


def test_many_clients_that_leave_at_random_lose_no_slot(served: Served) -> None:
    def visit(number: int) -> None:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(chat_request("!slow 0.01 30", stream=number % 2 == 0))
            client.settimeout(0.01 * (number % 13))
            with suppress(TimeoutError, BlockingIOError):
                client.recv(4096)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
        time.sleep(0.005)
    for thread in threads:
        thread.join()
    eventually(lambda: metric(served, "meditron_running_requests") == 0)
    assert metric(served, "meditron_waiting_requests") == 0
    assert served.ask("hello").status == 200


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_beyond_this_machine_a_key_is_needed(capfd: pytest.CaptureFixture[str]) -> None:
    words = ["serve", "--upstream", "http://127.0.0.1:1/v1", "--host", "0.0.0.0", "--port", "0"]  # noqa: S104
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "--api-key-file" in capfd.readouterr().err


ANN, RATER = ({"Authorization": f"Bearer {key}"} for key in (KEY, RATER_KEY))


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Served]:
    """A server with keys and one slot."""
    folder = tmp_path_factory.mktemp("keyed")
    keys = folder / "keys.toml"
    keys.write_text(
        f'[ann]\nkey_sha256 = "{digest(KEY)}"\nroles = ["chat", "admin"]\n'
        f'[rater]\nkey_sha256 = "{digest(RATER_KEY)}"\nroles = ["review"]\n'
    )
    with serving(folder, upstream.url, "--api-key-file", str(keys), "--slots", "1") as server:
        yield server


def test_other_users_cannot_read_the_data(served: Served) -> None:
    assert (served.errors.parent / "data").stat().st_mode & 0o777 == 0o700


def test_keys_and_roles(keyed: Served) -> None:
    assert keyed.request("GET", "/health").status == 200
    for target in ("/v1/models", "/metrics", "/openapi.json", "/", "/ready"):
        assert keyed.request("GET", target).status == 401, target
    assert keyed.ask("hello").status == 401
    assert keyed.ask("hello", headers={"Authorization": f"Bearer {KEY[1:]}"}).status == 401
    assert keyed.ask("hello", headers=ANN).status == 200
    assert keyed.ask("hello", headers=RATER).status == 403
    assert keyed.request("GET", "/v1/models", headers=RATER).status == 403
    assert keyed.request("GET", "/metrics", headers=RATER).status == 403
    assert keyed.request("GET", "/metrics", headers=ANN).status == 200
    body = json.dumps({"key": KEY}).encode()
    login = keyed.request("POST", "/login", body, {"Content-Type": "application/json"})
    cookie = {"Cookie": login.headers["set-cookie"].split(";")[0]}
    assert keyed.ask("hello", headers=cookie).status == 200
    assert keyed.ask("hello", headers={**cookie, "Origin": "http://evil.example"}).status == 403
    assert KEY not in keyed.errors.read_text()
    wrong = json.dumps({"key": KEY[1:]}).encode()
    assert keyed.request("POST", "/login", wrong, {"Content-Type": "application/json"}).status == 401

    def logins() -> list[tuple[str, str | None]]:
        lines = (keyed.errors.parent / "data" / "audit.jsonl").read_text().splitlines()
        return [
            (line["event"], line.get("person")) for line in map(json.loads, lines) if "login" in line["event"]
        ]

    eventually(lambda: logins() == [("login", "ann"), ("login refused", None)])


def test_sigterm_lets_running_requests_end_and_refuses_new_ones(keyed: Served, upstream: Upstream) -> None:
    """The last test of the server with keys."""
    ask = partial(keyed.ask, headers=ANN)
    assert ask("hello").status == 200
    answers: list[Any] = []
    running = threading.Thread(target=lambda: answers.append(ask("!slow 0.05 30", stream=True)))
    running.start()
    eventually(lambda: upstream.active == 1)
    waiting = threading.Thread(target=lambda: answers.append(ask("waits")))
    waiting.start()
    eventually(lambda: metric(keyed, "meditron_waiting_requests", ANN) == 1)
    keyed.process.terminate()
    waiting.join(10)
    assert (answers[0].status, "retry-after" in answers[0].headers) == (503, True)
    refused = ask("new")
    assert (refused.status, "retry-after" in refused.headers) == (503, True)
    running.join(10)
    assert answers[1].body.count(b"word ") == 30
    assert answers[1].body.endswith(b"data: [DONE]\n\n")
    assert keyed.process.wait(10) == 0
    assert "Traceback" not in keyed.errors.read_text()
