"""Lock files. The kernel releases a lock when its process ends, however it ends."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meditron.core.console import info
from meditron.core.errors import StorageError
from meditron.store.files import make_folder, translate_write_errors

__all__ = ["exclusive_lock", "open_lock_file"]


@contextmanager
def open_lock_file(path: Path) -> Iterator[int]:
    """Open a lock file, after creating it and its folder if they are missing; yield its file descriptor.

    Raises:
        StorageError: the path is a symbolic link, a hard link or a special file, so that writing to it could
            change another file.
    """
    make_folder(path.parent)
    with translate_write_errors(path):
        # Without O_NONBLOCK, opening a FIFO would wait for a writer. Without O_CLOEXEC, a child process would
        # inherit the descriptor and keep the lock after this process ends.
        try:
            descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644
            )
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise _not_a_lock_file_error(path) from None
            raise
    try:
        # The open descriptor is checked, because the file at the path could be exchanged between a check of
        # the path and the opening.
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise _not_a_lock_file_error(path)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(path: Path, waiting: str) -> Iterator[None]:
    """Take an exclusive lock; if another process has it, print the message `waiting` and wait.

    Raises the errors of `open_lock_file`.
    """
    with open_lock_file(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            info(waiting)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _not_a_lock_file_error(path: Path) -> StorageError:
    return StorageError(f"{path}: not a lock file but a link or a special file", hint=f"remove it: rm {path}")
