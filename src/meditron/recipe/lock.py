"""One run at a time in a run's folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meditron.core.errors import MeditronError
from meditron.store.lock import lock_file

__all__ = ["locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process; MeditronError, naming the process, where another holds it."""
    with lock_file(folder / ".lock") as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise MeditronError(
                f"{folder}: another run is writing here" + (f", process {holder}" if holder else ""),
                hint="wait until it has ended, or write elsewhere with --out",
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
