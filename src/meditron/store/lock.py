"""Lock files: the kernel's locks, so that one goes with the process that held it, however that ended."""

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

__all__ = ["exclusive_lock", "lock_file"]


@contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """Open a lock file, made with its folder if it is missing, and close it at the end: yield its descriptor.

    Raises:
        StorageError: the path is a link, or another name of a file that stands elsewhere too. Neither is ever
            written through: it may be a file of the user's.
    """
    make_folder(path.parent)
    with translate_write_errors(path):
        try:
            descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644
            )
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise _foreign(path) from None
            raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise _foreign(path)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(path: Path, waiting: str) -> Iterator[None]:
    """Hold a lock file for this process, and wait as long as another process holds it.

    Args:
        path: The lock file.
        waiting: Printed before waiting.

    Raises as `lock_file`.
    """
    with lock_file(path) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            info(waiting)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _foreign(path: Path) -> StorageError:
    return StorageError(f"{path}: not a lock file but a link or a special file", hint=f"remove it: rm {path}")
