"""Keys, sessions of browsers, and the limit of wrong keys."""

import hashlib
import ipaddress
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import wraps

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from meditron.core.console import warn
from meditron.serve.pages import person_of
from meditron.store.people import People, Person, Role

__all__ = ["Access", "Endpoint", "require_role"]

Endpoint = Callable[[Request], Awaitable[Response]]
"""A route's function."""

_SESSION_SECONDS = 12 * 3600.0
_MAX_SESSIONS = 1024  # the oldest session ends first
_MAX_WRONG_KEYS = 10  # within the window, of one address
_WINDOW_SECONDS = 60.0
_MAX_ADDRESSES = 4096  # bounds the memory that many addresses can use


@dataclass(slots=True)
class Access:
    """Who may use the server: checks keys, and keeps the sessions of browsers in memory.

    A session ends after 12 hours, by logging out, or with the server. Its id is kept as a hash only.
    """

    people: People
    clock: Callable[[], float] = time.monotonic
    _sessions: OrderedDict[str, tuple[float, Person]] = field(default_factory=OrderedDict)
    _wrong: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)

    def check_key(self, key: str, address: str) -> Person:
        """Return the person with a key.

        Args:
            key: The key of a request.
            address: Address of the client, whose wrong keys are counted.

        Raises:
            HTTPException: 401 if the key is wrong; 429 after too many wrong ones, whatever the key is.
        """
        now, group = self.clock(), _address_group(address)
        times = self._wrong.get(group, deque())
        while times and times[0] <= now - _WINDOW_SECONDS:
            times.popleft()
        if len(times) >= _MAX_WRONG_KEYS:
            wait = max(1, round(times[0] + _WINDOW_SECONDS - now))
            raise HTTPException(429, "too many wrong API keys", {"retry-after": str(wait)})
        person = self.people.find(key)
        if person is not None:
            return person
        times.append(now)
        self._wrong[group] = times
        self._wrong.move_to_end(group)
        if len(self._wrong) > _MAX_ADDRESSES:
            self._wrong.popitem(last=False)
        warn(f"wrong API key from {address}")
        raise HTTPException(401, "wrong API key", {"www-authenticate": 'Bearer error="invalid_token"'})

    def open_session(self, person: Person) -> str:
        """Return the id of a new session."""
        name = secrets.token_urlsafe(32)
        self._sessions[_digest(name)] = (self.clock() + _SESSION_SECONDS, person)
        if len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return name

    def find_session(self, name: str) -> Person | None:
        """Return the person of a session, or None if there is no such session or it has expired."""
        expires, person = self._sessions.get(_digest(name), (0.0, None))
        if person is not None and expires <= self.clock():
            self.close_session(name)
            return None
        return person

    def close_session(self, name: str) -> None:
        """End a session."""
        self._sessions.pop(_digest(name), None)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()


def _address_group(address: str) -> str:
    """Return the key under which wrong keys are counted: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def require_role(role: Role) -> Callable[[Endpoint], Endpoint]:
    """Return a decorator of a route's function: persons without the role get status 403."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        @wraps(endpoint)
        async def checked(request: Request) -> Response:
            person_of(request).require(role)
            return await endpoint(request)

        return checked

    return decorate
