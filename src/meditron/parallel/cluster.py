"""The ranks of a run: one process, `--nproc`, or processes that torchrun has started on any machines.

Under torchrun every rank is the same command. Rank 0 plans, locks the run's folder, builds the stages that
are not distributed and writes manifests. The other ranks wait for tasks in the store that all ranks share.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from meditron.core.console import configure
from meditron.core.errors import UsageError
from meditron.parallel.launch import LocalRanks
from meditron.parallel.rank import is_lost_connection, lost_connection_error
from meditron.parallel.task import ONE_PROCESS, Ranks, StageTask
from meditron.parallel.world import (
    World,
    current_world,
    disconnect,
    limit_threads,
    open_store,
    silence_cpp_log,
)

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["open_ranks"]

_JOIN_TIMEOUT = 1800.0  # seconds until all ranks have started; machines of a cluster boot at different speeds
_SLOWEST_POLL = 1.0
_FAREWELL = 10.0  # seconds that rank 0 waits for the others to read that the run has ended
_CAUSE = 30.0  # seconds in which torchrun, after the end of the rank that failed, ends this one
_END = "end"


@contextmanager
def open_ranks(nproc: int | None, *, dry_run: bool = False) -> Iterator[Ranks | None]:
    """Open the ranks of a run: started by torchrun, started here for `nproc` > 1, or this process alone.

    Yields:
        The ranks, to the process that plans; None to the others, after they have done their part of all
        distributed stages.

    Raises:
        UsageError: `nproc` is set under torchrun, which has already started the ranks.
    """
    world = current_world()
    if world.size == 1:
        yield ONE_PROCESS if nproc in (None, 1) else LocalRanks(int(nproc or 1))
        return
    if nproc is not None:
        raise UsageError(
            f"--nproc {nproc}: this is already rank {world.rank} of {world.size}",
            hint="leave out --nproc under torchrun",
        )
    if dry_run:
        yield ONE_PROCESS if world.is_main else None
        return
    silence_cpp_log()
    limit_threads(world.local_size)
    store = open_store(_JOIN_TIMEOUT)
    if not world.is_main:
        _follow(world, store)
        yield None
        return
    leader = _Leader(world, store)
    try:
        yield leader
    finally:
        leader.end()


class _Leader:
    """The ranks of torchrun, as rank 0 uses them."""

    def __init__(self, world: World, store: "Store") -> None:
        self.size = world.size
        self._store = store
        self._tasks = 0

    def run(self, task: StageTask) -> dict[str, Any]:
        """Publish a task and do this rank's part of it."""
        self._tasks += 1
        self._store.set(f"task/{self._tasks}", task.to_json())
        try:
            return task.run()
        except Exception as error:
            with suppress(RuntimeError):
                self._store.set(f"error/{self._tasks}", str(error))
            raise _own_error(error) from error

    def end(self) -> None:
        """Send the other ranks home. Rank 0 may be the store's server, so it leaves last."""
        with suppress(RuntimeError):
            self._store.set(f"task/{self._tasks + 1}", _END)
            until = time.monotonic() + _FAREWELL
            while self._store.add("left", 0) < self.size - 1 and time.monotonic() < until:
                time.sleep(0.05)
        disconnect()


def _follow(world: World, store: "Store") -> None:
    """Do this rank's part of each task of rank 0, until rank 0 ends."""
    configure(quiet=True)
    number = 1
    while (text := _next_task(store, number)) is not None:
        try:
            StageTask.from_json(text).run()
        except Exception as error:
            if _is_error_of_all(store, number, error):
                return
            own = _own_error(error)
            vars(own)["rank"] = world.rank
            raise own from error
        number += 1
    with suppress(RuntimeError):
        store.add("left", 1)
    disconnect()


def _next_task(store: "Store", number: int) -> str | None:
    """Wait for a task, however long rank 0 takes; None if there is no further one, or rank 0 has gone."""
    delay = 0.05
    try:
        while not store.check([f"task/{number}"]):
            # A poll and not a wait of the store, in which Python could not handle signals.
            time.sleep(delay)
            delay = min(2 * delay, _SLOWEST_POLL)
        text: str = store.get(f"task/{number}").decode()
    except RuntimeError:  # the server has ended, with rank 0
        return None
    return None if text == _END else text


def _is_error_of_all(store: "Store", number: int, error: Exception) -> bool:
    """Return whether rank 0 has the same error, such as a loss that is not finite, and so reports it."""
    if is_lost_connection(error):
        return False
    with suppress(RuntimeError):
        store.wait([f"error/{number}"], timedelta(seconds=3))
        return bool(store.get(f"error/{number}").decode() == str(error))
    return False


def _own_error(error: Exception) -> Exception:
    """Return the error that this rank reports; after a lost connection, wait to be ended by the launcher."""
    if not is_lost_connection(error):
        return error
    # The command's own handler would only note that it should end after the next step.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_CAUSE)
    return lost_connection_error(error)
