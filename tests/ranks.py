"""Runs a function as N ranks: real processes with a gloo process group, ended after a bounded time."""

import faulthandler
import importlib.util
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

__all__ = ["RankError", "Ranks", "run_ranks", "start_ranks"]

# The fork server imports torch once; each rank is then a fork of it and starts in a tenth of a second. The
# server only imports, so a fork inherits no thread and no lock. A process has one server for all its tests:
# the stages are for the other tests that fork from it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
        "torch.distributed.tensor.parallel",
        "torch.distributed.pipelining",
        "meditron.train.pretrain",
        "meditron.train.finetune",
    ]
)
# The other ranks of a failed one wait in a collective; they have this long to report an error of their own.
_GRACE_SECONDS = 2.0


class RankError(AssertionError):
    """A rank raised an exception, died or did not end in time."""


@dataclass
class Ranks:
    """The running ranks of one function."""

    processes: list[BaseProcess]
    connections: list[Connection]
    deadline: float

    def results(self) -> list[Any]:
        """Wait for all ranks and return their results in rank order.

        Raises:
            RankError: A rank raised an exception (with its traceback), was killed, or did not end in time.
        """
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}
        pending = dict(enumerate(self.connections))
        deadline = self.deadline
        while pending and (left := deadline - time.monotonic()) > 0:
            ready = wait(pending.values(), timeout=left)
            for rank in [rank for rank, connection in pending.items() if connection in ready]:
                succeeded, value = self._answer(rank, pending.pop(rank))
                (results if succeeded else failures)[rank] = value
            if failures:
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        if not failures:
            failures = dict.fromkeys(pending, "not finished in time; its stack is on stderr")
        if failures:
            raise RankError("\n".join(f"rank {rank}: {text}" for rank, text in failures.items()))
        # A rank that has answered may still be writing in a thread.
        for process in self.processes:
            process.join(max(0.0, self.deadline - time.monotonic()))
        return [results[rank] for rank in range(len(self.processes))]

    def _answer(self, rank: int, connection: Connection) -> tuple[bool, Any]:
        try:
            succeeded, value = pickle.loads(connection.recv_bytes())  # noqa: S301 (a process of this test)
        except EOFError:
            self.processes[rank].join(1)
            return False, f"ended with exit code {self.processes[rank].exitcode}"
        return succeeded, value


@contextmanager
def start_ranks(n: int, function: Callable[..., Any], *args: Any, timeout: float = 120) -> Iterator[Ranks]:
    """Start N ranks of `function(*args)`; those that still run at the end of the block are killed.

    Each rank has one thread, a gloo process group of all ranks as the default group, and RANK, LOCAL_RANK and
    WORLD_SIZE in its environment. Warnings are errors. The function is one of a module's own, and its
    arguments and result can be pickled.
    """
    module = sys.modules[function.__module__]
    work = pickle.dumps((function, args))
    with tempfile.TemporaryDirectory() as folder:
        processes: list[BaseProcess] = []
        connections: list[Connection] = []
        deadline = time.monotonic() + timeout
        try:
            for rank in range(n):
                ours, theirs = _CONTEXT.Pipe(duplex=False)
                connections.append(ours)
                place = (rank, n, f"file://{folder}/store", timeout)
                process = _CONTEXT.Process(
                    target=_run_rank,
                    args=(theirs, place, module.__name__, module.__file__, work),
                    daemon=True,
                )
                process.start()
                processes.append(process)
                # With our copy closed, the end of the process is the end of the stream.
                theirs.close()
            yield Ranks(processes, connections, deadline)
        finally:
            for process in processes:
                process.kill()
                process.join()
            for connection in connections:
                connection.close()


def run_ranks(n: int, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
    """Run `function(*args)` as N ranks and return their results in rank order; see `start_ranks`.

    Raises:
        RankError: A rank raised an exception (with its traceback), was killed, or did not end in time.
    """
    with start_ranks(n, function, *args, timeout=timeout) as ranks:
        return ranks.results()


def _run_rank(
    connection: Connection, place: tuple[int, int, str, float], name: str, file: str, work: bytes
) -> None:
    rank, n, store, timeout = place
    faulthandler.enable()
    # Ends this process, with its stacks on stderr, even if the test's own process was killed.
    faulthandler.dump_traceback_later(timeout, exit=True)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), GLOO_SOCKET_IFNAME="lo")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        _import_file(name, file)
        warnings.simplefilter("error")
        function, args = pickle.loads(work)  # noqa: S301 (from this test's own process)
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=n, timeout=timedelta(seconds=timeout)
        )
        answer = (True, function(*args))
        dist.destroy_process_group()
    except BaseException:
        answer = (False, traceback.format_exc())
    # Plain pickle copies tensors by value; multiprocessing's own would share memory that ends with this
    # process.
    connection.send_bytes(pickle.dumps(answer))


def _import_file(name: str, file: str) -> None:
    """Import a test file under the name that pytest gave it, which is not always one of the search path."""
    if name in sys.modules:
        return
    # Unpickling imports the first package of the name too.
    sys.path.append(str(Path(file).parents[name.count(".")]))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
