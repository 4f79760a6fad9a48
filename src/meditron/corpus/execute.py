"""Numbered tasks on datatrove's executors: the one file that knows datatrove.

A task is resumable by itself (whatever it leaves appears whole), so that a killed run may call it again.
"""

from collections.abc import Callable
from pathlib import Path

from meditron.core.errors import MissingExtra

try:
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from loguru import logger
except ImportError as missing:
    raise MissingExtra("datatrove", "corpus") from missing

__all__ = ["execute"]

# Its log goes to stderr, and a task's own file repeats it: progress and errors are told by our console alone.
logger.disable("datatrove")


class _Step(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """One call of `work` a task."""

    type = "meditron"

    def __init__(self, name: str, work: Callable[[int], None]) -> None:
        self.name = name
        super().__init__()
        self.work = work

    def run(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        """Do the task of this rank."""
        with self.track_time("task"):
            self.work(rank)


def execute(name: str, work: Callable[[int], None], tasks: int, workers: int, folder: Path) -> None:
    """Call `work(0)` … `work(tasks - 1)`, in `workers` processes, those apart that a run before has finished.

    Args:
        name: what the tasks do, one word: a folder below `folder`.
        work: a picklable callable; its errors reach the caller.
        tasks: how many there are.
        workers: processes side by side; one means this process.
        folder: where the executor keeps which tasks are complete.
    """
    if not tasks:
        return
    executor = LocalPipelineExecutor(
        [_Step(name, work)], tasks=tasks, workers=min(workers, tasks), logging_dir=str(folder / name)
    )
    if executor.workers > 1:
        executor.run()
        return
    # Its own loop for one worker starts a manager process as well, which a kill would leave behind.
    for rank in range(tasks):
        executor._run_for_rank(rank)
