"""The guard in front of a small application, through real sockets."""

import asyncio
import gc
import hashlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from meditron.core.errors import EngineError, SourceError, StorageError
from meditron.serve import access, login, pages
from meditron.serve.access import require_role
from meditron.serve.connection import EventStream
from meditron.serve.guard import Guard
from meditron.serve.http_protocol import DeadlineProtocol
from meditron.serve.replies import EXCEPTION_HANDLERS
from meditron.store.people import People, Person
from served_app import Address, listening, serve_state

KEYS = {"ann": "a" * 20, "bob": "b" * 20}
PEOPLE = {
    "ann": Person("ann", frozenset(("chat", "admin"))),
    "bob": Person("bob", frozenset(("chat",))),
}
JSON = {"Content-Type": "application/json"}
BROWSER = {"Accept": "text/html,*/*;q=0.8"}


async def who(request: Request) -> Response:
    return JSONResponse({"person": pages.person_of(request).name})


async def echo(request: Request) -> Response:
    return JSONResponse({"bytes": len(await request.body())})


async def fail(request: Request) -> Response:
    kind = request.path_params["kind"]
    known = {
        "engine": EngineError("the model's process died"),
        "source": SourceError("no such model", hint="see /v1/models"),
        "disk": StorageError("disk full"),
    }
    raise known.get(kind) or RuntimeError("secret-detail /home/x")


async def slow(request: Request) -> Response:
    await asyncio.sleep(0.6)
    return Response("done")


async def stream(request: Request) -> Response:
    async def pieces() -> Any:
        yield b"data: 1\n\n"
        if request.query_params.get("fail"):
            raise RuntimeError("secret-detail")
        yield b"data: 2\n\n"

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def page(request: Request) -> Response:
    return HTMLResponse("hello", headers={"Cache-Control": "public", "Content-Security-Policy": "x"})


@require_role("admin")
async def admin(request: Request) -> Response:
    return JSONResponse({})


ROUTES = [
    Route("/", page),
    Route("/who", who),
    Route("/slow", slow),
    Route("/v1/who", who),
    Route("/v1/echo", echo, methods=["POST", "DELETE", "PATCH"]),
    Route("/v1/fail/{kind}", fail),
    Route("/v1/stream", stream),
    Route("/v1/models/{model:path}", lambda request: JSONResponse(request.path_params)),
    Route("/admin", admin),
    Route("/health", lambda request: JSONResponse({})),
    *login.routes,
    *pages.routes,
]


def guarded(folder: Any, guard: dict[str, Any] | None = None, **settings: Any) -> Starlette:
    state = serve_state(folder, **settings)
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Guard, state=state, **(guard or {}))],
        exception_handlers=EXCEPTION_HANDLERS,
    )
    app.state.serve = state
    return app


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A server without keys."""
    app = guarded(
        tmp_path_factory.mktemp("local"),
        guard={"idle_seconds": 0.3, "body_seconds": 0.8},
        allowed_hosts=("llm.example.org",),
        origins=("https://good.example",),
        max_body=4096,
    )
    with listening(app) as address:
        yield address


def people() -> People:
    return People({name: (hashlib.sha256(KEYS[name].encode()).hexdigest(), PEOPLE[name]) for name in KEYS})


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A server with keys."""
    with listening(guarded(tmp_path_factory.mktemp("keyed"), people=people())) as address:
        yield address


@pytest.fixture
def attacked(tmp_path: Any) -> Iterator[Address]:
    """A server with keys, which has seen no wrong key yet."""
    with listening(guarded(tmp_path, people=people())) as address:
        yield address


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST:{port}", 200),
        ("[::1]:{port}", 200),
        ("localhost:9", 200),  # a tunnel's own port
        ("llm.example.org", 200),
        ("llm.example.org:8443", 200),
        ("evil.example", 421),
        ("evil.example:{port}", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:{port}", 421),
        ("llm.example.org.evil.example", 421),
        ("192.168.1.7:{port}", 421),
        ("[fe80::1]:{port}", 421),
        ("2130706433", 421),
        ("", 400),
        ("localhost, evil.example", 400),
        ("user@localhost", 400),
        ("[::1", 400),
        ("localhost:port", 400),
        ("localhost/evil.example", 400),
    ],
)
def test_only_own_hosts_are_answered(local: Address, host: str, status: int) -> None:
    reply = local.request("GET", "/v1/who", headers={"Host": host.format(port=local.port)})
    assert reply.status == status
    if status != 200:
        assert set(json.loads(reply.body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "lines",
    [
        b"GET /v1/who HTTP/1.1\r\n",
        b"GET /v1/who HTTP/1.0\r\n",
        b"GET /v1/who HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n",
        b"GET /v1/who HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n",
        b"GET http://evil.example/v1/who HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /v1/\xc3\xa4 HTTP/1.1\r\nHost: localhost\r\n",
    ],
)
def test_ambiguous_hosts_and_targets_are_bad_requests(local: Address, lines: bytes) -> None:
    assert local.raw(lines + b"Connection: close\r\n\r\n").split()[1] == b"400"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),  # not the host of this request
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another server on this machine
        ({"Origin": "http://127.0.0.1:{port}.evil.example"}, 403),
        ({"Origin": "https://good.example"}, 200),
        ({"Origin": "https://good.example.evil"}, 403),
        ({"Origin": "http://good.example"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://good.example"}, 200),
    ],
)
def test_other_sites_cannot_post(local: Address, headers: dict[str, str], status: int) -> None:
    sent = {name: value.format(port=local.port) for name, value in headers.items()}
    reply = local.request("POST", "/v1/echo", b"{}", {**JSON, **sent})
    assert reply.status == status
    allowed = sent.get("Origin") if status == 200 and "good" in sent.get("Origin", "") else None
    assert reply.headers.get("access-control-allow-origin") == allowed
    assert "access-control-allow-credentials" not in reply.headers


def test_links_from_other_sites_open_pages_but_scripts_and_images_do_not(local: Address) -> None:
    site = {"Sec-Fetch-Site": "cross-site"}
    assert local.request("GET", "/", headers={**site, "Sec-Fetch-Mode": "navigate"}).status == 200
    assert local.request("GET", "/", headers={**site, "Sec-Fetch-Mode": "no-cors"}).status == 403


def test_allowed_origins_reach_the_api_only(local: Address) -> None:
    origin = {"Origin": "https://good.example"}
    asks = {**origin, "Access-Control-Request-Method": "POST"}
    reply = local.request(
        "OPTIONS", "/v1/echo", headers={**asks, "Access-Control-Request-Headers": "authorization, x-a"}
    )
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (204, "https://good.example")
    assert reply.headers["access-control-allow-headers"] == "authorization, x-a"
    assert "Origin" in reply.headers["vary"]
    assert local.request("OPTIONS", "/login", headers=asks).status == 403
    assert local.request("GET", "/who", headers=origin).status == 403
    assert local.request("OPTIONS", "/v1/echo", headers={**asks, "Origin": "https://e.vil"}).status == 403


@pytest.mark.parametrize(
    ("method", "body", "headers", "status"),
    [
        ("POST", b"{}", {"Content-Type": "application/json"}, 200),
        ("POST", b"{}", {"Content-Type": "Application/JSON; charset=utf-8"}, 200),
        ("POST", b"{}", {}, 415),
        ("POST", None, {}, 415),
        ("POST", b"{}", {"Content-Type": "text/plain"}, 415),
        ("POST", b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ("POST", b"{}", {"Content-Type": "text/plain; application/json"}, 415),
        ("POST", b"{}", {"Content-Type": "application/json, text/plain"}, 415),
        ("POST", b"x", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        ("PATCH", b"{}", {"Content-Type": "text/plain"}, 415),
        ("DELETE", b"{}", {"Content-Type": "text/plain"}, 415),
        ("DELETE", None, {}, 200),
        ("POST", b"x" * 4096, {"Content-Type": "application/json"}, 200),
        ("POST", b"x" * 4097, {"Content-Type": "application/json"}, 413),
        ("POST", b"x" * 3_000_000, {"Content-Type": "application/json"}, 413),
    ],
)
def test_bodies_are_json_of_bounded_size(
    local: Address, method: str, body: bytes | None, headers: dict[str, str], status: int
) -> None:
    assert local.request(method, "/v1/echo", body, headers).status == status


def post(headers: bytes, body: bytes = b"") -> bytes:
    head = b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head + headers + b"Connection: close\r\n\r\n" + body


def test_a_chunked_body_is_bounded_while_it_arrives(local: Address) -> None:
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    chunked = post(b"Transfer-Encoding: chunked\r\n")
    assert b'{"bytes":4096}' in local.raw(chunked, chunk * 4, b"0\r\n\r\n")
    answer = local.raw(chunked, chunk * 5)  # the end never comes
    assert answer.split()[1] == b"413"


def test_a_slow_body_is_ended(local: Address) -> None:
    start = time.monotonic()
    assert local.raw(post(b"Content-Length: 9\r\n", b"{")).split()[1] == b"408"
    assert time.monotonic() - start < 5
    with socket.create_connection(("127.0.0.1", local.port), 10) as drip:
        drip.sendall(post(b"Content-Length: 900\r\n"))
        drip.settimeout(0.1)
        for _ in range(50):  # always some progress, never an end
            drip.sendall(b"x")
            try:
                answer = drip.recv(4096)
            except TimeoutError:
                continue
            assert answer.split()[1] == b"408"
            return
    pytest.fail("the body was never ended")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/..%2f..%2fetc/passwd", 404),
        ("/static/../../../../etc/passwd", 404),
        ("/static/..%2f..%2f..%2fguard.py", 404),
        ("/static/%2e%2e/guard.py", 404),
        ("/static/..%5c..%5cguard.py", 404),
        ("/static/%2fetc/passwd", 404),
        ("/static//etc/passwd", 404),
        ("/static/", 404),
        ("/static/style.css%00.png", 400),
        ("/v1/%0d%0aSet-Cookie:x", 400),
        ("/v1/%ff%fe", 400),
        ("/v1/%c0%ae%c0%ae/", 400),
        ("/static/" + "a" * 300, 404),
        ("/static/" + "a/" * 2000, 404),
        ("/" + "a" * 9000, 414),
        ("/?" + "a" * 9000, 414),
        ("//evil.example/", 404),
        ("/v1/models/org%2Fname", 200),
        ("/static/style.css", 200),
    ],
)
def test_hostile_paths_find_nothing(local: Address, target: str, status: int) -> None:
    reply = local.request("GET", target)
    assert reply.status == status
    assert b"root:" not in reply.body
    assert b"import" not in reply.body or status == 200


def test_large_headers_and_ranges_are_refused(local: Address) -> None:
    head = b"GET /static/style.css HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    for lines in (b"X: " + b"a" * 600_000 + b"\r\n", b"X: a\r\n" * 100_000):
        with suppress(ConnectionResetError):  # the server closes without reading the rest
            assert local.raw(head + lines + b"\r\n").split()[1] == b"400"
    ranges = ",".join(f"{number}-{number}" for number in range(0, 4000, 2))
    start = time.monotonic()
    reply = local.request("GET", "/static/style.css", headers={"Range": f"bytes={ranges}"})
    assert reply.status in (200, 206, 400, 416)
    assert len(reply.body) < 1 << 20
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("target", ["/", "/v1/who", "/none", "/static/style.css", "/v1/fail/x", "/v1/stream"])
@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_every_response_has_the_headers(local: Address, target: str, host: str) -> None:
    reply = local.request("GET", target, headers={"Host": host})
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cross-origin-opener-policy"] == "same-origin"
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in reply.headers["permissions-policy"]
    assert reply.headers["cache-control"] == ("no-cache" if target.startswith("/static") else "no-store")
    names = [name for name, _ in reply.raw]
    assert len(set(names)) == len(names)
    assert "server" not in reply.headers


def test_errors_have_openais_shape_and_no_traceback(local: Address, capfd: Any) -> None:
    for kind, status, code in (("engine", 503, "server_error"), ("disk", 507, "server_error")):
        reply = local.request("GET", f"/v1/fail/{kind}")
        assert (reply.status, json.loads(reply.body)["error"]["type"]) == (status, code)
    error = json.loads(local.request("GET", "/v1/fail/source").body)["error"]
    assert error == {
        "message": "no such model (see /v1/models)",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    reply = local.request("GET", "/v1/fail/other")
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body
    printed = capfd.readouterr().err
    assert "RuntimeError" in printed
    assert "Traceback" not in printed


def test_a_browser_gets_a_page(local: Address) -> None:
    reply = local.request("GET", "/none?<script>", headers=BROWSER)
    assert (reply.status, reply.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert b"<h1>Not Found</h1>" in reply.body
    assert b"<script" not in reply.body
    reply = local.request("GET", "/", headers={**BROWSER, "Host": "<script>alert(1)</script>"})
    assert reply.status == 400
    assert b"alert(1)" not in reply.body


def test_a_failing_stream_ends_without_details(local: Address) -> None:
    ask = b"GET /v1/stream%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    whole = local.raw(ask % b"")
    assert whole.endswith(b"0\r\n\r\n")
    half = local.raw(ask % b"?fail=1")
    assert b"data: 1" in half
    assert b"secret" not in half
    assert not half.endswith(b"0\r\n\r\n")  # the client can tell that it is not complete


def test_a_key_is_needed_for_everything_but_health_and_static_files(keyed: Address) -> None:
    for target in ("/health", "/static/style.css", "/login"):
        assert keyed.request("GET", target).status == 200
    for target in ("/v1/who", "/who", "/admin", "/none", "/static", "/health/x", "//health", "/Health"):
        reply = keyed.request("GET", target)
        assert reply.status == 401, target
        assert reply.headers["www-authenticate"].startswith("Bearer")
        assert json.loads(reply.body)["error"]["code"] == "invalid_api_key"
    assert keyed.request("POST", "/v1/echo", b"{}", JSON).status == 401
    assert keyed.request("GET", "/v1/who", headers=bearer("ann")).body == b'{"person":"ann"}'
    assert keyed.request("GET", "/v1/who", headers=bearer("bob")).body == b'{"person":"bob"}'
    scheme = {"Authorization": f"bearer  {KEYS['bob']}"}
    assert keyed.request("GET", "/v1/who", headers=scheme).status == 200


def test_a_preflight_needs_no_key(tmp_path: Any) -> None:
    """Browsers send it without one."""
    app = guarded(tmp_path, people=people(), origins=("https://good.example",))
    origin = {"Origin": "https://good.example"}
    with listening(app) as address:
        asks = {**origin, "Access-Control-Request-Method": "POST"}
        assert address.request("OPTIONS", "/v1/echo", headers=asks).status == 204
        reply = address.request("GET", "/v1/who", headers=origin)
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (401, origin["Origin"])
        assert address.request("GET", "/v1/who", headers={**origin, **bearer("ann")}).status == 200
        assert address.request("OPTIONS", "/v1/echo", headers=origin).status == 401  # no preflight


def test_roles_are_checked(keyed: Address) -> None:
    assert keyed.request("GET", "/admin", headers=bearer("ann")).status == 200
    reply = keyed.request("GET", "/admin", headers=bearer("bob"))
    assert (reply.status, json.loads(reply.body)["error"]["type"]) == (403, "permission_error")
    assert "bob does not have the role admin" in json.loads(reply.body)["error"]["message"]


def test_wrong_keys_are_refused_and_limited(attacked: Address) -> None:
    wrong = [
        f"Bearer {'x' * 20}",
        "Bearer",
        "Basic YTpi",
        f"Bearer {KEYS['ann']}x",
        f"Bearer {KEYS['ann'][1:]}",
    ]
    for value in wrong * 2:
        reply = attacked.request("GET", "/v1/who", headers={"Authorization": value})
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    reply = attacked.request("GET", "/v1/who", headers=bearer("ann"))
    assert reply.status == 429  # the answer does not say whether the key was right
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert attacked.request("GET", "/health").status == 200


def test_wrong_keys_are_forgotten_after_a_minute() -> None:
    now = [0.0]
    door = access.Access(people(), clock=lambda: now[0])
    for _ in range(10):
        with pytest.raises(access.HTTPException):
            door.check_key("wrong", "2001:db8::1")
    with pytest.raises(access.HTTPException, match="429"):
        door.check_key(KEYS["ann"], "2001:db8::ffff")  # the same network of one subscriber
    assert door.check_key(KEYS["ann"], "2001:db8:1::1").name == "ann"
    now[0] = 61.0
    assert door.check_key(KEYS["ann"], "2001:db8::1").name == "ann"


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key of the file is compared, by the one function whose time does not depend on the contents."""
    compared: list[str] = []
    monkeypatch.setattr(
        "meditron.store.people.hmac.compare_digest", lambda a, b: compared.append(b) or a == b
    )
    door = access.Access(people())
    assert door.check_key(KEYS["ann"], "x").name == "ann"
    assert len(compared) == len(KEYS)


def login_cookie(address: Address, name: str = "bob", **headers: str) -> Any:
    body = json.dumps({"key": KEYS[name], "next": "/who"}).encode()
    return address.request("POST", "/login", body, {**JSON, **headers})


def test_a_browser_logs_in_and_out(keyed: Address) -> None:
    reply = keyed.request("GET", "/who", headers=BROWSER)
    assert (reply.status, reply.headers["location"]) == (303, "/login?next=/who")
    assert b'data-next="/who"' in keyed.request("GET", "/login?next=/who", headers=BROWSER).body
    reply = login_cookie(keyed)
    assert (reply.status, json.loads(reply.body)) == (200, {"next": "/who"})
    cookie, *flags = reply.headers["set-cookie"].split("; ")
    assert {flag.lower() for flag in flags} == {"httponly", "path=/", "samesite=strict"}
    assert KEYS["bob"] not in cookie
    session = {"Cookie": cookie}
    assert keyed.request("GET", "/who", headers=session).body == b'{"person":"bob"}'
    assert b"logged in as bob" in keyed.request("GET", "/login", headers={**BROWSER, **session}).body
    # The session is only good for pages of the server itself.
    forged = {**session, **JSON, "Origin": "http://evil.example"}
    assert keyed.request("POST", "/v1/echo", b"{}", forged).status == 403
    # A wrong key is refused even with a session.
    both = {**session, "Authorization": "Bearer wrong"}
    assert keyed.request("GET", "/who", headers=both).status == 401
    assert keyed.request("POST", "/logout", b"{}", {**JSON, **session}).status == 200
    assert keyed.request("GET", "/who", headers=session).status == 401


def test_sessions_differ_and_a_cookie_over_https_is_secure(keyed: Address) -> None:
    origin = f"https://127.0.0.1:{keyed.port}"
    first, second = login_cookie(keyed, Origin=origin), login_cookie(keyed)
    assert "Secure" in first.headers["set-cookie"]
    assert first.headers["set-cookie"].split(";")[0] != second.headers["set-cookie"].split(";")[0]


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "", None, 5])
def test_login_never_leads_to_another_site(keyed: Address, target: Any) -> None:
    body = json.dumps({"key": KEYS["ann"], "next": target}).encode()
    assert json.loads(keyed.request("POST", "/login", body, JSON).body) == {"next": "/"}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"key": 5}', b'{"key": null}', b"\xff", b"[" * 100_000, b"null"]
)
def test_login_refuses_other_bodies(keyed: Address, body: bytes) -> None:
    assert keyed.request("POST", "/login", body, JSON).status == 400


def test_login_counts_wrong_keys(attacked: Address) -> None:
    body = json.dumps({"key": "x" * 20}).encode()
    statuses = [attacked.request("POST", "/login", body, JSON).status for _ in range(11)]
    assert statuses == [401] * 10 + [429]


def test_sessions_expire() -> None:
    now = [0.0]
    door = access.Access(people(), clock=lambda: now[0])
    name = door.open_session(PEOPLE["ann"])
    now[0] = 12 * 3600 - 1
    assert door.find_session(name) == PEOPLE["ann"]
    now[0] += 2
    assert door.find_session(name) is None
    assert door.find_session("") is None


def test_a_request_without_a_body_end_never_reaches_the_route(local: Address) -> None:
    """A client that vanishes in the middle of its body leaves nothing behind."""
    with socket.create_connection(("127.0.0.1", local.port)) as connection:
        connection.sendall(post(b"Content-Length: 9\r\n", b"{"))
    assert local.request("POST", "/v1/echo", b"{}", JSON).status == 200


@contextmanager
def gc_disabled() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class ShortDeadlines(DeadlineProtocol):
    head_seconds = 0.4
    body_seconds = 0.8
    send_seconds = 0.5
    lost: ClassVar[list[DeadlineProtocol]] = []

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(self)
        super().connection_lost(exc)


@pytest.mark.parametrize("target", ["/flood", "/whole"])
def test_a_client_that_does_not_read_loses_its_response(tmp_path: Any, target: str) -> None:
    ended: list[str] = []

    async def flood(request: Request) -> Response:
        async def pieces() -> Any:
            try:
                for _ in range(10_000):
                    yield b"x" * 65536
            finally:
                ended.append("closed")

        return EventStream(pieces())

    async def whole(request: Request) -> Response:
        ended.append("closed")
        return Response(b"x" * (64 << 20))

    app = guarded(tmp_path)
    app.router.routes[:0] = [Route("/flood", flood), Route("/whole", whole)]
    ShortDeadlines.lost.clear()
    with (
        listening(app, http=ShortDeadlines) as address,
        socket.create_connection(("127.0.0.1", address.port)) as silent,
    ):
        silent.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        deadline = time.monotonic() + 10
        with gc_disabled():  # which would close an abandoned generator
            while not (ended and ShortDeadlines.lost) and time.monotonic() < deadline:
                time.sleep(0.05)
        assert len(ShortDeadlines.lost) == 1  # although the client still has it open
    assert ended == ["closed"]


@pytest.fixture
def hasty(tmp_path: Any) -> Iterator[Address]:
    """A server whose connections have little time."""
    with listening(guarded(tmp_path), http=ShortDeadlines, timeout_keep_alive=5) as address:
        yield address


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\n", b"G"])
def test_a_slow_head_loses_its_connection(hasty: Address, first: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), 5) as connection:
        connection.sendall(first)
        start = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - start < 4 and connection.send(b"x: y\r\n"[:1]):
                time.sleep(0.05)
        assert time.monotonic() - start < 3


def test_a_slow_body_that_nobody_reads_loses_its_connection(hasty: Address) -> None:
    head = b"POST /v1/echo HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 9999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", hasty.port), 5) as connection:
        connection.sendall(head)
        assert connection.recv(4096).split()[1] == b"421"
        start = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - start < 4 and connection.send(b"x"):
                time.sleep(0.05)
        assert time.monotonic() - start < 3


def test_a_slow_client_gets_a_long_response(tmp_path: Any) -> None:
    size = 24 << 20  # more than the system buffers; it takes longer to read than `send_seconds`
    app = guarded(tmp_path)
    app.router.routes.insert(0, Route("/whole", lambda request: Response(b"x" * size)))
    with (
        listening(app, http=ShortDeadlines) as address,
        socket.create_connection(("127.0.0.1", address.port)) as slow,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.sendall(b"GET /whole HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received, start = 0, time.monotonic()
        while part := slow.recv(1 << 20):
            received += len(part)
            time.sleep(len(part) / size * 1.5)
        assert time.monotonic() - start > 2 * ShortDeadlines.send_seconds
    assert received > size


def test_long_responses_and_quiet_connections_have_their_time(hasty: Address) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", hasty.port, timeout=10)
    for _ in range(2):  # on one connection, idle for longer than a head may take
        connection.request("GET", "/slow")
        assert connection.getresponse().read() == b"done"
        time.sleep(0.5)
    connection.close()
