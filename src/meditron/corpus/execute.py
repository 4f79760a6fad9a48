"""Numbered tasks on datatrove's executors, and their progress; no other module imports datatrove.

A task can be called again after a kill: every file it writes appears whole, and finished ones are kept.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from meditron.core.console import Bar, progress
from meditron.core.errors import MissingExtra

try:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from loguru import logger
except ImportError as missing:
    raise MissingExtra("datatrove", "corpus") from missing

__all__ = ["execute", "progress_by_files"]

_POLL = 0.5  # seconds

# Its log goes to stderr and to a file per task; progress and errors are printed by `core.console` only.
logger.disable("datatrove")


class _Step(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """A datatrove step that calls `work` once per task."""

    type = "meditron"

    def __init__(self, name: str, work: Callable[[int], None]) -> None:
        self.name = name
        super().__init__()
        self.work = work

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        """Run the task of this rank."""
        with self.track_time("task"):
            self.work(rank)


def execute(name: str, work: Callable[[int], None], tasks: int, workers: int, folder: Path) -> None:
    """Call `work(0)` … `work(tasks - 1)` in `workers` processes, except tasks that a former run finished.

    Args:
        name: Name of the tasks' folder in `folder`: `read`.
        work: A picklable callable; its errors reach the caller.
        tasks: Number of tasks.
        workers: Number of parallel processes; 1 means this process.
        folder: Folder in which the executor records the finished tasks.
    """
    if not tasks:
        return
    executor = LocalPipelineExecutor(
        [_Step(name, work)], tasks=tasks, workers=min(workers, tasks), logging_dir=str(folder / name)
    )
    if executor.workers > 1:
        executor.run()
        return
    # The executor would start a manager process even for one worker, and a kill would leave it running.
    for rank in range(tasks):
        executor._run_for_rank(rank)


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
