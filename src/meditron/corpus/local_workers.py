"""Tasks in worker processes on this machine.

The processes are started with `spawn`: a process forked from one with threads can deadlock. Each worker is
connected by a pipe of its own, so the end of a worker, and of the parent, is noticed at once.
"""

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread

from meditron.core.console import configure, is_quiet
from meditron.core.errors import EngineError
from meditron.corpus.task import run_described_task

__all__ = ["run_in_processes"]


@dataclass(frozen=True, slots=True)
class _Worker:
    """One worker process."""

    process: SpawnProcess
    connection: Connection
    """Sends numbers of tasks and receives, for each, None or the exception that the task raised."""


def run_in_processes(description: Path, numbers: Sequence[int], workers: int) -> None:
    """Run tasks in parallel processes.

    Args:
        description: The description of the tasks (`corpus.task`).
        numbers: The tasks to run.
        workers: Maximum number of processes.

    Raises:
        EngineError: A worker process was killed.
        Exception: The first exception that a task raised; the other tasks are ended.
    """
    remaining = iter(numbers)
    started: list[_Worker] = []
    busy: dict[Connection, _Worker] = {}
    try:
        for number in islice(remaining, workers):
            worker = _start_worker(description)
            started.append(worker)
            _send(worker, number)
            busy[worker.connection] = worker
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)  # noqa: S101
                worker = busy.pop(connection)
                if error := _receive(worker):
                    raise error
                if (next_number := next(remaining, None)) is not None:
                    _send(worker, next_number)
                    busy[connection] = worker
    finally:
        # A task may be ended at any time: its files are written atomically.
        for worker in started:
            worker.connection.close()
            worker.process.kill()
        for worker in started:
            worker.process.join()


def _start_worker(description: Path) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(description, theirs, is_quiet()), name="corpus-worker", daemon=True
    )
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _send(worker: _Worker, number: int) -> None:
    with suppress(BrokenPipeError):  # the worker is dead, which `_receive` reports
        worker.connection.send(number)


def _receive(worker: _Worker) -> BaseException | None:
    """Return the exception of the worker's task, or None if the task has finished."""
    try:
        error: BaseException | None = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        code = worker.process.exitcode or 0
        cause = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return EngineError(
            f"a worker process of the corpus {cause}",
            hint="if memory ran out, use fewer workers; running again keeps all finished shards",
        )
    return error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _serve(description: Path, connection: Connection, quiet: bool) -> None:
    """Run the tasks whose numbers arrive, until the parent closes the connection."""
    # Ctrl-C reaches the whole process group; the parent ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure(quiet=quiet)
    Thread(target=_end_with_parent, daemon=True).start()
    for number in _numbers(connection):
        error: BaseException | None = None
        try:
            run_described_task(description, number)
        except BaseException as raised:  # sent to the parent, which raises it
            error = _portable(raised)
        connection.send(error)


def _numbers(connection: Connection) -> Iterator[int]:
    with suppress(EOFError):
        while True:
            yield connection.recv()


def _end_with_parent() -> None:
    """End this process when its parent ends; a killed parent cannot end its workers itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101
    parent.join()
    os._exit(1)


def _portable(error: BaseException) -> BaseException:
    """Return an error that can be sent to the parent, with this process's traceback as a note."""
    note = "In a worker process:\n" + "".join(traceback.format_exception(error))
    try:
        sent: BaseException = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    except Exception:  # an error of another library may not be picklable
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(note)
    return sent
