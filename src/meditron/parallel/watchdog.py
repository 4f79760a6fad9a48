"""Detection of hung ranks: if one makes no progress, each rank prints its stack, and the job ends.

In a collective all ranks wait for the last one, so every rank of a job with one hung rank stands still. The
ranks compare how far they have come: those that are behind have not reached the collective.
"""

import faulthandler
import json
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, NoReturn

from meditron.core.errors import EngineError, MeditronError
from meditron.core.units import format_duration
from meditron.parallel.rank import end_process
from meditron.parallel.world import World, current_world, group_timeout, open_store
from meditron.store.files import atomic_write

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["STACKS", "RankState", "Watchdog", "hang_error", "watchdog"]

STACKS = "hung"
"""Folder of the ranks' stacks, in the stage's folder. It is removed when a later training ends well."""

_ALARM = "watchdog/alarm"
_POLL = 1.0
_COLLECT = 10.0  # seconds that ranks have, after the alarm of one, to publish their states
_WAITING = ("torch/distributed/", "torch/autograd/")
"""Parts of file names of functions in which a rank waits for others: collectives, and the backward pass with
those of FSDP."""


@dataclass(frozen=True, slots=True)
class RankState:
    """Progress of one rank when the alarm was raised."""

    count: int
    """Number of calls of `progress`."""
    note: str
    """Argument of the last call."""
    seconds: float
    """Time since that call."""
    place: str
    """Function, file and line in which the main thread is."""
    waits: bool
    """True if the main thread is in a collective or in the backward pass."""


class Watchdog:
    """Progress of this rank, watched by a thread."""

    def __init__(self, timeout: float, folder: Path | None, world: World, store: "Store | None") -> None:
        self._timeout, self._folder, self._world, self._store = timeout, folder, world, store
        self._count, self._note, self._last = 0, "the start", time.monotonic()
        self._stopped = threading.Event()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._stack_file: IO[str] | None = None

    def progress(self, note: str) -> None:
        """Record that this rank begins a new piece of work, such as `step 12: forward`.

        Call it in every step, and before anything else that takes long: an evaluation, a checkpoint.
        """
        # Read without a lock by the watching thread, for which a torn pair of values does no harm.
        self._note = note
        self._count += 1
        self._last = time.monotonic()
        if self._stack_file is not None:
            # The watching thread cannot run while compiled code holds the interpreter's lock; this timer of
            # faulthandler needs no lock. It comes later, so that it is cancelled in all other cases.
            faulthandler.dump_traceback_later(self._timeout + 2 * self._poll, file=self._stack_file)

    def start(self) -> None:
        """Begin to watch."""
        if self._folder is not None:
            path = _stack_path(self._folder, self._world.rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stack_file = path.open("w", encoding="utf-8")
        self.progress(self._note)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join(timeout=5.0)
        if self._stack_file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._stack_file.close()

    @property
    def _poll(self) -> float:
        return min(_POLL, self._timeout / 4)

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll):
            if time.monotonic() - self._last > self._timeout or self._is_alarmed():
                self._end_job()

    def _is_alarmed(self) -> bool:
        """Return whether another rank has raised the alarm."""
        if self._store is None:
            return False
        try:
            return bool(self._store.check([_ALARM]))
        except RuntimeError:  # rank 0 has ended; the main thread meets the same error
            return False

    def _end_job(self) -> NoReturn:
        faulthandler.cancel_dump_traceback_later()
        state = self._state()
        self._print_stack(state)
        states: Mapping[int, RankState | None] = {self._world.rank: state}
        if self._store is not None:
            states = self._exchange(self._store, state)
            self._print_silent_stacks(states)
        end_process(hang_error(states, self._timeout, self._folder))

    def _state(self) -> RankState:
        frame = sys._current_frames().get(self._main)
        frames = list(_outward(frame))
        waits = any(part in each.f_code.co_filename for each in frames for part in _WAITING)
        seconds = round(time.monotonic() - self._last, 1)
        return RankState(self._count, self._note, seconds, _describe_place(frames), waits)

    def _print_stack(self, state: RankState) -> None:
        """Print the stacks of all threads to stderr, each line with the rank, and to a file."""
        rank = self._world.rank
        head = f"no progress for {state.seconds:.0f} s after {state.note!r}"
        with tempfile.TemporaryFile("w+") as file:
            # Of all threads: with a GPU the backward pass has its own.
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            text = f"{head}\n{file.read()}"
        _print_prefixed(rank, text)
        if self._folder is not None:
            with suppress(OSError, MeditronError):  # a full disk must not hide the error
                _write_text(_stack_path(self._folder, rank), text)

    def _print_silent_stacks(self, states: Mapping[int, RankState | None]) -> None:
        """Print the stacks that faulthandler wrote for ranks that do not answer; one rank does it for all."""
        answering = [rank for rank, state in states.items() if state is not None]
        if self._folder is None or self._world.rank != answering[0]:
            return
        for rank in [rank for rank, state in states.items() if state is None]:
            with suppress(OSError):
                text = _stack_path(self._folder, rank).read_text(encoding="utf-8")
                _print_prefixed(rank, text or "no stack: the process is stopped")

    def _exchange(self, store: "Store", state: RankState) -> dict[int, RankState | None]:
        """Publish this rank's state and return those of all; None for a rank that does not answer."""
        size = self._world.size
        states: dict[int, RankState | None] = dict.fromkeys(range(size))
        states[self._world.rank] = state
        with suppress(RuntimeError):  # rank 0 has ended
            store.set(_ALARM, "1")
            store.set(f"watchdog/{self._world.rank}", json.dumps(asdict(state)))
            until = time.monotonic() + _COLLECT
            while time.monotonic() < until and None in states.values():
                for rank in [rank for rank, known in states.items() if known is None]:
                    if store.check([f"watchdog/{rank}"]):
                        states[rank] = RankState(**json.loads(store.get(f"watchdog/{rank}")))
                time.sleep(0.05)
            # Rank 0 may be the server: it stays until all have read.
            store.add("watchdog/read", 1)
            answering = sum(known is not None for known in states.values())
            until = time.monotonic() + _COLLECT / 2
            while time.monotonic() < until and store.add("watchdog/read", 0) < answering:
                time.sleep(0.05)
        return states


def hang_error(
    states: Mapping[int, RankState | None], timeout: float, folder: Path | None = None
) -> MeditronError:
    """Return the error that names the ranks for which the others wait.

    These are ranks that do not answer at all, else those with the least progress; of equal progress, those
    that are not in a collective.

    Args:
        states: Rank → its state; None if it did not answer.
        timeout: Seconds after which the alarm was raised.
        folder: The stage's folder, with the files of stacks.
    """
    silent = [rank for rank, state in states.items() if state is None]
    known = {rank: state for rank, state in states.items() if state is not None}
    least = min((state.count for state in known.values()), default=0)
    behind = [rank for rank, state in known.items() if state.count == least]
    if len(behind) == len(known):
        behind = [rank for rank in behind if not known[rank].waits] or behind
    late = silent or behind
    others = [rank for rank in known if rank not in late]
    if silent:
        reason = "did not answer: the process is stopped, or blocked in compiled code"
    else:
        state = known[late[0]]
        reason = f"made no progress for {format_duration(state.seconds)} after {state.note!r}: {state.place}"
    waiting = f"; {_list_ranks(others)} waited" if others else ""
    where = f" and in {folder / STACKS}" if folder else ""
    return EngineError(
        f"{_list_ranks(late)} {reason}{waiting}",
        hint=f"the stacks of all ranks are above{where}; the same command resumes; if a step may take longer "
        f"than {timeout:g} s, raise parallel.timeout",
    )


def _list_ranks(ranks: Sequence[int]) -> str:
    # Of thousands of ranks the first few are enough.
    names = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}"


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield a frame and its callers."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _describe_place(frames: Sequence[FrameType]) -> str:
    """Return function, file and line of the innermost frame that belongs neither to torch nor to Python."""
    if not frames:
        return "the main thread has ended"
    libraries = (Path(traceback.__file__).parent.as_posix(), "site-packages")
    own = [frame for frame in frames if not any(part in frame.f_code.co_filename for part in libraries)]
    frame = (own or frames)[0]
    return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def _stack_path(folder: Path, rank: int) -> Path:
    return folder / STACKS / f"rank-{rank}.txt"


def _print_prefixed(rank: int, text: str) -> None:
    # One write, so that lines of several ranks on one stream are not mixed.
    sys.stderr.write("".join(f"[rank {rank}] {line}\n" for line in text.splitlines()))
    sys.stderr.flush()


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file: IO[str]
    with atomic_write(path, "w") as file:
        file.write(text)


@contextmanager
def watchdog(timeout: float, folder: Path | None = None) -> Iterator[Watchdog]:
    """Watch this rank's progress while a training runs, after `connect`.

    If a rank makes no progress for `timeout` seconds, every rank prints its Python stack on stderr, with its
    number and its last note, and writes it to `folder/hung/rank-N.txt`; then the process ends with exit
    code 1 and an error that names the rank for which the others waited. Also works with one process.

    Args:
        timeout: Seconds; a first step may include minutes of compilation.
        folder: The stage's folder.
    """
    world = current_world()
    store = None
    if world.size > 1:
        _extend_group_timeouts(timeout)
        # An own connection: the main thread may be blocked in one of its own.
        store = open_store(timeout).clone()  # type: ignore[attr-defined]
    dog = Watchdog(timeout, folder, world, store)
    dog.start()
    try:
        yield dog
    finally:
        dog.stop()
    if folder is not None:
        # Stacks of an earlier attempt; they would become files of the finished stage.
        with suppress(FileNotFoundError):
            for file in (folder / STACKS).iterdir():
                file.unlink(missing_ok=True)
        with suppress(OSError):
            (folder / STACKS).rmdir()


def _extend_group_timeouts(timeout: float) -> None:
    """Make collectives wait longer than the watchdog.

    Groups of a device mesh do not inherit the timeout of the whole group: they have torch's default, ten
    minutes for NCCL.
    """
    from torch.distributed import distributed_c10d as c10d

    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(group_timeout(timeout), group)
