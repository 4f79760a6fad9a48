"""Downloads over HTTP: resumed where they stopped, retried, checked, shown.

`NAME.json` beside the file that grows says of what it is a beginning, so that only the same thing (same
address, same validator or promised hash) is ever continued. It stays when the file is whole: then nothing is
downloaded again until `forget`.
"""

import email.message
import http.client
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from meditron.ground.console import progress, say
from meditron.ground.errors import DigestError, FetchError, InputError, SourceError
from meditron.store.files import make_folder, read_json, sha256_file, storing, write_json

__all__ = ["download", "forget"]

_CHUNK = 1 << 18
_TIMEOUT = 60  # seconds without a byte
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before the next attempt; progress starts the row again
_LONGEST_PAUSE = 60.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}
# Where tools of this kind are told of a company's own certificates.
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")


@dataclass(frozen=True)
class _Begun:
    """What a `.part` file is the beginning of."""

    url: str
    validator: str | None = None
    """A strong ETag or the Last-Modified date, for If-Range."""
    sha256: str | None = None


class _Broken(Exception):
    """The connection broke or the server is busy: worth another attempt, after `pause` seconds if given."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


def download(url: str, part: Path, *, sha256: str | None = None) -> str:
    """Download `url` into `part`, continuing what is there, and return the SHA-256 of its bytes.

    Only one process may work on a `part`. Proxies and certificates come from the environment. Raises
    FetchError when the server cannot be reached, SourceError when it has no such thing, DigestError when the
    bytes are not the promised ones, StorageError when the disk is full.
    """
    make_folder(part.parent)
    continued = _continue(url, part, sha256)
    digest = sha256_file(part)
    if sha256 and digest != sha256 and continued:
        # The beginning may have been of another version: once more, from nothing.
        forget(part)
        _continue(url, part, sha256)
        digest = sha256_file(part)
    if sha256 and digest != sha256:
        forget(part)
        raise DigestError(url, f"SHA-256 is {digest}, promised was {sha256}")
    return digest


def _continue(url: str, part: Path, sha256: str | None) -> bool:
    """Attempt until the file is whole; whether an earlier beginning was used."""
    if not _continues(url, part, sha256):
        forget(part)
    before = _size(part)
    pauses = list(_PAUSES)
    while True:
        size = _size(part)
        try:
            _attempt(url, part, sha256)
        except _Broken as broken:
            if _size(part) > size:
                pauses = list(_PAUSES)
            if not pauses:
                raise FetchError(
                    f"{_shown(url)}: {broken}", hint="what has arrived is kept; the same command continues it"
                ) from broken
            pause = pauses.pop(0) if broken.pause is None else min(broken.pause, _LONGEST_PAUSE)
            say(f"{_shown(url)}: {broken}; again in {pause:g} s")
            time.sleep(pause)
        else:
            return before > 0


def _continues(url: str, part: Path, sha256: str | None) -> bool:
    """Whether `part` is a beginning of what is asked for."""
    if not part.exists() or not _notes(part).exists():
        return False
    try:
        begun = _Begun(**read_json(_notes(part)))
    except (InputError, TypeError):
        return False
    promised = sha256 is not None and begun.sha256 == sha256
    return begun.url == url and (promised or (begun.validator is not None and begun.sha256 == sha256))


def _attempt(url: str, part: Path, sha256: str | None) -> None:
    """One request: append to `part` what is missing, or start again where the server cannot continue."""
    have = _size(part)
    response = _open(url, part, have)
    if response is None:
        return
    with response:
        start = _start(response, part, have)
        if not start:
            part.unlink(missing_ok=True)
        write_json(_notes(part), asdict(_Begun(url, _validator(response.headers), sha256)))
        length = response.headers.get("Content-Length", "")
        whole = start + int(length) if length.isdigit() else None
        with storing(part), part.open("ab") as file:
            _copy(response, file, _name(url), start, whole)
            file.flush()
            os.fsync(file.fileno())


def _open(url: str, part: Path, have: int) -> http.client.HTTPResponse | None:
    """Ask for what is missing; None where nothing is."""
    request = urllib.request.Request(url, headers={"User-Agent": f"meditron/{version('meditron')}"})  # noqa: S310
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator := _noted(part):
            request.add_header("If-Range", validator)
    try:
        response: http.client.HTTPResponse = _opener().open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            _answered(url, part, error)
        return None
    except urllib.error.URLError as error:
        raise _unreached(url, error) from error
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(f"the connection broke ({_said(error)})") from error
    return response


def _start(response: http.client.HTTPResponse, part: Path, have: int) -> int:
    """Where the body begins: 0, or the end of what is here already."""
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        return 0
    span = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    noted, now = _noted(part), _validator(response.headers)
    if span != str(have) or (noted and now and noted != now):
        forget(part)
        raise _Broken("the server sent something else than was asked for")
    return have


def _noted(part: Path) -> str | None:
    validator = read_json(_notes(part)).get("validator")
    return str(validator) if validator else None


@cache
def _context(bundles: tuple[str, ...]) -> ssl.SSLContext:
    """What is trusted; reading certificates takes a while, so once."""
    context = ssl.create_default_context()
    for place in map(Path, bundles):
        if place.is_file():
            context.load_verify_locations(cafile=place)
        elif place.is_dir():
            context.load_verify_locations(capath=place)
    return context


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS and nothing else: a redirect may not lead to `file:` or `ftp:`."""
    context = _context(tuple(sorted({os.environ[name] for name in _CERTIFICATES if os.environ.get(name)})))
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _copy(
    response: http.client.HTTPResponse, file: BinaryIO, name: str, start: int, whole: int | None
) -> None:
    done = start
    with progress(f"fetch {name}", total=whole, unit="B", start=start) as bar:
        while chunk := _read(response):
            file.write(chunk)
            bar.advance(len(chunk))
            done += len(chunk)
        # http.client takes a connection that closes early for the end of the body.
        if whole is not None and done != whole:
            raise _Broken(f"the connection broke after {done:,} of {whole:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(f"the connection broke ({_said(error)})") from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _answered(url: str, part: Path, error: urllib.error.HTTPError) -> None:
    """Raise what an error status means, or return where the file is whole already."""
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        # `bytes */SIZE`: nothing is missing, or the beginning is of something else.
        whole = error.headers.get("Content-Range", "").rpartition("/")[2]
        if whole == str(_size(part)):
            return
        forget(part)
        raise _Broken("the server has another version now") from error
    if error.code in _PASSING:
        after = error.headers.get("Retry-After", "")
        pause = float(after) if after.isdigit() else None
        raise _Broken(f"the server answered {error.code} {error.reason}", pause) from error
    if error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise SourceError(f"{_shown(url)}: the server has no such file ({error.code})") from error
    raise FetchError(f"{_shown(url)}: the server answered {error.code} {error.reason}") from error


def _unreached(url: str, error: urllib.error.URLError) -> FetchError | _Broken:
    if isinstance(error.reason, ssl.SSLCertVerificationError):
        return FetchError(
            f"{_shown(url)}: the server's certificate is not trusted ({error.reason.verify_message})",
            hint="SSL_CERT_FILE names a file of certificates to trust",
        )
    return _Broken(f"not reached ({error.reason})")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _validator(headers: email.message.Message) -> str | None:
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    modified = headers.get("Last-Modified")
    return str(modified) if modified else None


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def forget(part: Path) -> None:
    """Remove what has been downloaded, and the note beside it."""
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _name(url: str) -> str:
    path = urllib.parse.urlsplit(url).path
    return urllib.parse.unquote(path.rsplit("/", 1)[-1]) or url


def _shown(url: str) -> str:
    """The address without credentials or query, which may be secret."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
