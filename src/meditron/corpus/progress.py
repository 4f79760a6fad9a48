"""Progress of work in several processes, counted by the files that they finish."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from meditron.core.console import Bar, progress

__all__ = ["progress_by_files"]

_POLL = 0.5  # seconds


@contextmanager
def progress_by_files(label: str, folder: Path, pattern: str, total: int | None = None) -> Iterator[None]:
    """Show a bar that counts the files in `folder` that match `pattern`, until the block ends."""
    before = sum(1 for _ in folder.glob(pattern))
    done = Event()
    with progress(label, total, "shards", start=before) as bar, ThreadPoolExecutor(1) as thread:
        polling = thread.submit(_poll, bar, folder, pattern, before, done)
        try:
            yield
        finally:
            done.set()
            polling.result()


def _poll(bar: Bar, folder: Path, pattern: str, seen: int, done: Event) -> None:
    ended = False
    while not ended:
        ended = done.wait(_POLL)
        now = sum(1 for _ in folder.glob(pattern))
        bar.advance(now - seen)
        seen = now
