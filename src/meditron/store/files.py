"""Files that are whole or absent: atomic writes, canonical JSON, digests.

A kill leaves the old file or the new one, and at worst a temporary beside it, which `sweep` removes. Nothing
here writes or removes through a link.
"""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, Any, BinaryIO, Literal, TextIO, cast, overload

from meditron.core.errors import InputError, SourceError, StorageError, UsageError

__all__ = [
    "MAX_JSON_BYTES",
    "MAX_JSON_DEPTH",
    "atomic",
    "cache_folder",
    "canonical",
    "digest_of",
    "exists",
    "finite",
    "list_files",
    "make_folder",
    "read_json",
    "refuse_overwrite",
    "remove",
    "remove_folder",
    "remove_temporaries",
    "sha256_file",
    "translate_read_errors",
    "translate_write_errors",
    "unique_keys",
    "walk_folder",
    "write_json",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FAILED = {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
# numpy's `tofile`, which loses the reason: the disk is full, or the file may grow no larger.
_NUMPY_SHORT = re.compile(r"\d+ requested and \d+ written")
_TEMPORARY = ".tmp"
# Below this, hashing is about as fast as looking up what the hash was.
_CACHED_FROM_BYTES = 1 << 20
MAX_JSON_BYTES = 256 << 20
"""Largest JSON file that is read: 256 MiB. Memory while it is read is some ten times that."""
MAX_JSON_DEPTH = 100
"""Deepest nesting of a JSON file; Python's own recursion ends at some hundreds."""
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
def translate_write_errors(path: Path) -> Iterator[None]:
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
        if error.errno in _FULL or error.errno is None:
            free = f" ({shutil.disk_usage(_existing(path)).free:,} bytes are free there)"
            hint = f"make room, or {hint}"
        raise StorageError(f"{path}: {error.strerror or error}{free}", hint=hint) from error


@contextmanager
def translate_read_errors(path: Path) -> Iterator[None]:
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


def refuse_overwrite(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise UsageError if writing an output would replace an input, or a part of one.

    Args:
        outputs: Files that will be replaced or appended to, or folders that will be replaced as a whole.
        inputs: Files and folders that the user named as input; a folder stands for everything below it.

    Paths are compared by device and inode, so links and other spellings of a path are found. A new file in
    an input folder replaces nothing and is allowed.
    """
    existing = [path for path in outputs if exists(path)]
    for source in filter(exists, inputs):
        for output in existing:
            real, named = output.resolve(), source.resolve()
            if output.samefile(source) or real.is_relative_to(named) or named.is_relative_to(real):
                raise UsageError(
                    f"{output} is, or is part of, the input {source}, which is never overwritten",
                    hint="choose another output path",
                )


def _existing(path: Path) -> Path:
    """The deepest folder on the way to `path` that is there."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _concerns(error: OSError, path: Path) -> bool:
    if error.filename is None:  # said of an open file: a broken connection may pass through here as well
        return error.errno in _FULL | _FAILED or _NUMPY_SHORT.fullmatch(str(error)) is not None
    path, named = path.absolute(), Path(os.fsdecode(error.filename)).absolute()
    return named.parent == path.parent or named in (path, *path.parents)


def make_folder(folder: Path) -> Path:
    """Make `folder` and what it stands in, and return it; StorageError where that is refused."""
    with translate_write_errors(folder):
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
    with translate_write_errors(path):
        # `x` never opens what is there: no file of somebody's, and no link to one.
        file = temporary.open(mode.replace("w", "x"), **cast("dict[str, Any]", text))
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


def remove_temporaries(folder: Path) -> None:
    """Remove the temporaries that killed writes left under `folder`, which nobody may be writing to now."""
    for path in sorted(folder.rglob(f".*{_TEMPORARY}")):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link (never what it leads to) or a folder with all in it; nothing if it is gone."""
    with translate_write_errors(path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_folder(folder: Path) -> None:
    """Remove a folder so that a kill leaves all of it or none under its name; `sweep` removes the rest."""
    doomed = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    folder.rename(doomed)
    remove(doomed)


def list_files(folder: Path) -> list[Path]:
    """Every file under `folder`, sorted by relative path; temporaries and hidden folders left out.

    Folders are entered as `entries` does. A link that leads nowhere is no file. InputError for a folder that
    cannot be read.
    """
    files = (path for path in walk_folder(folder) if path.is_file() and not _is_temporary(path))
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def walk_folder(folder: Path) -> Iterator[Path]:
    """Yield all that is under `folder` but the folders entered: files, hidden folders, broken links.

    Links are followed, and each folder is entered once: under its own path, or else under the first link that
    leads to it, so that a circle of links ends. InputError for a folder that cannot be read.
    """
    links: list[Path] = []
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting or links:
        # Folders before links to them: a folder's own path is the one it is read under.
        at = waiting.pop() if waiting else links.pop(0)
        with translate_read_errors(at):
            status = at.stat()
            if (key := (status.st_dev, status.st_ino)) in entered:
                continue
            entered.add(key)
            found = sorted(os.scandir(at), key=lambda entry: entry.name)
        for entry in found:
            path = Path(entry.path)
            if entry.name.startswith(".") or not path.is_dir():
                yield path
            else:
                (links if entry.is_symlink() else waiting).append(path)
        links.sort()


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
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError:  # a file's name that is no UTF-8, which JSON can only hold escaped
        content = json.dumps(value, indent=2).encode() + b"\n"
    with atomic(path) as file:
        file.write(content)


def read_json(path: Path, *, strict: bool = False) -> Any:  # noqa: ANN401  # JSON is what it is
    """Read a JSON file.

    Args:
        path: The file: at most 256 MiB, nested at most 100 deep.
        strict: Refuse a key that comes twice, NaN and infinity: meditron's own records never hold them.

    Raises:
        InputError: it is damaged, too large or too deep, with line and column where there are such.
        SourceError: there is no such file.
    """
    with translate_read_errors(path), path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise InputError(path, f"larger than {MAX_JSON_BYTES:,} bytes, the most that is read of a JSON file")
    rules: dict[str, Any] = (
        {"object_pairs_hook": unique_keys, "parse_constant": finite, "parse_float": finite} if strict else {}
    )
    try:
        value = json.loads(content, **rules)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(path, f"not JSON: {error.msg}", place=place) from error
    except UnicodeDecodeError as error:
        raise InputError(path, "not UTF-8", place=f"byte {error.start}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(path, f"not JSON that can be read: {error}") from error
    if _deeper(value, MAX_JSON_DEPTH):
        raise InputError(path, f"nested more than {MAX_JSON_DEPTH} levels deep")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; ValueError for a duplicate key, one of whose values would be lost."""
    table = dict(pairs)
    if len(table) < len(pairs):
        repeated = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f'duplicate key "{repeated}"')
    return table


def finite(number: str) -> float:
    """Return a JSON number; ValueError for NaN and infinity, which JSON does not know."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value


def _deeper(value: object, levels: int) -> bool:
    """Return whether containers are nested more than `levels` deep."""
    layer = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(layer)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with translate_read_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(path: Path, *, cached: bool = True) -> str:
    """Hexadecimal SHA-256 of a file, or of a folder as the list of its files (see `walk`).

    What was hashed once is remembered in the user's cache by path, inode, size, time of change of content and
    of status: a file written anew is hashed anew even if its size and its content's time were put back
    (`touch -r`), as nobody can set the status' time. With `cached` off every byte is read. SourceError where
    nothing is there.
    """
    if path.is_dir():
        files = [
            [file.relative_to(path).as_posix(), _file_digest(file, cached=cached)]
            for file in list_files(path)
        ]
        return hashlib.sha256(canonical(files)).hexdigest()
    return _file_digest(path, cached=cached)


def _file_digest(path: Path, *, cached: bool) -> str:
    with translate_read_errors(path):
        status = path.stat()
    if status.st_size < _CACHED_FROM_BYTES or not cached:
        return sha256_file(path)
    times = [status.st_mtime_ns, status.st_ctime_ns]
    seen = [status.st_size, status.st_dev, status.st_ino, *times]
    record = cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
    with suppress(SourceError, InputError):
        known = read_json(record, strict=True)
        if isinstance(known, dict) and known.get("seen") == seen:
            digest = known.get("sha256")
            if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest):
                return digest
    digest = sha256_file(path)
    if time.time_ns() - max(times) > _SETTLED_NS:
        # A cache that cannot be written costs time, never an answer.
        with suppress(StorageError):
            write_json(record, {"seen": seen, "sha256": digest})
    return digest
