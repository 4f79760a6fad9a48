"""The progress bar of a pass: it counts the shards that have been written, whichever machine wrote them."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from meditron.core.console import Bar, progress
from meditron.core.units import format_count

__all__ = ["Measure", "progress_by_files"]

Measure = Callable[[Path], Mapping[str, float]]
"""Function that returns the amounts in a shard, such as `{"documents": 2_000, "MB": 3.1}`."""

_POLL = 0.5  # seconds


@contextmanager
def progress_by_files(
    label: str, folder: Path, pattern: str, total: int | None = None, measure: Measure | None = None
) -> Iterator[None]:
    """Show a progress bar of the files in `folder` that match `pattern`, until the `with` block ends.

    Args:
        label: Name of the pass.
        folder: Folder of the files.
        pattern: Glob of the files. Each marks one finished shard.
        total: Number of shards, if it is known.
        measure: Amounts of a shard, given its file; the bar shows each of them per second.
    """
    seen = set(folder.glob(pattern))
    done = Event()
    with progress(label, total, "shards", start=len(seen)) as bar, ThreadPoolExecutor(1) as thread:
        polling = thread.submit(_poll_files, bar, lambda: folder.glob(pattern), seen, measure, done)
        try:
            yield
        finally:
            done.set()
            polling.result()


def _poll_files(
    bar: Bar, list_files: Callable[[], Iterator[Path]], seen: set[Path], measure: Measure | None, done: Event
) -> None:
    started = time.monotonic()
    amounts: defaultdict[str, float] = defaultdict(float)
    ended = False
    while not ended:
        ended = done.wait(_POLL)
        new = [path for path in list_files() if path not in seen]
        seen.update(new)
        if measure is not None:
            for path in new:
                for unit, amount in measure(path).items():
                    amounts[unit] += amount
        seconds = time.monotonic() - started
        bar.set_fields(**{f"{unit}_s": format_count(amount / seconds) for unit, amount in amounts.items()})
        bar.advance(len(new))
