"""Lock files: the kernel's locks, so that one goes with the process that held it, however that ended."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meditron.ground.errors import StorageError
from meditron.store.files import make_folder, storing

__all__ = ["lock_file"]


@contextmanager
def lock_file(path: Path) -> Iterator[int]:
    """Open a lock file, made with its folder if it is missing, and close it at the end: yield its descriptor.

    Raises:
        StorageError: the path is a link, or another name of a file that stands elsewhere too. Neither is ever
            written through: it may be a file of the user's.
    """
    make_folder(path.parent)
    with storing(path):
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


def _foreign(path: Path) -> StorageError:
    return StorageError(f"{path}: not a lock file but a link or a special file", hint=f"remove it: rm {path}")
