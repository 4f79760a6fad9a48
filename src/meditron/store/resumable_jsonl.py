"""JSON Lines files to which a killed run and the runs that resume it append."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Self

from meditron.core.errors import StorageError
from meditron.store.files import atomic_write, translate_read_errors, translate_write_errors

__all__ = ["ResumableJsonl"]


class ResumableJsonl:
    """A JSON Lines file that is read when opened and then appended to; a context manager that closes it.

    A kill can leave a last line without its newline. That line is not among `lines`, and the first write
    removes it from the file. Opening writes nothing, so a caller can reject a file with other content and
    leave it unchanged. The file is never written through a link: a file with several hard links is replaced
    by a copy.

    Raises:
        StorageError: the path is a symbolic link.
        InputError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if path.is_symlink():
            raise StorageError(f"{path}: is a symbolic link, which is never written through")
        content = b""
        if path.exists():
            with translate_read_errors(path):
                content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        self.path = path
        self.lines = content[:end].split(b"\n")[:-1]
        """The complete lines of earlier runs, without their newlines."""
        self.incomplete_line = content[end:]
        """The bytes after the last newline, left by a kill during a write; empty if there are none."""
        self._rewrite = bool(self.incomplete_line) or (path.exists() and path.stat().st_nlink > 1)
        self._file: IO[bytes] | None = None

    def append(self, lines: Iterable[bytes], *, durable: bool = True) -> None:
        """Append lines, each of which ends with a newline; if `durable`, flush them to the disk."""
        if self._rewrite:
            self.replace_content(line + b"\n" for line in self.lines)
        with translate_write_errors(self.path):
            if self._file is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._file = os.fdopen(os.open(self.path, flags, 0o644), "ab")
            self._file.write(b"".join(lines))
            self._file.flush()
        if durable:
            self.sync()

    def sync(self) -> None:
        """Flush the appended lines to the disk, so that they survive a power failure."""
        if self._file is not None:
            with translate_write_errors(self.path):
                os.fsync(self._file.fileno())

    def replace_content(self, lines: Iterable[bytes]) -> None:
        """Replace the file's content by these lines, each of which ends with a newline, atomically."""
        self.close()  # an open handle would go on writing to the file that is replaced
        with atomic_write(self.path) as file:
            file.writelines(lines)
        self._rewrite = False

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()
