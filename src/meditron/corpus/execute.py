"""Parallel execution of numbered tasks with datatrove's executor, and their progress bar.

No other module imports datatrove. A task that was killed is called again: tasks write each file atomically
and skip the files that exist already.
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

__all__ = ["execute_tasks", "progress_by_files"]

_POLL = 0.5  # seconds

# datatrove logs to stderr and to a file per task; in this package `core.console` alone prints.
logger.disable("datatrove")


class _TaskStep(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """A datatrove pipeline step that calls `work` with the task's number."""

    type = "meditron"

    def __init__(self, name: str, work: Callable[[int], None]) -> None:
        self.name = name
        super().__init__()
        self.work = work

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        """Call `work` with the number of the task, which datatrove names rank."""
        with self.track_time("task"):
            self.work(rank)


def execute_tasks(name: str, work: Callable[[int], None], tasks: int, workers: int, folder: Path) -> None:
    """Call `work(0)` … `work(tasks - 1)` in parallel, without the tasks that an earlier run finished.

    Args:
        name: Name of the subfolder of `folder` for these tasks, such as `read`.
        work: A picklable callable; exceptions that it raises reach the caller.
        tasks: Number of tasks.
        workers: Number of processes; with 1 the tasks run in the calling process.
        folder: Folder in which the executor records the finished tasks.
    """
    if not tasks:
        return
    executor = LocalPipelineExecutor(
        [_TaskStep(name, work)], tasks=tasks, workers=min(workers, tasks), logging_dir=str(folder / name)
    )
    if executor.workers > 1:
        executor.run()
        return
    # With one worker the executor would still start a manager process, which survives if this one is killed.
    for rank in range(tasks):
        executor._run_for_rank(rank)


@contextmanager
def progress_by_files(label: str, folder: Path, pattern: str, total: int | None = None) -> Iterator[None]:
    """Show a progress bar of the files in `folder` that match `pattern`, until the `with` block ends."""
    before = sum(1 for _ in folder.glob(pattern))
    done = Event()
    with progress(label, total, "shards", start=before) as bar, ThreadPoolExecutor(1) as thread:
        polling = thread.submit(_poll_file_count, bar, folder, pattern, before, done)
        try:
            yield
        finally:
            done.set()
            polling.result()


def _poll_file_count(bar: Bar, folder: Path, pattern: str, seen: int, done: Event) -> None:
    ended = False
    while not ended:
        ended = done.wait(_POLL)
        now = sum(1 for _ in folder.glob(pattern))
        bar.advance(now - seen)
        seen = now
