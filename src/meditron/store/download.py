"""Downloads over HTTP: resumed where they stopped, retried, checked, shown.

`NAME.json` beside the file that grows says of what it is a beginning, so that only the same thing (same
address, same validator or promised hash) is ever continued. It stays when the file is whole: then nothing is
downloaded again until `forget`. The address, which may hold secrets, stands in it as a hash.

A server may be silent for 60 seconds and send up to 512 GiB. Redirects are followed ten deep, never from
https to http.
"""

import base64
import email.message
import hashlib
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
from typing import IO, BinaryIO

from meditron.core.console import info, progress
from meditron.core.errors import DigestError, FetchError, InputError, SourceError
from meditron.core.redaction import public_address
from meditron.store.address import checked
from meditron.store.content import wrong_content
from meditron.store.files import make_folder, read_json, sha256_file, translate_write_errors, write_json

__all__ = ["MAX_BYTES", "download", "forget"]

_CHUNK = 1 << 18
_TIMEOUT = 60  # seconds without a byte
MAX_BYTES = 512 << 30
"""Largest file that is downloaded: 512 GiB, more than any weights file; a server's stream may never end."""
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before the next attempt; progress starts the row again
_LONGEST_PAUSE = 60.0
_REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
# Where tools of this kind are told of a company's own certificates.
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")


@dataclass(frozen=True)
class _Begun:
    """What a `.part` file is the beginning of."""

    address: str
    """SHA-256 of the address."""
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
    bytes are not the promised ones, InputError when nothing is promised and they are not of the kind that the
    address' name says (a login page), StorageError when the disk is full. What is refused is not kept.
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
        raise DigestError(public_address(url), f"SHA-256 is {digest}, promised was {sha256}")
    if not sha256 and (problem := wrong_content(part, _name(url))):
        forget(part)
        raise InputError(
            public_address(url), problem, hint="open the address in a browser: does it need a login?"
        )
    return digest


def _continue(url: str, part: Path, sha256: str | None) -> bool:
    """Attempt until the file is whole; whether an earlier beginning was used."""
    if not _continues(url, part, sha256):
        forget(part)
    before = most = _size(part)
    pauses = list(_PAUSES)
    while True:
        try:
            _attempt(url, part, sha256)
        except _Broken as broken:
            # More than ever before: a server that sends the same piece again and again comes to no end.
            if _size(part) > most:
                pauses, most = list(_PAUSES), _size(part)
            if not pauses:
                raise FetchError(
                    f"{public_address(url)}: {broken}",
                    hint="what has arrived is kept; the same command continues it",
                ) from broken
            pause = pauses.pop(0) if broken.pause is None else min(broken.pause, _LONGEST_PAUSE)
            info(f"{public_address(url)}: {broken}; again in {pause:g} s")
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
    return begun.address == _hash(url) and (
        promised or (begun.validator is not None and begun.sha256 == sha256)
    )


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
        whole = _whole(response, start)
        _require_acceptable(url, response, whole, sha256)
        write_json(_notes(part), asdict(_Begun(_hash(url), _validator(response.headers), sha256)))
        with translate_write_errors(part), open(part, "ab", opener=_append_only) as file:  # Path takes none
            done = _copy(response, file, url, start, whole)
            file.flush()
            os.fsync(file.fileno())
        if _size(part) != done:  # on a file system whose locks do not lock, another process writes here too
            forget(part)
            raise _Broken("another process wrote into the same download")


def _append_only(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def _whole(response: http.client.HTTPResponse, start: int) -> int | None:
    """Bytes of the whole file, where the server says it."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if response.status == HTTPStatus.PARTIAL_CONTENT and total.isdigit():
        return int(total)
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _require_acceptable(
    url: str, response: http.client.HTTPResponse, whole: int | None, sha256: str | None
) -> None:
    """FetchError for an answer that is no file, or another form of it than was asked for."""
    if response.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise FetchError(
            f"{public_address(url)}: the server answered {response.status} {response.reason}, not a file"
        )
    coding = response.headers.get("Content-Encoding", "identity").lower()
    # Some servers call a .gz file's own compression an encoding; what a hash is promised for is what counts.
    if (
        coding not in ("", "identity")
        and not sha256
        and not _name(url).endswith((".gz", ".tgz", ".bz2", ".zst"))
    ):
        raise FetchError(
            f"{public_address(url)}: the server sends the file compressed ({coding}), unasked",
            hint="download it with a browser and name the file's path, or add @sha256:… of the bytes sent",
        )
    if whole is not None and whole > MAX_BYTES:
        raise FetchError(f"{public_address(url)}: {whole:,} bytes, and at most {MAX_BYTES:,} are downloaded")


def _open(url: str, part: Path, have: int) -> http.client.HTTPResponse | None:
    """Ask for what is missing; None where nothing is."""
    address, login = _login(url)
    request = urllib.request.Request(address, headers={"User-Agent": f"meditron/{version('meditron')}"})  # noqa: S310
    if login:  # for this server, not for one it redirects to
        request.add_unredirected_header("Authorization", login)
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


def _login(url: str) -> tuple[str, str | None]:
    """An address without its credentials, and the header that says them."""
    parts = urllib.parse.urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    said = base64.b64encode(urllib.parse.unquote_to_bytes(user)).decode()
    return parts._replace(netloc=host).geturl(), f"Basic {said}"


def _start(response: http.client.HTTPResponse, part: Path, have: int) -> int:
    """Where the body begins: 0, or the end of what is here already."""
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        return 0
    span = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    noted, now = _noted(part), _validator(response.headers)
    if span != str(have) or (noted and noted != now):
        forget(part)
        raise _Broken("the server sent something else than was asked for")
    return have


def _noted(part: Path) -> str | None:
    if not _notes(part).exists():
        return None
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


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but never from https to http, where anybody could answer."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request for the new address; FetchError where it may not be followed."""
        said = f"{public_address(req.full_url)}: redirects"
        try:
            target = checked(urllib.parse.urldefrag(newurl).url)
        except SourceError as error:
            fp.close()
            raise FetchError(f"{said} to {error.message}") from error
        if req.type == "https" and not target.startswith("https:"):
            fp.close()
            raise FetchError(f"{said} from https to {public_address(target)}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, _login(target)[0])


def _opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS and nothing else: a redirect may not lead to `file:` or `ftp:`."""
    context = _context(tuple(sorted({os.environ[name] for name in _CERTIFICATES if os.environ.get(name)})))
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=context),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _copy(response: http.client.HTTPResponse, file: BinaryIO, url: str, start: int, whole: int | None) -> int:
    """Append the body; return the size that the file has then."""
    done = start
    with progress(f"fetch {_name(url)}", total=whole, unit="B", start=start) as bar:
        while chunk := _read(response):
            file.write(chunk)
            bar.advance(len(chunk))
            done += len(chunk)
            if done > MAX_BYTES:
                raise FetchError(f"{public_address(url)}: the server sent more than {MAX_BYTES:,} bytes")
        # http.client takes a connection that closes early for the end of the body.
        if whole is not None and done != whole:
            raise _Broken(f"the connection broke after {done:,} of {whole:,} bytes")
    return done


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
        raise SourceError(f"{public_address(url)}: the server has no such file ({error.code})") from error
    if "infinite loop" in str(error.reason):
        raise FetchError(f"{public_address(url)}: the server redirects in a circle ({error.code})") from error
    hint = "the address needs a login, or its signature has expired" if error.code in _REFUSED else None
    raise FetchError(
        f"{public_address(url)}: the server answered {error.code} {error.reason}", hint=hint
    ) from error


def _unreached(url: str, error: urllib.error.URLError) -> FetchError | _Broken:
    if isinstance(error.reason, ssl.SSLCertVerificationError):
        return FetchError(
            f"{public_address(url)}: the server's certificate is not trusted ({error.reason.verify_message})",
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


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _name(url: str) -> str:
    path = urllib.parse.urlsplit(url).path
    return urllib.parse.unquote(path.rsplit("/", 1)[-1]) or public_address(url)
