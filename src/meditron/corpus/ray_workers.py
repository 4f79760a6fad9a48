"""Tasks on a Ray cluster: the one that RAY_ADDRESS names, else worker processes on this machine."""

import logging
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from meditron.core.errors import EngineError, MissingExtra, StorageError
from meditron.corpus.task import Task, run_described_task

__all__ = ["disconnect", "run_on_ray"]

_RETRIES = 3
"""Times that a task is run again after its worker or node was lost."""


def run_on_ray(description: Path, task: Task, numbers: Sequence[int], workers: int) -> None:
    """Run tasks on Ray, at most `workers` at the same time.

    Ray takes seconds to start, so the connection stays open for the next pass, until `disconnect` or the end
    of the process.

    Args:
        description: The description of the tasks (`corpus.task`), in a folder that all nodes share.
        task: The described task.
        numbers: The tasks to run.
        workers: Maximum number of tasks in flight.

    Raises:
        MissingExtra: Ray is not installed.
        StorageError: The nodes do not share the folder of the runs.
        EngineError: A task's workers were lost repeatedly, or the cluster cannot be reached.
        Exception: The first exception that a task raised; the other tasks are cancelled.
    """
    try:
        import ray
    except ImportError as missing:
        raise MissingExtra("ray", "ray") from missing
    if not ray.is_initialized():
        _connect(ray, workers)
    _run_all(ray, description, task, numbers, workers)


def disconnect() -> None:
    """Disconnect from Ray, and end it if `run_on_ray` started it on this machine."""
    import ray

    ray.shutdown()


def _connect(ray: Any, workers: int) -> None:  # noqa: ANN401  # Ray is optional, so its types may be missing
    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(
            address or "local",
            # Errors reach the caller; Ray's own reports would interrupt the progress bar.
            logging_level=logging.ERROR,
            log_to_driver=False,
            **local,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineError(
            f"Ray at {address or 'this machine'} does not answer: {_first_line(error)}",
            hint="check RAY_ADDRESS; without it Ray is started on this machine",
        ) from error


def _run_all(ray: Any, description: Path, task: Task, numbers: Sequence[int], workers: int) -> None:  # noqa: ANN401
    # `scheduling_strategy` spreads reading over the nodes: by default Ray fills one node after another.
    remote = ray.remote(num_cpus=1, max_retries=_RETRIES, scheduling_strategy="SPREAD")(run_described_task)
    remaining = iter(numbers)
    in_flight = {remote.remote(description, number): number for number in islice(remaining, workers)}
    try:
        while in_flight:
            finished, _ = ray.wait(list(in_flight), num_returns=1)
            for reference in finished:
                number = in_flight.pop(reference)
                _raise_task_error(ray, reference, number)
                if not task.result_file(number).exists():
                    raise StorageError(
                        f"{task.result_file(number)}: written on another node, but not visible here",
                        hint="all nodes must share the folder of the runs; choose a shared one with --out",
                    )
                for another in islice(remaining, 1):
                    in_flight[remote.remote(description, another)] = another
    finally:
        for reference in in_flight:
            ray.cancel(reference, force=True)


def _raise_task_error(ray: Any, reference: Any, number: int) -> None:  # noqa: ANN401
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"Ray lost task {number} {_RETRIES + 1} times: {_first_line(error)}",
            hint="if memory ran out, use fewer workers; running again keeps all finished shards",
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
