"""Names under which the server may be reached, and addresses on which it may listen.

A web page reaches a server of the user's own machine by a name of the page's site that resolves to 127.0.0.1
(DNS rebinding). Such a request carries the site's name in its Host header, which is therefore checked. An
address instead of a name cannot be rebound.
"""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Scope

from meditron.core.errors import UsageError
from meditron.serve.config import ServeConfig
from meditron.store.people import People

__all__ = ["HostRule", "check_bind"]

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


class HostRule:
    """The values of the Host header that the server answers."""

    def __init__(self, config: ServeConfig) -> None:
        self._names = {"localhost", config.host.lower(), *(name.lower() for name in config.allowed_hosts)}

    def check(self, scope: Scope) -> str:
        """Return the Host header of a request, in lower case.

        A loopback name is accepted with any port, because a tunnel (`ssh -L`) may listen on another one.

        Raises:
            HTTPException: 400 if there is no single valid Host header, 421 if the name is not the server's.
        """
        values = Headers(scope=scope).getlist("host")
        host = values[0].lower() if len(values) == 1 else ""
        match = _HOST.fullmatch(host)
        if match is None:
            raise HTTPException(400, "a request needs one valid Host header")
        name = match["name"].strip("[]")
        server = scope.get("server") or ("", None)
        if not {name, match["name"], host} & self._names and not _is_own_address(name, server[0]):
            raise HTTPException(
                421, f"this server is not reached as {match['name']}; `allowed_hosts` lists further names"
            )
        return host


def _is_own_address(name: str, server: str) -> bool:
    """Return whether a host is a loopback address, or the address at which the connection arrived."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or str(address) == server.partition("%")[0]


def check_bind(config: ServeConfig, people: People) -> None:
    """Raise UsageError if the settings would open the server to others without a key."""
    for origin in config.origins:
        if not _ORIGIN.fullmatch(origin.lower()):
            raise UsageError(
                f"origins must be scheme, host and port, got {origin}",
                hint="https://example.org, or http://localhost:3000; there is no wildcard",
            )
    for name in config.allowed_hosts:
        if not _HOST.fullmatch(name.lower()):
            raise UsageError(f"allowed_hosts must be host names, got {name}", hint="llm.example.org")
    if people.need_keys:
        return
    if beyond := [address for address in _resolve(config.host) if not address.is_loopback]:
        raise UsageError(
            f"{config.host} ({beyond[0]}) can be reached from other machines, and the server has no API key",
            hint="--api-key-file FILE; `openssl rand -hex 24` writes a key",
        )


def _resolve(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    if "://" in host or "/" in host:
        name = urlsplit(host).hostname
        raise UsageError(f"host must be a name or an address, got {host}", hint=name and f"--host {name}")
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"host {host} cannot be resolved: {error}") from error
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
