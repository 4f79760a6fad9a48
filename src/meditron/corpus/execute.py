"""Parallel execution of numbered tasks: on this machine, on a Ray cluster, or as a Slurm job array."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from meditron.corpus.config import Executor, SlurmConfig
from meditron.corpus.task import Task, write_description

__all__ = ["ExecutorSettings", "execute_tasks", "release_executor"]


class ExecutorSettings(Protocol):
    """The keys of a stage's table that say how its tasks are executed; they never change the result."""

    @property
    def executor(self) -> Executor:
        """Executor of the tasks: `local`, `ray` or `slurm`."""

    @property
    def workers(self) -> int:
        """Maximum number of tasks at the same time."""

    @property
    def slurm(self) -> SlurmConfig:
        """Resources of an element of a Slurm array."""


def execute_tasks(
    name: str, task: Task, numbers: Iterable[int], settings: ExecutorSettings, folder: Path
) -> None:
    """Call `task(number)` for each number, in parallel, except the tasks whose result file exists.

    Args:
        name: Name of the pass, such as `read`; its files in `folder` begin with it.
        task: The task. Exceptions that it raises reach the caller, except from Slurm: its error names the
            logs.
        numbers: Numbers of the tasks.
        settings: The executor, and the number of workers. With the executor `local` and one worker the tasks
            run in the calling process.
        folder: Folder of the task's description (`corpus.task`), and of the script and the logs of Slurm.

    Raises:
        UsageError: A class of the task cannot be imported by another process; there is no `sbatch`.
        MissingExtra: Ray is not installed.
        EngineError: A worker process was killed; Slurm's or Ray's tasks did not finish.
        StorageError: The nodes of a cluster do not share the folder.
    """
    numbers = [number for number in numbers if not task.result_file(number).exists()]
    if not numbers:
        return
    if settings.executor == "local" and (settings.workers == 1 or len(numbers) == 1):
        for number in numbers:
            task(number)
        return
    description = folder / f"{name}.json"
    write_description(description, task, numbers)
    # Each executor is imported where it is used: Ray is an extra.
    if settings.executor == "ray":
        from meditron.corpus.ray_workers import run_on_ray

        run_on_ray(description.absolute(), task, numbers, settings.workers)
    elif settings.executor == "slurm":
        from meditron.corpus.slurm_array import run_as_array

        run_as_array(description, task, numbers, settings.workers, settings.slurm)
    else:
        from meditron.corpus.local_workers import run_in_processes

        run_in_processes(description, numbers, settings.workers)


def release_executor(settings: ExecutorSettings) -> None:
    """Free what an executor keeps for the next pass of a stage: Ray's processes."""
    if settings.executor == "ray":
        from meditron.corpus.ray_workers import disconnect

        disconnect()
