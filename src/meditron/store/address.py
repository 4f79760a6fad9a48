"""Web addresses: validation, quoting, and an identity without their secrets."""

import hashlib
import re
import urllib.parse

from meditron.core.errors import SourceError
from meditron.core.redaction import public_address

__all__ = ["checked", "stable_identity"]

_MAX_CHARACTERS = 8_192
"""Longest address: servers refuse longer ones."""
_SAFE = "!$&'()*+,;=:@/~-._[]"  # of a path or query: allowed by RFC 3986, without `%`, `?` and `#`
_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
# Parameters by which a server recognises who asks; they change from one day to the next, the file does not.
_SIGNING = re.compile(
    r"x-(amz|goog|ms|oss|cos|obs)-.+|awsaccesskeyid|googleaccessid|key-pair-id|(response-)?expires|policy|sig"
    r"|signature|(access|auth|id|refresh|session|private|download|security|sas)?[-_]?token|api[-_]?key|auth"
    r"|authorization|password|passwd|pwd|secret|client[-_]?secret|credentials?|jwt|hdnea|hdnts",
    re.IGNORECASE,
)
# Those of an Azure signature, whose names are too short to be told from others without its `sig`.
_AZURE = {
    "se",
    "sp",
    "sv",
    "sr",
    "st",
    "ss",
    "srt",
    "spr",
    "sip",
    "skoid",
    "sktid",
    "skt",
    "ske",
    "sks",
    "skv",
}


def checked(address: str) -> str:
    """Return an http address as it is sent: host in IDNA, path and query quoted, no fragment.

    Raises:
        SourceError: it has no host, a host or port that cannot be one, or control characters.
    """
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in public_address(address))
    if len(address) > _MAX_CHARACTERS:
        raise SourceError(
            f"{shown[:80]}…: an address of {len(address):,} characters; {_MAX_CHARACTERS:,} is the most"
        )
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in address):
        raise SourceError(f"{shown}: the address contains a control character")
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError as error:  # "Port could not be cast …", "Invalid IPv6 URL": they repeat the text
        problem = "port must be a number from 1 to 65535" if "ort" in str(error) else "host is not valid"
        raise SourceError(f"{shown}: the {problem}") from None
    if not host:
        raise SourceError(f"{shown}: an address without a host", hint=f"{parts.scheme}://HOST/PATH")
    if port == 0:
        raise SourceError(f"{shown}: the port must be a number from 1 to 65535")
    try:
        host = host.encode("idna").decode("ascii")
    except UnicodeError:
        host = ""
    if not _HOST.fullmatch(host) or (":" in host) != ("[" in parts.netloc):
        raise SourceError(f"{shown}: the host is not valid")
    host = f"[{host}]" if ":" in host else host
    user = f"{_quoted(parts.netloc.rpartition('@')[0])}@" if "@" in parts.netloc else ""
    netloc = f"{user}{host}" + (f":{port}" if port else "")
    return urllib.parse.urlunsplit((parts.scheme, netloc, _quoted(parts.path), _quoted(parts.query, "?"), ""))


def _quoted(text: str, also: str = "") -> str:
    """Quote what may not stand in an address; escapes that are there stay as they are."""
    return urllib.parse.quote(
        _BROKEN_PERCENT.sub("%25", text), safe=f"{_SAFE}%{also}", errors="surrogateescape"
    )


def stable_identity(address: str, member: str | None) -> str:
    """Return a text that stands for the file an address names, the same whenever its signature is renewed.

    Args:
        address: As `checked` returned it.
        member: The file meant inside of an archive.

    Credentials and signing parameters are left out, as they do not choose the file. The other parameters may
    (`?file=a`), so their SHA-256 is in the text; they themselves are not.
    """
    shown = public_address(f"{address}#{member}" if member else address)
    query = urllib.parse.parse_qsl(urllib.parse.urlsplit(address).query, keep_blank_values=True)
    azure = _AZURE if any(name == "sig" for name, _ in query) else set()
    kept = [f"{name}={value}" for name, value in query if not _SIGNING.fullmatch(name) and name not in azure]
    hidden = [*kept, *([member] if member and not shown.endswith(f"#{member}") else [])]
    if not hidden:
        return shown
    digest = hashlib.sha256("\n".join(hidden).encode("utf-8", "surrogatepass")).hexdigest()
    return f"{shown} query-sha256:{digest[:16]}"
