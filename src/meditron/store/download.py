"""HTTP downloads with resumption, retries, verification and progress.

The record `NAME.json` beside a partial file contains the hash of its address, the server's validator and the
expected SHA-256. A download is resumed only if the SHA-256 is the same, or without one the other two. The
record is kept after the download is complete, so that a second call downloads nothing, until
`discard_download` removes both files. Of the address only the hash is recorded, because an address may
contain secrets.

The server may send nothing for at most 60 seconds, and at most 512 GiB in all. At most ten redirects are
followed, none of them from https to http.
"""

import email.message
import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, cast

from meditron.core.console import Bar, info, progress
from meditron.core.errors import FetchError, InputError, SourceError
from meditron.core.redaction import public_address
from meditron.store.file_signature import content_problem
from meditron.store.files import (
    make_folder,
    read_json,
    require_digest,
    sha256_file,
    translate_write_errors,
    write_json,
)
from meditron.store.http_opener import create_opener, split_login
from meditron.store.retries import RetryableError, next_pause, retry_after

__all__ = [
    "MAX_BYTES",
    "DownloadOptions",
    "discard_download",
    "download",
    "download_beginning",
    "user_agent",
]

_PROJECT = "https://github.com/epfLLM/meditron"

_CHUNK = 1 << 18
_TIMEOUT = 60  # seconds without a byte
MAX_BYTES = 512 << 30
"""Largest accepted download: 512 GiB, more than any weights file; bounds a stream that never ends."""
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between attempts; new bytes reset the count of attempts
_DENIED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_TEMPORARY_FAILURES = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class DownloadOptions:
    """Options of a download that is one of many: its politeness, its login and its share of the progress."""

    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers for the server of the address only, such as a login; a redirect's server does not get them."""
    before_request: Callable[[str], None] | None = None
    """Called with the address before each request, also before that of a redirect; it may wait or raise."""
    on_bytes: Callable[[int], None] | None = None
    """Called with the number of bytes received; it may raise to stop the download. Without it the download
    shows its own progress."""
    access_hint: str = "the address needs a login, or its signature has expired"
    """Hint of the error for status 401 and 403."""
    stop_at: int | None = None
    """Size of the partial file at which the download stops; None: the whole file."""


_DEFAULT = DownloadOptions()


def user_agent() -> str:
    """Return the User-Agent of all requests, with the address of the project for the server's operator."""
    return f"meditron/{version('meditron')} (+{_PROJECT})"


@dataclass(frozen=True)
class _PartialRecord:
    """The record beside a partial download, which identifies the file that is being downloaded."""

    address: str
    """SHA-256 of the address."""
    validator: str | None = None
    """A strong ETag or the Last-Modified date, sent as If-Range."""
    sha256: str | None = None
    content_type: str | None = None
    """The media type that the server states."""


def download(url: str, part: Path, *, sha256: str | None = None, options: DownloadOptions = _DEFAULT) -> str:
    """Download `url` into `part`, resuming a partial download, and return its SHA-256.

    No other process may write to `part`. Proxies and certificates come from the environment. A file that
    fails verification is removed.

    Raises:
        FetchError: the server cannot be reached, or refuses the request.
        SourceError: the server has no such file.
        DigestError: the SHA-256 is not the expected one.
        InputError: no SHA-256 is expected, and the content is not of the kind that the URL's file name and
            the server say (for example a login page).
        StorageError: the disk is full.
    """
    make_folder(part.parent)
    resumed = _download_with_retries(url, part, sha256, options)
    digest = sha256_file(part)
    if sha256 and digest != sha256 and resumed:
        # The partial download may be from an older version of the file: download once more from the start.
        discard_download(part)
        _download_with_retries(url, part, sha256, options)
        digest = sha256_file(part)
    if sha256:
        if digest != sha256:
            discard_download(part)
        require_digest(public_address(url), digest, sha256)
    elif problem := content_problem(part, _file_name_of_url(url), _recorded(part, "content_type")):
        discard_download(part)
        raise InputError(
            public_address(url), problem, hint="open the address in a browser: does it need a login?"
        )
    return digest


def download_beginning(
    url: str, part: Path, count: int, *, sha256: str | None = None, options: DownloadOptions = _DEFAULT
) -> bytes:
    """Download the first `count` bytes of `url` into `part`, and return them; fewer if the file is shorter.

    `download`, with the same arguments, continues after them. A partial download that has them already is
    not changed. Raises the errors of `download`.
    """
    make_folder(part.parent)
    if not _can_resume(url, part, sha256) or _partial_size(part) < count:
        _download_with_retries(url, part, sha256, replace(options, stop_at=count))
    with part.open("rb") as file:
        return file.read(count)


def _download_with_retries(url: str, part: Path, sha256: str | None, options: DownloadOptions) -> bool:
    """Attempt the download until it is complete; return whether a partial file was resumed."""
    if not _can_resume(url, part, sha256):
        discard_download(part)
    before = most = _partial_size(part)
    pauses = list(_PAUSES)
    while True:
        try:
            _attempt_download(url, part, sha256, options)
        except RetryableError as failure:
            # The count of attempts is reset only if the file grew beyond its largest size so far. Otherwise a
            # server that sends the same bytes after every restart would be retried forever.
            if _partial_size(part) > most:
                pauses, most = list(_PAUSES), _partial_size(part)
            if not pauses:
                raise FetchError(
                    f"{public_address(url)}: {failure}",
                    hint="the partial download is kept; run the same command again to resume it"
                    if _partial_size(part)
                    else "check the address and the network connection",
                ) from failure
            pause = next_pause(pauses, failure)
            info(f"{public_address(url)}: {failure}; retrying in {pause:g} s")
            time.sleep(pause)
        else:
            return before > 0


def _can_resume(url: str, part: Path, sha256: str | None) -> bool:
    """Return whether `part` is a partial download of the same file."""
    if not part.exists() or not _record_path(part).exists():
        return False
    try:
        record = _PartialRecord(**read_json(_record_path(part)))
    except (InputError, TypeError):
        return False
    same_digest = sha256 is not None and record.sha256 == sha256
    same_file = record.address == _url_sha256(url) and record.sha256 == sha256
    return same_digest or (same_file and record.validator is not None)


def _attempt_download(url: str, part: Path, sha256: str | None, options: DownloadOptions) -> None:
    """Make one request and append the missing bytes; download all bytes if the server cannot resume."""
    present = _partial_size(part)
    response = _request_missing_bytes(url, part, present, options)
    if response is None:
        return
    with response:
        start = _start_offset(response, part, present)
        if not start:
            part.unlink(missing_ok=True)
        total = _total_bytes(response, start)
        _require_file_response(url, response, total, sha256)
        stated_type = response.headers.get_content_type() if response.headers.get("Content-Type") else None
        validator = _response_validator(response.headers)
        record = _PartialRecord(_url_sha256(url), validator, sha256, stated_type)
        write_json(_record_path(part), asdict(record))
        # The built-in open() is used because Path.open has no `opener` argument, which sets O_NOFOLLOW here.
        with translate_write_errors(part), open(part, "ab", opener=_open_without_following_links) as file:
            done = _append_body(response, file, url, start, total, options)
            file.flush()
            os.fsync(file.fileno())
        if _partial_size(part) != done:  # some network file systems grant one lock to two processes
            discard_download(part)
            raise RetryableError("another process wrote to the same partial download")


def _open_without_following_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def _total_bytes(response: http.client.HTTPResponse, start: int) -> int | None:
    """Return the size of the whole file, if the server reports it."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if response.status == HTTPStatus.PARTIAL_CONTENT and total.isdigit():
        return int(total)
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _require_file_response(
    url: str, response: http.client.HTTPResponse, total: int | None, sha256: str | None
) -> None:
    """Raise FetchError if a response is not the file, is compressed by the server, or is too large."""
    if response.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        raise FetchError(
            f"{public_address(url)}: the server answered {response.status} {response.reason}, not a file"
        )
    coding = response.headers.get("Content-Encoding", "identity").lower()
    # Some servers report a .gz file's own compression as a content encoding, so it is accepted for such
    # names. If a SHA-256 is expected, the SHA-256 decides whether the bytes are right.
    if (
        coding not in ("", "identity")
        and not sha256
        and not _file_name_of_url(url).endswith((".gz", ".tgz", ".bz2", ".zst"))
    ):
        raise FetchError(
            f"{public_address(url)}: the server sends the file compressed ({coding}), not as it is",
            hint="download it with a browser and use the local path, or add @sha256:… of the bytes sent",
        )
    if total is not None and total > MAX_BYTES:
        raise FetchError(f"{public_address(url)}: {total:,} bytes, the limit is {MAX_BYTES:,}")


def _request_missing_bytes(
    url: str, part: Path, present: int, options: DownloadOptions
) -> http.client.HTTPResponse | None:
    """Request the bytes that are missing; None if the file is complete."""
    address, login = split_login(url)
    request = urllib.request.Request(address, headers={"User-Agent": user_agent()})  # noqa: S310
    if login:  # only for this server: a redirect must not receive the password
        request.add_unredirected_header("Authorization", login)
    for name, value in options.headers.items():
        request.add_unredirected_header(name, value)
    if present or options.stop_at:
        last = options.stop_at - 1 if options.stop_at else ""
        request.add_header("Range", f"bytes={present}-{last}")
        if validator := _recorded(part, "validator"):
            request.add_header("If-Range", validator)
    try:
        if options.before_request:
            options.before_request(address)
        opener = create_opener(options.before_request)
        response: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        with error:
            _raise_for_status(url, part, error, options.access_hint)
        return None
    except urllib.error.URLError as error:
        raise _connection_error(url, error) from error
    except (http.client.HTTPException, OSError) as error:
        raise _connection_lost(error) from error
    return response


def _start_offset(response: http.client.HTTPResponse, part: Path, present: int) -> int:
    """Return the offset of the response's body in the file: 0, or the size of the partial file."""
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        return 0
    span = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    recorded, current = _recorded(part, "validator"), _response_validator(response.headers)
    if span != str(present) or (recorded and recorded != current):
        discard_download(part)
        raise RetryableError("the server sent another range or version than requested")
    return present


def _recorded(part: Path, key: str) -> str | None:
    if not _record_path(part).exists():
        return None
    value = read_json(_record_path(part)).get(key)
    return str(value) if value else None


def _append_body(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    url: str,
    start: int,
    total: int | None,
    options: DownloadOptions,
) -> int:
    """Append the body, or its part up to `options.stop_at`, to the file and return the file's new size."""
    done, on_bytes = start, options.on_bytes
    if options.stop_at is not None:
        total = options.stop_at if total is None else min(total, options.stop_at)
    label = f"fetch {_file_name_of_url(url)}"
    bar = nullcontext() if on_bytes else progress(label, total=total, unit="B", start=start)
    with bar as own:
        report = on_bytes or cast("Bar", own).advance
        # A server may ignore the end of the requested range and send the whole file.
        while chunk := _read_chunk(response, _CHUNK if options.stop_at is None else options.stop_at - done):
            file.write(chunk)
            report(len(chunk))
            done += len(chunk)
            if done > MAX_BYTES:
                raise FetchError(f"{public_address(url)}: the server sent more than {MAX_BYTES:,} bytes")
        # If the connection closes early, http.client ends the body without an error.
        if total is not None and done != total:
            raise RetryableError(f"connection lost after {done:,} of {total:,} bytes")
    return done


def _read_chunk(response: http.client.HTTPResponse, size: int) -> bytes:
    try:
        return response.read(size)
    except (http.client.HTTPException, OSError) as error:
        raise _connection_lost(error) from error


def _connection_lost(error: Exception) -> RetryableError:
    return RetryableError(f"connection lost ({str(error) or type(error).__name__})")


def _raise_for_status(url: str, part: Path, error: urllib.error.HTTPError, access_hint: str) -> None:
    """Raise the error for an HTTP error status; return if the status means that the file is complete."""
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        # The header is `bytes */SIZE`. If SIZE is the partial file's size, the file is complete; otherwise
        # the partial file is from another version of the file.
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(_partial_size(part)):
            return
        discard_download(part)
        raise RetryableError("the file on the server has changed") from error
    if error.code in _TEMPORARY_FAILURES:
        pause = retry_after(error.headers.get("Retry-After", ""))
        raise RetryableError(f"the server answered {error.code} {error.reason}", pause) from error
    if error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        raise SourceError(f"{public_address(url)}: the server has no such file ({error.code})") from error
    if "infinite loop" in str(error.reason):
        raise FetchError(f"{public_address(url)}: endless redirects ({error.code})") from error
    hint = access_hint if error.code in _DENIED else None
    raise FetchError(
        f"{public_address(url)}: the server answered {error.code} {error.reason}", hint=hint
    ) from error


def _connection_error(url: str, error: urllib.error.URLError) -> FetchError | RetryableError:
    if isinstance(error.reason, ssl.SSLCertVerificationError):
        return FetchError(
            f"{public_address(url)}: the server's certificate is not trusted ({error.reason.verify_message})",
            hint="set SSL_CERT_FILE to a file with the certificates to trust",
        )
    return RetryableError(f"cannot reach the server ({error.reason})")


def _partial_size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _response_validator(headers: email.message.Message) -> str | None:
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    modified = headers.get("Last-Modified")
    return str(modified) if modified else None


def _record_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def discard_download(part: Path) -> None:
    """Remove a complete or partial download and its record."""
    part.unlink(missing_ok=True)
    _record_path(part).unlink(missing_ok=True)


def _url_sha256(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def _file_name_of_url(url: str) -> str:
    path = urllib.parse.urlsplit(url).path
    return urllib.parse.unquote(path.rsplit("/", 1)[-1]) or public_address(url)
