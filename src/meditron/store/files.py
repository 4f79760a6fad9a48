"""Atomic writes, safe removal, JSON files and digests.

If the process is killed during a write, the path still has either the complete old file or the complete new
one, possibly with a temporary file beside it, which `remove_temporaries` removes. No function in this module
writes to or removes the target of a link.
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

from meditron.core.errors import DigestError, InputError, SourceError, StorageError, UsageError

__all__ = [
    "MAX_JSON_BYTES",
    "MAX_JSON_DEPTH",
    "atomic_write",
    "cache_folder",
    "canonical_json",
    "content_digest",
    "data_folder",
    "fsync_path",
    "list_files",
    "make_folder",
    "md5_file",
    "parse_finite_number",
    "path_exists",
    "read_json",
    "refuse_overwrite",
    "reject_duplicate_keys",
    "remove_folders",
    "remove_path",
    "remove_temporaries",
    "require_digest",
    "sha256_file",
    "temporary_path",
    "translate_read_errors",
    "translate_write_errors",
    "walk_folder",
    "write_json",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FAILED = {errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
# The message of the OSError without an errno that numpy's `tofile` raises if the disk is full or the file
# would exceed a size limit.
_NUMPY_SHORT = re.compile(r"\d+ requested and \d+ written")
_TEMPORARY = ".tmp"
# Digests are cached for files from this size on. A smaller file is hashed as fast as its record is read.
_CACHED_FROM_BYTES = 1 << 20
MAX_JSON_BYTES = 256 << 20
"""Largest accepted JSON file: 256 MiB. Parsing a file takes memory of about ten times its size."""
MAX_JSON_DEPTH = 100
"""Deepest accepted nesting of a JSON file; Python's parser fails at a few hundred levels."""
# A digest is cached only if the file's last change is older than this. A later change within the resolution
# of the file system's clock would leave the times as they are and go unnoticed.
_SETTLED_NS = 2_000_000_000


def cache_folder() -> Path:
    """Return `$MEDITRON_CACHE`, else `$XDG_CACHE_HOME/meditron`, else `~/.cache/meditron`."""
    if folder := os.environ.get("MEDITRON_CACHE"):
        return Path(folder).expanduser().absolute()
    if parent := os.environ.get("XDG_CACHE_HOME"):
        return Path(parent).expanduser().absolute() / "meditron"
    return Path.home() / ".cache" / "meditron"


def data_folder() -> Path:
    """Return `$XDG_DATA_HOME/meditron`, else `~/.local/share/meditron`."""
    if parent := os.environ.get("XDG_DATA_HOME"):
        return Path(parent).expanduser().absolute() / "meditron"
    return Path.home() / ".local" / "share" / "meditron"


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Convert OSErrors from writing `path` into a one-line StorageError.

    Unrelated errors pass through unchanged: an OSError that names a file elsewhere, or a broken connection.
    """
    try:
        yield
    except OSError as error:
        if not _error_concerns_path(error, path):
            raise
        free, hint = "", "choose another folder with --out or $MEDITRON_CACHE"
        if error.errno in _FULL or error.errno is None:
            free = f" ({shutil.disk_usage(_existing_parent(path)).free:,} bytes free)"
            hint = f"free some space, or {hint}"
        raise StorageError(f"{path}: {error.strerror or error}{free}", hint=hint) from error


@contextmanager
def translate_read_errors(path: Path) -> Iterator[None]:
    """Convert OSErrors from reading `path` into one-line errors.

    Raises:
        SourceError: there is no such file.
        InputError: it is a folder, or reading it failed or is not permitted.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror or error}") from error


def path_exists(path: Path) -> bool:
    """Return whether `path` exists; False also if it is too long for a path or may not be accessed."""
    try:
        return path.exists()
    except OSError:
        return False


def refuse_overwrite(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise UsageError if writing an output would replace an input, or a file in an input folder.

    Args:
        outputs: Files that will be replaced or appended to, or folders that will be replaced as a whole.
        inputs: Files and folders that the user named as input; a folder includes everything below it.

    Paths are compared by device and inode, which also detects links and other spellings of a path. A new file
    in an input folder replaces nothing and is allowed.
    """
    existing = [path for path in outputs if path_exists(path)]
    for source in filter(path_exists, inputs):
        for output in existing:
            target, origin = output.resolve(), source.resolve()
            if output.samefile(source) or target.is_relative_to(origin) or origin.is_relative_to(target):
                raise UsageError(
                    f"{output}: would overwrite the input {source}; inputs are never overwritten",
                    hint="choose another output path",
                )


def _existing_parent(path: Path) -> Path:
    """Return the deepest existing folder among the parents of `path`."""
    return next(parent for parent in path.absolute().parents if parent.is_dir())


def _error_concerns_path(error: OSError, path: Path) -> bool:
    if error.filename is None:  # from an open file; sockets raise such errors too, so the errno must fit
        return error.errno in _FULL | _FAILED or _NUMPY_SHORT.fullmatch(str(error)) is not None
    path, named = path.absolute(), Path(os.fsdecode(error.filename)).absolute()
    return named.parent == path.parent or named in (path, *path.parents)


def make_folder(folder: Path) -> Path:
    """Create `folder` and its parents, and return it; StorageError if that fails."""
    with translate_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@overload
def atomic_write(path: Path, mode: Literal["wb"] = "wb") -> AbstractContextManager[BinaryIO]: ...
@overload
def atomic_write(path: Path, mode: Literal["w"]) -> AbstractContextManager[TextIO]: ...
@contextmanager  # type: ignore[misc]  # mypy cannot match the two streams with the union yielded
def atomic_write(path: Path, mode: Literal["wb", "w"] = "wb") -> Iterator[IO[Any]]:
    """Write `path` atomically: a temporary file beside it, fsync, rename, fsync of the folder.

    Text is encoded as UTF-8 with Unix line ends. If the block raises, the temporary file is removed and
    `path` is unchanged. StorageError if the disk is full, the file system refuses the write, or `path` is a
    device or a pipe.
    """
    with translate_write_errors(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            # The rename would replace the device itself, such as /dev/full, for the whole machine.
            raise StorageError(f"{path}: not a regular file", hint="give the path of a new file")
    make_folder(path.parent)
    temporary = temporary_path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with translate_write_errors(path):
        # Mode `x` fails if the name exists, so neither another process's file nor a link can be opened.
        file = temporary.open(mode.replace("w", "x"), **cast("dict[str, Any]", text))
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()
            temporary.replace(path)
        except BaseException:
            # close() flushes once more; an error of that flush must not replace the first error.
            with suppress(OSError):
                file.close()
            temporary.unlink(missing_ok=True)
            raise
        fsync_path(path.parent)


def temporary_path(path: Path) -> Path:
    """Return an unused hidden path beside `path` for a file or folder that is not complete yet."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")


def fsync_path(path: Path) -> None:
    """Flush a file's bytes, or a folder's renames, to the disk, so that they survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_temporary(path: PurePath) -> bool:
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


def remove_temporaries(folder: Path, *, recursive: bool = True) -> None:
    """Remove the temporary files and folders that killed processes left in `folder`.

    No other process may be writing to the folder. Subfolders of the folder are searched too if `recursive`.
    """
    pattern = f".*{_TEMPORARY}"
    for path in sorted(folder.rglob(pattern) if recursive else folder.glob(pattern)):
        remove_path(path)


def remove_path(path: Path) -> None:
    """Remove a file, a folder with its content, or a link (not its target); no-op if the path is absent."""
    with translate_write_errors(path), suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_folders(folders: Iterable[Path]) -> None:
    """Remove folders such that after a kill none of them is left half removed under its own name.

    All folders are first renamed to temporary names, which takes microseconds, and then removed. If the
    removal is interrupted, `remove_temporaries` removes the rest.
    """
    renamed = [folder.rename(temporary_path(folder)) for folder in folders]
    for folder in renamed:
        remove_path(folder)


def list_files(folder: Path) -> list[Path]:
    """Return every file under `folder`, sorted by relative path.

    Temporary files, broken links and the files in hidden folders are left out. Links to folders are followed
    as in `walk_folder`. InputError for an unreadable folder.
    """
    files = (path for path in walk_folder(folder) if path.is_file() and not _is_temporary(path))
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def walk_folder(folder: Path) -> Iterator[Path]:
    """Yield every file, broken link and hidden folder under `folder`, sorted by path, in bounded memory.

    Hidden folders are not searched. Links to folders are followed. Each folder is visited once, so that a
    cycle of links ends: under its own path if that is below `folder`, else under the first link to it.
    InputError for an unreadable folder.
    """
    with translate_read_errors(folder):
        root = folder.resolve(strict=True)
    # Only links lead to a folder twice, so other folders need not be remembered: there may be millions.
    linked_folders = {_folder_id(root)}
    pending = [(_list_folder(folder), False)]
    while pending:
        entries, through_link = pending[-1]
        path, kind = next(entries, (None, None))
        if path is None:
            pending.pop()
        elif kind is None:
            yield path
        elif not (through_link or kind == "link"):
            pending.append((_list_folder(path), False))
        else:
            target = path.resolve()
            own_path = target.is_relative_to(root) and not _is_hidden(target.relative_to(root))
            if not own_path and (key := _folder_id(target)) not in linked_folders:
                linked_folders.add(key)
                pending.append((_list_folder(path), True))


def _list_folder(folder: Path) -> Iterator[tuple[Path, Literal["folder", "link"] | None]]:
    """Yield the entries of a folder, sorted by name, each with its kind if it is a folder to search."""
    # Names instead of entries: a folder may have millions of files.
    names: list[str] = []
    folders: dict[str, Literal["folder", "link"]] = {}
    with translate_read_errors(folder), os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders[entry.name] = "folder"
            # Path.is_dir: for a link to itself, `entry.is_dir` would raise.
            elif entry.is_symlink() and Path(entry.path).is_dir():
                folders[entry.name] = "link"
    names.sort()
    return ((folder / name, folders.get(name)) for name in names)


def _folder_id(folder: Path) -> tuple[int, int]:
    with translate_read_errors(folder):
        status = folder.stat()
    return status.st_dev, status.st_ino


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def canonical_json(value: object) -> bytes:
    """Encode a plain value as canonical JSON: sorted keys, no spaces, UTF-8.

    Raises:
        TypeError: a value has no exact JSON form (a tuple, set, path, callable, NaN, a key that is not a
            string), so that decoding would not return an equal value; the error names its position.
    """
    _require_plain_json(value, "$")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # A file name need not be UTF-8; Python keeps such bytes as lone surrogates.
    return text.encode("utf-8", "surrogatepass")


def _require_plain_json(value: object, place: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{place} has the key {key!r}, which is not a string")
            _require_plain_json(item, f"{place}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _require_plain_json(item, f"{place}[{index}]")
    elif value is not None and type(value) not in (str, int, float, bool):
        raise TypeError(f"{place} has the type {type(value).__name__}; JSON has no such type")
    elif isinstance(value, float) and value - value != 0:
        raise TypeError(f"{place} is {value}, which JSON cannot represent")


def write_json(path: Path, value: object) -> None:
    """Write a plain value as indented JSON, atomically; ValueError for NaN and infinity."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError:  # lone surrogates, from a file name that is not UTF-8, need escapes
        content = json.dumps(value, indent=2).encode() + b"\n"
    with atomic_write(path) as file:
        file.write(content)


def read_json(path: Path, *, strict: bool = False) -> Any:  # noqa: ANN401  # any JSON value
    """Read a JSON file.

    Args:
        path: The file: at most 256 MiB, nested at most 100 deep.
        strict: Reject duplicate keys, NaN and infinity, which meditron's own records never contain.

    Raises:
        InputError: the file is damaged, too large or nested too deeply; the error names line and column if
            they are known.
        SourceError: there is no such file.
    """
    with translate_read_errors(path), path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise InputError(path, f"larger than {MAX_JSON_BYTES:,} bytes, the limit for a JSON file")
    decoder_options: dict[str, Any] = (
        {
            "object_pairs_hook": reject_duplicate_keys,
            "parse_constant": parse_finite_number,
            "parse_float": parse_finite_number,
        }
        if strict
        else {}
    )
    try:
        value = json.loads(content, **decoder_options)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(path, f"not JSON: {error.msg}", place=place) from error
    except UnicodeDecodeError as error:
        raise InputError(path, "not UTF-8", place=f"byte {error.start}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(path, f"not JSON that can be read: {error}") from error
    if _nested_deeper_than(value, MAX_JSON_DEPTH):
        raise InputError(path, f"nested more than {MAX_JSON_DEPTH} levels deep")
    return value


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object from its pairs; ValueError for a duplicate key, whose first value would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        duplicate = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f'duplicate key "{duplicate}"')
    return values


def parse_finite_number(number: str) -> float:
    """Parse a JSON number; ValueError for NaN and infinity, which the JSON standard excludes."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value


def _nested_deeper_than(value: object, levels: int) -> bool:
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
    """Compute the hexadecimal SHA-256 of a file's bytes."""
    with translate_read_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5_file(path: Path) -> str:
    """Compute the hexadecimal MD5 of a file's bytes, which servers state to detect damage."""
    with translate_read_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def require_digest(name: Path | str, digest: str, expected: str) -> None:
    """Raise DigestError if the SHA-256 of the file called `name` is not the expected one."""
    if digest != expected:
        raise DigestError(name, f"SHA-256 is {digest}, expected {expected}")


def content_digest(path: Path, *, cached: bool = True) -> str:
    """Compute the hexadecimal SHA-256 of a file, or of the list of a folder's files with their SHA-256.

    Digests of files are cached in the user's cache by path, inode, size, mtime and ctime. A rewritten file is
    hashed again even if its size and mtime were restored (`touch -r`), because programs cannot set the ctime.
    With `cached=False` every byte is read. SourceError if the path does not exist.
    """
    if path.is_dir():
        files = [
            [file.relative_to(path).as_posix(), _file_digest(file, cached=cached)]
            for file in list_files(path)
        ]
        return hashlib.sha256(canonical_json(files)).hexdigest()
    return _file_digest(path, cached=cached)


def _file_digest(path: Path, *, cached: bool) -> str:
    with translate_read_errors(path):
        status = path.stat()
    if status.st_size < _CACHED_FROM_BYTES or not cached:
        return sha256_file(path)
    times = [status.st_mtime_ns, status.st_ctime_ns]
    identity = [status.st_size, status.st_dev, status.st_ino, *times]
    record = cache_folder() / "digests" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
    with suppress(SourceError, InputError):
        known = read_json(record, strict=True)
        if isinstance(known, dict) and known.get("seen") == identity:
            digest = known.get("sha256")
            if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest):
                return digest
    digest = sha256_file(path)
    if time.time_ns() - max(times) > _SETTLED_NS:
        # If the cache is read-only, the digest is computed every time, which is slow but not an error.
        with suppress(StorageError):
            write_json(record, {"seen": identity, "sha256": digest})
    return digest
