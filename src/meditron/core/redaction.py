"""Removal of secrets from addresses: credentials and queries must not reach any output or record."""

import re

__all__ = ["public_address", "redact", "without_digest"]

_ADDRESS = re.compile(r"https?:/*[^\s'\"<>|]+", re.IGNORECASE)
# A query string on its own: _ADDRESS stops at a blank inside an address, so the query after it is removed
# here.
_QUERY = re.compile(r"\?[\w.~%-]+=[^\s'\"<>]*")
_PARTS = re.compile(r"(https?:/*)([^/?#]*)([^?#]*)(?:\?[^#]*)?(#.*)?", re.IGNORECASE | re.DOTALL)
_DIGEST = re.compile(r"@sha256:[0-9a-fA-F]*$")
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d*)?")


def redact(text: str) -> str:
    """Return a text with `public_address` applied to every address in it."""

    def redacted_match(match: re.Match[str]) -> str:
        address = match[0].rstrip(".,:;)]}")
        return public_address(address) + match[0][len(address) :] if ":" in address else match[0]

    return _QUERY.sub("", _ADDRESS.sub(redacted_match, text))


def public_address(address: str) -> str:
    """Return an http address without credentials and query; an expected digest, `@sha256:…`, is kept.

    The fragment (`#file`), which names a file in an archive, is kept unless it contains `=` or `?`, which may
    belong to an access token. If the host could be part of a password, the whole address is hidden.
    """
    digest = match[0] if (match := _DIGEST.search(address)) else ""
    parts = _PARTS.fullmatch(address.removesuffix(digest))
    if parts is None:
        return "…"
    scheme, host, path, fragment = parts.groups(default="")
    host = host.rpartition("@")[2]
    if not _HOST.fullmatch(host):
        return f"{scheme}…"
    if any(mark in fragment for mark in "=?"):
        fragment = "#…"
    return f"{scheme}{host}{path}{fragment}{digest}"


def without_digest(source: str) -> str:
    """Return a source without its expected digest, `@sha256:…`."""
    return _DIGEST.sub("", source)
