"""Checks of every request before any route sees it, and headers of every response.

A pure ASGI middleware: it neither buffers responses nor hides that a client went away. It checks, in this
order, the path, the Host header, the origin, the key, and the type, size and speed of the body.
"""

from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meditron.serve.access import Access
from meditron.serve.bodies import check_body_type, read_body, replay
from meditron.serve.hosts import HostRule
from meditron.serve.origins import OriginRule
from meditron.serve.replies import error_reply, wants_page
from meditron.serve.state import ServeState

__all__ = ["Guard", "session_cookie"]

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_OPEN_PATHS = frozenset({"/health", "/login"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_TARGET = 8192  # bytes of path and query


def session_cookie(scope: Scope) -> str:
    """Return the name of the session's cookie. Cookies ignore ports: each server needs a name of its own."""
    return f"meditron-{(scope.get('server') or ('', 0))[1]}"


class Guard:
    """The middleware. Routes find the person in `scope["state"]`, and `/login` finds the `Access` there."""

    def __init__(
        self,
        app: ASGIApp,
        state: ServeState,
        *,
        idle_seconds: float = 10.0,
        body_seconds: float = 120.0,
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            state: Settings and people of the server.
            idle_seconds: Longest time between two pieces of a request body.
            body_seconds: Longest time for a request body.
        """
        self._app = app
        self._config = state.config
        self._access = Access(state.people)
        self._hosts = HostRule(state.config)
        self._origins = OriginRule(state.config)
        self._idle_seconds, self._body_seconds = idle_seconds, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _Sender(scope, send))
        else:  # no route has a WebSocket
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: "_Sender") -> None:
        try:
            response = self._check(scope, send)
            if response is None:
                receive = await self._receive_body(scope, receive)
                await self._app(scope, receive, send)
                return
        except (ConnectionError, ClientDisconnect):
            return
        except Exception as error:  # nothing of it may reach the client
            response = await error_reply(Request(scope), error)
        if not send.started:
            await response(scope, receive, send)

    def _check(self, scope: Scope, send: "_Sender") -> Response | None:
        """Return the response to a request that no route answers; None for all others."""
        headers = Headers(scope=scope)
        _check_target(scope)
        host = self._hosts.check(scope)
        send.cors_origin = self._origins.check(scope, headers, host)
        if send.cors_origin and scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            return self._origins.preflight(headers)
        if not self._identify(scope, headers) and wants_page(scope):
            return RedirectResponse(f"/login?next={quote(scope['path'])}", 303)
        return None

    def _identify(self, scope: Scope, headers: Headers) -> bool:
        """Store who sends the request. Return False if a browser has to log in first.

        Raises:
            HTTPException: 401 or 429.
        """
        people, state, path = self._access.people, scope.setdefault("state", {}), scope["path"]
        state["access"] = self._access
        if not people.need_keys:
            state["person"] = people.local
            return True
        cookies = cookie_parser(headers.get("cookie", ""))
        person = self._access.find_session(cookies.get(session_cookie(scope), ""))
        is_open = path in _OPEN_PATHS or path.startswith("/static/")
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme and not is_open:
            client = (scope.get("client") or ("unknown", 0))[0]
            person = self._access.check_key(key.strip() if scheme.lower() == "bearer" else "", client)
        if person is not None:
            state["person"] = person
        elif not is_open and not wants_page(scope):
            raise HTTPException(
                401,
                "no API key; send it as `Authorization: Bearer KEY`",
                {"www-authenticate": "Bearer"},
            )
        return person is not None or is_open

    async def _receive_body(self, scope: Scope, receive: Receive) -> Receive:
        if scope["method"] in _SAFE_METHODS:
            return receive
        headers = Headers(scope=scope)
        check_body_type(scope["method"], headers)
        body = await read_body(
            receive, headers, self._config.max_body, self._idle_seconds, self._body_seconds
        )
        return replay(body, receive)


def _check_target(scope: Scope) -> None:
    """Refuse paths that no route has, and that software behind a route could misread."""
    path = scope["path"]
    if len(scope.get("raw_path") or path) + len(scope["query_string"]) > _MAX_TARGET:
        raise HTTPException(414, f"the address has more than {_MAX_TARGET:,} bytes")
    if not path.startswith("/") or not path.isprintable() or "�" in path:
        raise HTTPException(400, "invalid characters in the path")
    if "\\" in path or {".", ".."} & set(path.split("/")):
        raise HTTPException(404, "no such page")


class _Sender:
    """Sends a response with the server's headers."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._is_static = scope["path"].startswith("/static/")
        self.started = False
        self.cors_origin: str | None = None

    async def __call__(self, message: Message) -> None:
        """Send a message of the response."""
        if message["type"] == "http.response.start":
            self.started = True
            message.setdefault("headers", [])
            self._add_headers(MutableHeaders(raw=message["headers"]))
        await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        headers.update(_HEADERS)
        headers["cache-control"] = "no-cache" if self._is_static else "no-store"
        headers.add_vary_header("Origin")
        if self.cors_origin:
            headers["access-control-allow-origin"] = self.cors_origin
            headers["access-control-expose-headers"] = "Retry-After, X-Request-Id, X-Meditron-Prompt"
            headers["cross-origin-resource-policy"] = "cross-origin"
