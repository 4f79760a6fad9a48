"""Addresses without their secrets: credentials and queries reach no output and no record."""

import re

__all__ = ["public_address", "redact"]

_ADDRESS = re.compile(r"https?:/*[^\s'\"<>|]+", re.IGNORECASE)
# The end of an address that a blank cut in two.
_QUERY = re.compile(r"\?[\w.~%-]+=[^\s'\"<>]*")
_PARTS = re.compile(r"(https?:/*)([^/?#]*)([^?#]*)(?:\?[^#]*)?(#.*)?", re.IGNORECASE | re.DOTALL)
_PROMISE = re.compile(r"@sha256:[0-9a-fA-F]*$")
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")


def redact(text: str) -> str:
    """Return a text with every address in it as `public_address` gives it."""

    def public(match: re.Match[str]) -> str:
        address = match[0].rstrip(".,:;)]}")
        return public_address(address) + match[0][len(address) :] if ":" in address else match[0]

    return _QUERY.sub("", _ADDRESS.sub(public, text))


def public_address(address: str) -> str:
    """Return an http address without credentials and query; a promised `@sha256:…` stays.

    The fragment is the name of a file in an archive and stays too, unless it holds `=` or `?`, as tokens do.
    An address whose host cannot be told from a password is hidden whole.
    """
    promise = match[0] if (match := _PROMISE.search(address)) else ""
    parts = _PARTS.fullmatch(address.removesuffix(promise))
    if parts is None:
        return "…"
    scheme, host, path, fragment = parts.groups(default="")
    host = host.rpartition("@")[2]
    if not _HOST.fullmatch(host):
        return f"{scheme}…"
    if any(mark in fragment for mark in "=?"):
        fragment = "#…"
    return f"{scheme}{host}{path}{fragment}{promise}"
