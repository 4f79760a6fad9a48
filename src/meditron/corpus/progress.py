"""Progress of work in shards, whichever process does it: by looking for the files that end a shard."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from meditron.core.console import Bar, progress

__all__ = ["watched"]

_POLL = 0.5  # seconds between two looks


@contextmanager
def watched(label: str, folder: Path, pattern: str, total: int | None = None) -> Iterator[None]:
    """Show a bar that counts the files under `folder` that match `pattern`, until the block ends."""
    before = sum(1 for _ in folder.glob(pattern))
    done = Event()
    with progress(label, total, "shards", start=before) as bar, ThreadPoolExecutor(1) as thread:
        looking = thread.submit(_look, bar, folder, pattern, before, done)
        try:
            yield
        finally:
            done.set()
            looking.result()


def _look(bar: Bar, folder: Path, pattern: str, seen: int, done: Event) -> None:
    ended = False
    while not ended:
        ended = done.wait(_POLL)
        now = sum(1 for _ in folder.glob(pattern))
        bar.advance(now - seen)
        seen = now
