"""Web addresses: validation, quoting, and an identity without secrets."""

import hashlib
import re
import urllib.parse

from meditron.core.errors import SourceError
from meditron.core.redaction import public_address

__all__ = ["normalize_address", "stable_identity"]

_MAX_CHARACTERS = 8_192
"""Longest accepted address; servers reject longer ones."""
_SAFE = "!$&'()*+,;=:@/~-._[]"  # allowed in a path or query (RFC 3986), without `%`, `?` and `#`
_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
# Query parameters that authenticate the client. Their values change between requests for the same file.
_SIGNING = re.compile(
    r"x-(amz|goog|ms|oss|cos|obs)-.+|awsaccesskeyid|googleaccessid|key-pair-id|(response-)?expires|policy|sig"
    r"|signature|(access|auth|id|refresh|session|private|download|security|sas)?[-_]?token|api[-_]?key|auth"
    r"|authorization|password|passwd|pwd|secret|client[-_]?secret|credentials?|jwt|hdnea|hdnts",
    re.IGNORECASE,
)
# Query parameters of an Azure signature. Other servers may use such short names for something else, so they
# count as a signature only if the query contains `sig` too.
_AZURE = frozenset(
    ["se", "sp", "sv", "sr", "st", "ss", "srt", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv"]
)


def normalize_address(address: str) -> str:
    """Return an http address as it is sent to the server: host in IDNA, path and query quoted, no fragment.

    Raises:
        SourceError: the address is too long, has no host, an invalid host or port, or control characters.
    """
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in public_address(address))
    if len(address) > _MAX_CHARACTERS:
        raise SourceError(
            f"{shown[:80]}…: the address has {len(address):,} characters, the limit is {_MAX_CHARACTERS:,}"
        )
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in address):
        raise SourceError(f"{shown}: the address contains a control character")
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # its message repeats the address, with its secrets
        problem = "port must be a number from 1 to 65535" if "ort" in str(error) else "host is not valid"
        raise SourceError(f"{shown}: the {problem}") from None
    if not host:
        raise SourceError(f"{shown}: the address has no host", hint=f"{parts.scheme}://HOST/PATH")
    if port == 0:
        raise SourceError(f"{shown}: the port must be a number from 1 to 65535")
    try:
        host = host.encode("idna").decode("ascii")
    except UnicodeError:
        host = ""
    if not _HOST.fullmatch(host) or (":" in host) != ("[" in parts.netloc):
        raise SourceError(f"{shown}: the host is not valid")
    host = f"[{host}]" if ":" in host else host
    user = f"{_percent_encode(parts.netloc.rpartition('@')[0])}@" if "@" in parts.netloc else ""
    netloc = f"{user}{host}" + (f":{port}" if port else "")
    return urllib.parse.urlunsplit(
        (parts.scheme, netloc, _percent_encode(parts.path), _percent_encode(parts.query, "?"), "")
    )


def _percent_encode(text: str, also: str = "") -> str:
    """Percent-encode the characters that an address may not contain, except `also`; keep existing escapes."""
    return urllib.parse.quote(
        _BROKEN_PERCENT.sub("%25", text), safe=f"{_SAFE}%{also}", errors="surrogateescape"
    )


def stable_identity(address: str, member: str | None) -> str:
    """Return a text that identifies the file at an address and does not change when the signature is renewed.

    Credentials and signing parameters do not select the file and are left out. The other query parameters may
    select it (`?file=a`) and may be secret, so the identity contains only their SHA-256.

    Args:
        address: As `normalize_address` returned it.
        member: Name of a file inside the archive.
    """
    shown = public_address(f"{address}#{member}" if member else address)
    query = urllib.parse.parse_qsl(urllib.parse.urlsplit(address).query, keep_blank_values=True)
    azure = _AZURE if any(name == "sig" for name, _ in query) else frozenset()
    kept = [f"{name}={value}" for name, value in query if not _SIGNING.fullmatch(name) and name not in azure]
    hidden = [*kept, *([member] if member and not shown.endswith(f"#{member}") else [])]
    if not hidden:
        return shown
    digest = hashlib.sha256("\n".join(hidden).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{shown} query-sha256:{digest[:16]}"
