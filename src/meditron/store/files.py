"""Files that are whole or absent: atomic writes, canonical JSON, digests.

A kill leaves the old file or the new one, and at worst a temporary beside it, which `sweep` removes.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO, Literal, TextIO, cast, overload

from meditron.ground.errors import InputError, SourceError, StorageError

__all__ = [
    "atomic",
    "cache_folder",
    "canonical",
    "digest_of",
    "exists",
    "make_folder",
    "read_json",
    "reading",
    "remove_folder",
    "sha256_file",
    "storing",
    "sweep",
    "walk",
    "write_json",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FAILED = {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
_TEMPORARY = ".tmp"
# Below this, hashing is about as fast as looking up what the hash was.
_CACHED_FROM_BYTES = 1 << 20
# A file changed this shortly before it was hashed may change again without its time showing it.
_SETTLED_NS = 2_000_000_000


def cache_folder() -> Path:
    """The user's cache: `$MEDITRON_CACHE`, else `$XDG_CACHE_HOME/meditron`, else `~/.cache/meditron`."""
    if own := os.environ.get("MEDITRON_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "meditron"
    return Path.home() / ".cache" / "meditron"


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the file system says against writing `path` into a StorageError of one line.

    An OSError that names a file elsewhere passes through, as a broken connection does: neither is about this
    write.
    """
    try:
        yield
    except OSError as error:
        if not _concerns(error, path):
            raise
        free, hint = "", "choose another place with --out or $MEDITRON_CACHE"
        if error.errno in _FULL:
            free = f" ({shutil.disk_usage(_existing(path)).free:,} bytes are free there)"
            hint = f"make room, or {hint}"
        raise StorageError(f"{path}: {error.strerror}{free}", hint=hint) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the file system says against reading `path` into one line.

    SourceError where nothing is there; InputError where it is a folder, or may not or cannot be read.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror or error}") from error


def exists(path: Path) -> bool:
    """Whether `path` names something; a text too long to be a path, or not to be looked at, names nothing."""
    try:
        return path.exists()
    except OSError:
        return False


def _existing(path: Path) -> Path:
    """The deepest folder on the way to `path` that is there."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _concerns(error: OSError, path: Path) -> bool:
    if error.filename is None:  # said of an open file: a broken connection may pass through here as well
        return error.errno in _FULL | _FAILED
    path, named = path.absolute(), Path(os.fsdecode(error.filename)).absolute()
    return named.parent == path.parent or named in (path, *path.parents)


def make_folder(folder: Path) -> Path:
    """Make `folder` and what it stands in, and return it; StorageError where that is refused."""
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@overload
def atomic(path: Path, mode: Literal["wb"] = "wb") -> AbstractContextManager[BinaryIO]: ...
@overload
def atomic(path: Path, mode: Literal["w"]) -> AbstractContextManager[TextIO]: ...
@contextmanager  # type: ignore[misc]  # mypy cannot match the two streams with the union yielded
def atomic(path: Path, mode: Literal["wb", "w"] = "wb") -> Iterator[IO[Any]]:
    """Write `path` so that it is whole or absent: temporary beside it, fsync, rename, fsync of the folder.

    Text is UTF-8 with plain newlines. Nothing remains of a write that fails. StorageError for a disk that is
    full or takes no bytes.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with storing(path):
        file = temporary.open(mode, **cast("dict[str, Any]", text))
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()
            temporary.replace(path)
        except BaseException:
            # Closing flushes once more what could not be written; the first error is the one that counts.
            with suppress(OSError):
                file.close()
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_temporary(path: PurePath) -> bool:
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


def sweep(folder: Path) -> None:
    """Remove the temporaries that killed writes left under `folder`, which nobody may be writing to now."""
    for path in sorted(folder.rglob(f".*{_TEMPORARY}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill leaves all of it or none under its name; `sweep` removes the rest."""
    doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def walk(folder: Path, *, links: bool = False) -> list[Path]:
    """Every file under `folder`, sorted by relative path; temporaries and hidden folders left out.

    Linked files are listed; linked folders only with `links`, each folder once.
    """
    found: dict[PurePath, Path] = {}
    visited: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=links):
        status = Path(parent).stat()
        folders.sort()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        files = (path for path in (Path(parent, name) for name in names) if path.is_file())
        found |= {path.relative_to(folder): path for path in files}
    return [
        found[relative]
        for relative in sorted(found, key=PurePath.as_posix)
        if not _is_temporary(relative) and not any(part.startswith(".") for part in relative.parts[:-1])
    ]


def canonical(value: object) -> bytes:
    """The one JSON text of a plain value: sorted keys, no spaces, UTF-8.

    TypeError, with the place, for what is not plain JSON: tuples, sets, paths, callables, NaN, keys that
    are not strings. Such a value would not be the same after it has been read back.
    """
    _require_plain(value, "$")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # A file's name may be no UTF-8, which Python holds as lone surrogates.
    return text.encode("utf-8", "surrogatepass")


def _require_plain(value: object, place: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{place} has the key {key!r}, which is not a string")
            _require_plain(item, f"{place}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _require_plain(item, f"{place}[{index}]")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f"{place} is a {type(value).__name__}, which is not plain JSON")
    elif isinstance(value, float) and value - value != 0:
        raise TypeError(f"{place} is {value}, which JSON does not know")


def write_json(path: Path, value: object) -> None:
    """Write a plain value atomically, indented, for people and programs; ValueError for NaN and infinity."""
    with atomic(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_json(path: Path) -> Any:  # noqa: ANN401  # JSON is what it is
    """Read a JSON file; InputError, with line and column, where it is damaged; errors as of `reading`."""
    with reading(path):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(path, f"not JSON: {error.msg}", place=place) from error
    except UnicodeDecodeError as error:
        raise InputError(path, "not UTF-8", place=f"byte {error.start}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(path, f"not JSON that can be read: {error}") from error


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, or of a folder as the list of its files, linked folders included.

    What was hashed once is remembered in the user's cache by path, size and time. SourceError where nothing
    is there.
    """
    if path.is_dir():
        files = [[file.relative_to(path).as_posix(), _file_digest(file)] for file in walk(path, links=True)]
        return hashlib.sha256(canonical(files)).hexdigest()
    return _file_digest(path)


def _file_digest(path: Path) -> str:
    with reading(path):
        status = path.stat()
    if status.st_size < _CACHED_FROM_BYTES:
        return sha256_file(path)
    seen = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino]
    record = cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
    with suppress(SourceError, InputError):
        known = read_json(record)
        if isinstance(known, dict) and known.get("seen") == seen:
            return str(known.get("sha256"))
    digest = sha256_file(path)
    if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        # A cache that cannot be written costs time, never an answer.
        with suppress(StorageError):
            write_json(record, {"seen": seen, "sha256": digest})
    return digest
