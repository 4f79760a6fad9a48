"""Writing of new files that never replace an existing one, and are all there or not at all."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from meditron.core.console import Bar, progress
from meditron.core.errors import InputError, StorageError, UsageError
from meditron.core.units import format_bytes
from meditron.store.files import (
    fsync_path,
    make_folder,
    temporary_path,
    translate_read_errors,
    translate_write_errors,
)

__all__ = ["NewFile", "concatenate", "create_new_files", "refuse_existing"]

_CHUNK = 8 << 20
# File systems without hard links, such as FAT, refuse them with one of these.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}


class NewFile:
    """A file under a temporary name, with the SHA-256 of its bytes; a context manager that opens it to write.

    The file is closed with its bytes on the disk.
    """

    def __init__(self, path: Path, bar: Bar) -> None:
        self.path, self.temporary = path, temporary_path(path)
        self._bar, self._hash = bar, hashlib.sha256()
        self._file: BinaryIO | None = None
        self.nbytes = 0
        """Bytes written."""

    def __enter__(self) -> Self:
        """Create the file."""
        with translate_write_errors(self.path):
            self._file = self.temporary.open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush the bytes to the disk, and close the file."""
        assert self._file is not None  # noqa: S101
        with translate_write_errors(self.path), self._file as file:
            if error is None:
                file.flush()
                os.fsync(file.fileno())

    def write(self, content: bytes) -> None:
        """Append bytes; StorageError if the disk is full."""
        assert self._file is not None  # noqa: S101
        with translate_write_errors(self.path):
            self._file.write(content)
        self._hash.update(content)
        self.nbytes += len(content)
        self._bar.advance(len(content))

    def pad(self, alignment: int) -> None:
        """Append zeros up to a multiple of `alignment`."""
        self.write(bytes(-self.nbytes % alignment))

    def copy(self, source: BinaryIO, path: Path, start: int, count: int) -> None:
        """Append `count` bytes of an open file from the byte `start`, in chunks.

        Raises:
            InputError: the file, called `path`, has become shorter.
        """
        source.seek(start)
        while count:
            chunk = source.read(min(count, _CHUNK))
            if not chunk:
                raise InputError(path, "the file became shorter while it was read", place=f"byte {start}")
            self.write(chunk)
            start, count = start + len(chunk), count - len(chunk)

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the bytes written."""
        return self._hash.hexdigest()

    @property
    def record(self) -> dict[str, str | int]:
        """The file's path, size and SHA-256, for `--json`."""
        return {"path": str(self.path), "bytes": self.nbytes, "sha256": self.sha256}


def refuse_existing(paths: Sequence[Path]) -> None:
    """Raise UsageError if one of the paths exists, even as a broken link."""
    for path in paths:
        if os.path.lexists(path):
            raise UsageError(
                f"{path}: exists, and is never overwritten",
                hint="remove it, or choose another name",
            )


@contextmanager
def create_new_files(paths: Sequence[Path], nbytes: int, bar: Bar) -> Iterator[list[NewFile]]:
    """Write files under temporary names, and give them their names when the block ends.

    If the block raises, or a name has been taken meanwhile, none of the files is left.

    Args:
        paths: The files, in one folder; none may exist.
        nbytes: Size of all files together, which must be free on the disk.
        bar: Progress bar of the bytes written.

    Raises:
        UsageError: a file exists.
        StorageError: the disk has too little space, or a write fails.
    """
    refuse_existing(paths)
    folder = make_folder(paths[0].parent)
    if (free := shutil.disk_usage(folder).free) < nbytes:
        raise StorageError(
            f"{folder}: needs {format_bytes(nbytes)}, but only {format_bytes(free)} are free",
            hint="free some space, or choose another folder",
        )
    files = [NewFile(path, bar) for path in paths]
    try:
        yield files
        _publish(files)
        fsync_path(folder)
    finally:
        for file in files:
            file.temporary.unlink(missing_ok=True)


@contextmanager
def concatenate(paths: Sequence[Path], out: Path) -> Iterator[NewFile]:
    """Write the content of files one after another to a new file, which gets its name when the block ends.

    Raises the errors of `create_new_files`, and InputError or SourceError for a file that cannot be read.
    """
    sizes = []
    for path in paths:
        with translate_read_errors(path):
            sizes.append(path.stat().st_size)
    with (
        progress(f"join {out.name}", sum(sizes), unit="B") as bar,
        create_new_files([out], sum(sizes), bar) as (new,),
    ):
        with new:
            for path, size in zip(paths, sizes, strict=True):
                with translate_read_errors(path), path.open("rb") as source:
                    new.copy(source, path, 0, size)
        yield new


def _publish(files: Sequence[NewFile]) -> None:
    """Give each file its name; if one of the names is taken, remove the others again."""
    published: list[Path] = []
    try:
        for file in files:
            with translate_write_errors(file.path):
                _rename_new(file.temporary, file.path)
            published.append(file.path)
    except BaseException:
        for path in published:
            with suppress(OSError):
                path.unlink()
        raise


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename a file; UsageError if the new name exists."""
    try:
        # Unlike a rename, a link never replaces a file that another process has just created.
        path.hardlink_to(temporary)
    except FileExistsError:
        refuse_existing([path])
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        refuse_existing([path])
        temporary.rename(path)
