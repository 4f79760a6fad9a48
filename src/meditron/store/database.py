"""SQLite databases with migrations, for data that changes: conversations, logs, reviews."""

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from meditron.core.errors import InputError, StorageError
from meditron.store.files import make_folder, translate_write_errors

__all__ = ["Database"]

_BUSY_SECONDS = 10.0  # wait for another process that writes
_creating = threading.Lock()
_FREE_SHARE = 4  # `compact` rewrites a file if more than one of so many pages is free


class Database:
    """A SQLite file. One connection, used by one thread at a time.

    Each migration is a script that brings the file from the version before to its own; `user_version` counts
    them. Only the owner can read the file. Deleted rows are overwritten, and `compact` removes them from the
    files beside it.
    """

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        """Open or create the file, and apply the migrations it lacks.

        Raises:
            InputError: the file is no such database, or was written by a newer version of the program.
            StorageError: the file cannot be created or written.
        """
        self.path = path
        self._lock = threading.RLock()
        make_folder(path.parent)
        with translate_write_errors(path):
            _create_private(path)
        with self._named_errors():
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            try:
                self._prepare(migrations)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, migrations: Sequence[str]) -> None:
        connection = self._connection
        connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for a writer
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA secure_delete = ON")
        with self._begin():
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(migrations):
                raise InputError(
                    self.path,
                    f"it has version {version}, and this program knows {len(migrations)}",
                    hint="update meditron",
                )
            for number, script in enumerate(migrations[version:], version + 1):
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection; commit at the end, roll back after an exception. Threads take turns.

        Raises:
            StorageError: the disk is full, or another process holds the file.
            InputError: the file is damaged.
        """
        with self._lock, self._named_errors(), self._begin():
            yield self._connection

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection for queries that see one state of the file and wait for no writer.

        Raises:
            StorageError: another process holds the file.
            InputError: the file is damaged.
        """
        with self._lock, self._named_errors(), self._begin("DEFERRED"):
            yield self._connection

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Return all rows of a query; errors are those of `snapshot`."""
        with self.snapshot() as connection:
            return connection.execute(query, values).fetchall()

    def compact(self) -> bool:
        """Remove deleted rows from all files of the database, and give their space back.

        Returns:
            False if a reader still needs the rows, so that they are still in the log of writes.

        Raises:
            StorageError: the disk is full, or another process holds the file.
            InputError: the file is damaged.
        """
        with self._lock, self._named_errors():
            [pages], [free] = (
                self._connection.execute(f"PRAGMA {name}").fetchone()
                for name in ("page_count", "freelist_count")
            )
            # Deleted rows are overwritten in any case; to rewrite the file is worth it for much free space.
            if free * _FREE_SHARE > pages:
                self._connection.execute("VACUUM")
            busy = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    @contextmanager
    def _begin(self, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Iterator[None]:
        self._connection.execute(f"BEGIN {kind}")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Raise errors of SQLite as errors that name the file. Violated constraints pass through."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.OperationalError as error:
            raise StorageError(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise InputError(self.path, f"{error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        """Return the database."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def _create_private(path: Path) -> None:
    """Create a file that only the owner can read, from its first moment on, or check one that exists.

    A file that exists is not opened here: closing it would release the locks that SQLite holds on it for
    other connections of this process, and another process would then remove its log of writes with all new
    rows.
    """
    with _creating:
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o600))
        except FileExistsError:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(
                    f"{path}: not a regular file", hint="give the path of a new file"
                ) from None
            if stat.S_IMODE(status.st_mode) != 0o600:
                path.chmod(0o600)


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script. `executescript` would commit the transaction first."""
    pending = ""
    for part in script.split(";"):
        pending += f"{part};"
        if sqlite3.complete_statement(pending):
            if pending.strip(" \n;"):
                yield pending
            pending = ""
