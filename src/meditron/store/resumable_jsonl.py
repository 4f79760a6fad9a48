"""JSON Lines files that several runs append to, each continuing where the last one was killed."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Self

from meditron.core.errors import StorageError
from meditron.store.files import atomic_write, translate_read_errors, translate_write_errors

__all__ = ["ResumableJsonl"]


class ResumableJsonl:
    """A JSON Lines file that is read once and then appended to. A context manager, which closes it.

    A kill can leave a last line without its end: it is not among `lines`, and the first write removes it.
    Opening changes nothing on the disk, so a caller can refuse a file of other content untouched. The file is
    never written through a link: a hard link is replaced by a copy of its own.

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
        """The complete lines of earlier runs, without their ends."""
        self.incomplete_line = content[end:]
        """The bytes of a last line that a kill cut off; empty if there is none."""
        self._rewrite = bool(self.incomplete_line) or (path.exists() and path.stat().st_nlink > 1)
        self._file: IO[bytes] | None = None

    def append(self, lines: Iterable[bytes], *, durable: bool = True) -> None:
        """Append lines, each with its end; if `durable`, they are on the disk when this returns."""
        if self._rewrite:
            self.replace(line + b"\n" for line in self.lines)
        with translate_write_errors(self.path):
            if self._file is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._file = os.fdopen(os.open(self.path, flags, 0o644), "ab")
            self._file.write(b"".join(lines))
            self._file.flush()
        if durable:
            self.sync()

    def sync(self) -> None:
        """Flush what was appended to the disk, which survives a power cut then."""
        if self._file is not None:
            with translate_write_errors(self.path):
                os.fsync(self._file.fileno())

    def replace(self, lines: Iterable[bytes]) -> None:
        """Replace the whole content by these lines, each with its end, atomically."""
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
