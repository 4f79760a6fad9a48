"""Polite requests for many small objects: connections are reused, the rate per host is limited.

A response is kept in memory. If the connection is lost in the middle, the missing bytes are requested with
`Range`. Busy servers (429, 503, …) get the request again after the time in `Retry-After`, else after pauses
that grow.

Environment variables: `MEDITRON_FETCH_CONNECTIONS` is the number of parallel connections,
`MEDITRON_FETCH_RATE` the number of requests per second and host.
"""

import ipaddress
import os
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from meditron.core.console import info
from meditron.core.errors import FetchError, MissingExtra, SourceError, UsageError
from meditron.core.redaction import public_address
from meditron.store.address import normalize_address
from meditron.store.download import user_agent
from meditron.store.retries import RetryableError, next_pause, retry_after

if TYPE_CHECKING:
    import httpx

__all__ = [
    "LARGEST_OBJECT",
    "RefusedError",
    "Throttle",
    "WebClient",
    "WebResponse",
    "connection_count",
    "is_private",
    "same_site",
]

LARGEST_OBJECT = 256 << 20
"""Largest accepted response in bytes. Several responses are in memory at the same time."""
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between attempts; new bytes reset the count of attempts
_MAX_REDIRECTS = 5
_TIMEOUT = 60.0  # seconds without a byte
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})


def connection_count(default: int) -> int:
    """Return the number of parallel connections: `$MEDITRON_FETCH_CONNECTIONS`, else the default."""
    return int(_positive_number("MEDITRON_FETCH_CONNECTIONS", default))


def _positive_number(variable: str, default: float) -> float:
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 10_000:
        raise UsageError(f"{variable} must be a positive number, got {text!r}")
    return max(value, 1.0) if variable.endswith("CONNECTIONS") else value


class Throttle:
    """Limits the rate of requests per host; threads share it.

    Args:
        rate: Requests per second and host; `$MEDITRON_FETCH_RATE` overrides it. A server on this machine is
            not limited unless the variable is set.
    """

    def __init__(self, rate: float) -> None:
        self._rate = _positive_number("MEDITRON_FETCH_RATE", rate)
        self._limit_local = bool(os.environ.get("MEDITRON_FETCH_RATE"))
        self._next: dict[str, float] = {}  # host → earliest time of its next request
        self._pauses: dict[str, float] = {}
        self._lock = threading.Lock()

    def slow_down(self, address: str, seconds: float) -> None:
        """Keep at least `seconds` between the requests to the address's host from now on."""
        host = urllib.parse.urlsplit(address).netloc
        with self._lock:
            self._pauses[host] = max(seconds, self._pauses.get(host, 0.0))

    def wait(self, address: str) -> None:
        """Wait until a request to the address's host is allowed."""
        parts = urllib.parse.urlsplit(address)
        host = parts.netloc
        pause = 0.0 if not self._limit_local and _is_loopback(parts.hostname or "") else 1 / self._rate
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next.get(host, now))
            self._next[host] = start + max(pause, self._pauses.get(host, 0.0))
        if start > now:
            time.sleep(start - now)


@dataclass(frozen=True, slots=True)
class WebResponse:
    """A complete response with a status below 300, or one that the caller accepts."""

    address: str
    """Address after redirects."""
    status: int
    content_type: str
    """Media type in lower case, without parameters; empty if the server states none."""
    charset: str | None
    body: bytes
    complete: bool
    """True if the server stated the size, so that a cut body would have been noticed."""


class RefusedError(FetchError):
    """A response that is refused whenever it is requested: a forbidden redirect, too many bytes."""


class WebClient:
    """Requests with shared connections, as a context manager; threads may share it.

    Args:
        throttle: Limit of the rate per host.
        connections: Number of open connections.
    """

    def __init__(self, throttle: Throttle, connections: int) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtra("httpx", "corpus") from error
        self.throttle = throttle
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        headers = {"User-Agent": user_agent(), "Accept-Encoding": "identity"}
        self._client = httpx.Client(timeout=_TIMEOUT, limits=limits, headers=headers)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(
        self,
        address: str,
        *,
        limit: int = LARGEST_OBJECT,
        accept: frozenset[int] = frozenset(),
        check_redirect: Callable[[str, str], None] | None = None,
    ) -> WebResponse:
        """Request an address and return the complete response.

        Args:
            address: An http or https address.
            limit: Maximum bytes of the body.
            accept: Error statuses that are returned instead of raised, with an empty body.
            check_redirect: Called with the requested address and a redirect's target; raises to refuse it.

        Raises:
            SourceError: The server has no such object (404, 410).
            FetchError: The server cannot be reached, refuses the request, or redirects where it must not.
        """
        body = bytearray()
        pauses, most = list(_PAUSES), 0
        validator: list[str] = []
        while True:
            try:
                return self._attempt(address, body, validator, limit, accept, check_redirect)
            except RetryableError as failure:
                if len(body) > most:  # progress: the count of attempts begins again
                    pauses, most = list(_PAUSES), len(body)
                if not pauses:
                    raise FetchError(
                        f"{public_address(address)}: {failure}",
                        hint="run the same command again: it continues; or check the network connection",
                    ) from failure
                pause = next_pause(pauses, failure)
                info(f"{public_address(address)}: {failure}; retrying in {pause:g} s")
                time.sleep(pause)

    def _attempt(
        self,
        address: str,
        body: bytearray,
        validator: list[str],
        limit: int,
        accept: frozenset[int],
        check_redirect: Callable[[str, str], None] | None,
    ) -> WebResponse:
        """Make one request, following redirects; append the body's missing bytes to `body`."""
        import httpx

        target = address
        for _ in range(_MAX_REDIRECTS + 1):
            self.throttle.wait(target)
            headers = {"Range": f"bytes={len(body)}-", "If-Range": validator[0]} if body and validator else {}
            if not headers:
                body.clear()
            try:
                with self._client.stream("GET", target, headers=headers) as response:
                    if response.status_code not in _REDIRECTS:
                        return _read_response(response, target, body, validator, limit, accept)
                    location = response.headers.get("Location", "")
            except httpx.InvalidURL as error:
                raise RefusedError(f"{public_address(target)}: not a valid address") from error
            except httpx.HTTPError as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    hint = "set SSL_CERT_FILE to a file with the certificates to trust"
                    problem = "the server's certificate is not trusted"
                    raise FetchError(f"{public_address(target)}: {problem}", hint=hint) from error
                raise RetryableError(f"connection lost ({str(error) or type(error).__name__})") from error
            # The connection is free again: `check_redirect` may need one, and all could be in use.
            target = _redirect_target(address, target, location, check_redirect)
        raise RefusedError(f"{public_address(address)}: more than {_MAX_REDIRECTS} redirects")


def _redirect_target(
    address: str, current: str, location: str, check_redirect: Callable[[str, str], None] | None
) -> str:
    """Return the absolute address of a redirect; RefusedError if it must not be followed.

    Args:
        address: The address that was asked for at first.
        current: The address that redirects.
        location: The value of the header `Location`.
        check_redirect: As of `WebClient.get`.
    """
    shown = public_address(address)
    try:
        target = normalize_address(urllib.parse.urldefrag(urllib.parse.urljoin(current, location)).url)
    except SourceError as error:
        raise RefusedError(f"{shown}: redirects to {error.message}") from error
    except ValueError as error:  # of urllib, such as "Invalid IPv6 URL"
        raise RefusedError(f"{shown}: redirects to an address that is not valid") from error
    if not target.startswith(("http:", "https:")):
        raise RefusedError(f"{shown}: redirects to {public_address(target)}, which is not followed")
    if current.startswith("https:") and not target.startswith("https:"):
        problem = f"redirects from https to {public_address(target)}, which is not followed"
        raise RefusedError(f"{shown}: {problem}")
    if is_private(target) and not is_private(address):
        raise RefusedError(f"{shown}: redirects to the private address {public_address(target)}")
    if check_redirect:
        check_redirect(address, target)
    return target


def _read_response(
    response: "httpx.Response",
    target: str,
    body: bytearray,
    validator: list[str],
    limit: int,
    accept: frozenset[int],
) -> WebResponse:
    status, headers = response.status_code, response.headers
    shown = public_address(target)
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if status in accept:
        return WebResponse(target, status, content_type, None, b"", complete=True)
    if status in _TEMPORARY:
        raise RetryableError(f"the server answered {status}", retry_after(headers.get("Retry-After", "")))
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise SourceError(f"{shown}: the server has no such file ({status})")
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        body.clear()
        raise RetryableError("the object on the server has changed")
    if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise FetchError(f"{shown}: the server answered {status} {response.reason_phrase}")
    if status == HTTPStatus.PARTIAL_CONTENT:
        start = headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if start != str(len(body)):
            body.clear()
            raise RetryableError("the server sent another range than requested")
    else:
        body.clear()
    length = headers.get("Content-Length", "")
    total = len(body) + int(length) if length.isdecimal() else None
    tag = headers.get("ETag", "")
    # A weak ETag does not promise equal bytes, so that a body cannot be continued with it.
    validator[:] = [value for value in (tag if not tag.startswith("W/") else "",) if value]
    if not validator and headers.get("Last-Modified"):
        validator[:] = [headers["Last-Modified"]]
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > limit:
            raise RefusedError(f"{shown}: the server sent more than {limit:,} bytes")
    if total is not None and len(body) != total:
        raise RetryableError(f"connection lost after {len(body):,} of {total:,} bytes")
    charset = response.charset_encoding
    return WebResponse(target, status, content_type, charset, bytes(body), complete=total is not None)


def same_site(address: str, other: str) -> bool:
    """Return whether two addresses have the same scheme, host and port."""
    return urllib.parse.urlsplit(address)[:2] == urllib.parse.urlsplit(other)[:2]


def is_private(address: str) -> bool:
    """Return whether an address is on this machine or in a private network, by the addresses of its host.

    A host whose name cannot be resolved here counts as public: a proxy may resolve it.
    """
    host = urllib.parse.urlsplit(address).hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return any(not ipaddress.ip_address(number.partition("%")[0]).is_global for number in found)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
