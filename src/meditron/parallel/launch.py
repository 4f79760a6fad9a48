"""`--nproc N`: ranks on this machine for one distributed stage, supervised by the process that plans.

The launcher's process keeps the run's lock, prints the results and writes the manifest; the ranks exist only
while a distributed stage is at work. If one ends with an error, all others are ended.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import IO, Any

from meditron.core.console import is_quiet, sanitize_terminal
from meditron.core.errors import EngineError, TrainingError
from meditron.parallel.rank import PARENT_VARIABLE, REPORT_VARIABLE, Outcome, lost_connection_error
from meditron.parallel.task import StageTask
from meditron.parallel.world import LISTEN_VARIABLE, limit_threads, silence_cpp_log

__all__ = ["LocalRanks"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_POLL = 0.1
# Seconds that the other ranks have to end, by the outcome of the first. A lost connection is a consequence:
# the launcher waits for its cause. After an interruption rank 0 may still be writing a checkpoint.
_GRACE: dict[Outcome, float] = {"done": float("inf"), "failed": 1.5, "lost": 5.0, "interrupted": 60.0}
_IMPATIENT = 3.0  # seconds after a second signal


@dataclass
class _Rank:
    """One started rank."""

    number: int
    process: "subprocess.Popen[bytes]"
    pipe: Connection
    outcome: Outcome | None = None
    """None while it runs."""
    value: Any = None
    """Metrics, or the error."""
    ended_at: float = 0.0
    killed: bool = False
    """True if the launcher has killed it."""


@dataclass(frozen=True, slots=True)
class LocalRanks:
    """Ranks that are started on this machine for each distributed stage."""

    size: int

    def run(self, task: StageTask) -> dict[str, Any]:
        """Start the ranks, wait until all have ended, and return the metrics of rank 0.

        Signals to this process are forwarded to the ranks. No rank survives this process.

        Raises:
            KeyboardInterrupt: The ranks were interrupted; a training has saved a checkpoint.
            EngineError: A rank was killed, or ended without a report.
            Exception: The error of the rank that failed first; its attribute `rank` is the rank's number.
        """
        job = _Job(self.size, task)
        try:
            return job.run()
        finally:
            job.kill()


class _Job:
    """One distributed stage at work."""

    def __init__(self, size: int, task: StageTask) -> None:
        self.size, self.task = size, task
        self.ranks: list[_Rank] = []
        self.threads: list[threading.Thread] = []
        self.signals: list[float] = []

    def run(self) -> dict[str, Any]:
        with self._forwarded_signals():
            self._start()
            while any(rank.outcome is None for rank in self.ranks):
                self._collect(_POLL)
                if time.monotonic() > self._deadline():
                    self.kill()
        self._wait_for_exits()
        self._raise_cause()
        metrics: dict[str, Any] = self.ranks[0].value
        return metrics

    def _start(self) -> None:
        with ExitStack() as stack:
            # A socket that listens already: a free port that is only chosen could be taken until rank 0
            # listens on it.
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            for number in range(self.size):
                self.ranks.append(self._start_rank(number, listener))

    def _start_rank(self, number: int, listener: socket.socket) -> _Rank:
        receiver, sender = Pipe(duplex=False)
        with sender:
            descriptors = [sender.fileno(), *([listener.fileno()] if number == 0 else [])]
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "meditron.parallel.rank"],
                env=self._environment(number, sender.fileno(), listener),
                stdin=subprocess.PIPE,
                # Rank 0 prints the progress. stdout belongs to the launcher, whose --json is one object.
                stdout=2 if number == 0 else subprocess.PIPE,
                stderr=None if number == 0 else subprocess.STDOUT,
                pass_fds=descriptors,
                # Ctrl-C on a terminal would reach the ranks directly, and forwarded a second time.
                start_new_session=True,
            )
        if process.stdout is not None:
            thread = threading.Thread(target=_print_prefixed, args=(number, process.stdout), daemon=True)
            thread.start()
            self.threads.append(thread)
        if process.stdin is not None:
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(f"{'quiet' if is_quiet() else 'verbose'} {self.task.to_json()}\n".encode())
        return _Rank(number, process, receiver)

    def _environment(self, number: int, report: int, listener: socket.socket) -> dict[str, str]:
        variables = {
            **os.environ,
            "RANK": str(number),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(number),
            "LOCAL_WORLD_SIZE": str(self.size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(listener.getsockname()[1]),
            PARENT_VARIABLE: str(os.getpid()),
            REPORT_VARIABLE: str(report),
            # Modules that this process can import, such as a stage beside the recipe.
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # noqa: PTH109
        }
        if number == 0:
            variables[LISTEN_VARIABLE] = str(listener.fileno())
        silence_cpp_log(variables)
        limit_threads(self.size, getattr(self.task.config, "threads", None), variables)
        return variables

    @contextmanager
    def _forwarded_signals(self) -> Iterator[None]:
        """Forward each signal to all ranks; Python allows handlers in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def forward(number: int, frame: FrameType | None) -> None:
            self.signals.append(time.monotonic())
            for rank in self.ranks:
                if rank.process.poll() is None:
                    rank.process.send_signal(number)

        before = {number: signal.signal(number, forward) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _collect(self, seconds: float) -> None:
        """Wait up to so many seconds for a report, and note the ranks that have ended."""
        running = [rank for rank in self.ranks if rank.outcome is None]
        pipes = [rank.pipe for rank in running if not rank.pipe.closed]
        if not wait(pipes, timeout=seconds):
            time.sleep(0 if pipes else seconds)
        for rank in running:
            ended = rank.process.poll() is not None  # before the pipe is read: the report precedes the end
            if not rank.pipe.closed:
                _receive(rank)
            if rank.outcome is None and ended:
                # A signal that was forwarded may arrive before the rank can handle it.
                stopped = bool(self.signals) and -rank.process.returncode in _SIGNALS
                rank.outcome, rank.value = "interrupted" if stopped else "failed", _death(rank)
            if rank.outcome is not None:
                rank.ended_at = time.monotonic()

    def _deadline(self) -> float:
        """Return the time at which ranks that still run are killed."""
        ends = [rank.ended_at + _GRACE[rank.outcome] for rank in self.ranks if rank.outcome is not None]
        if len(self.signals) > 1:
            ends.append(self.signals[-1] + _IMPATIENT)
        return min(ends, default=float("inf"))

    def _wait_for_exits(self) -> None:
        """Wait for the processes that have reported, and for their last lines."""
        for rank in self.ranks:
            with suppress(subprocess.TimeoutExpired):
                rank.process.wait(timeout=10.0)
        self.kill()
        for thread in self.threads:
            thread.join(timeout=2.0)

    def kill(self) -> None:
        """Kill the ranks that still run, with the processes that they have started."""
        for rank in self.ranks:
            if rank.process.poll() is None:
                rank.killed = True
                with suppress(ProcessLookupError):
                    os.killpg(rank.process.pid, signal.SIGKILL)
        for rank in self.ranks:
            rank.process.wait()

    def _raise_cause(self) -> None:
        """Raise the error of the rank that failed first; return if all ranks have ended well."""
        ended = sorted((rank for rank in self.ranks if not rank.killed), key=lambda rank: rank.ended_at)
        failed = [rank for rank in ended if rank.outcome == "failed"]
        # A dead rank has no report, and its end is the reason for the errors of the others.
        failed.sort(key=lambda rank: rank.process.returncode >= 0)
        lost = [rank for rank in ended if rank.outcome == "lost"]
        if failed:
            cause = failed[0]
            texts = {str(rank.value) for rank in failed}
            # An error that all ranks have is not the error of one. Ranks decide alike about the loss, so its
            # error is that of all, even if some were ended before they could report it.
            shared = len(failed) == self.size and len(texts) == 1
            if not (shared or isinstance(cause.value, TrainingError)):
                vars(cause.value).setdefault("rank", cause.number)
            raise cause.value
        if self.signals or any(rank.outcome == "interrupted" for rank in ended):
            if any(rank.outcome != "done" for rank in self.ranks):
                raise KeyboardInterrupt
        elif lost:
            error = lost_connection_error(lost[0].value)
            vars(error)["rank"] = lost[0].number
            raise error


def _receive(rank: _Rank) -> None:
    """Read a rank's report, if it has sent one."""
    try:
        if rank.pipe.poll():
            rank.outcome, rank.value = rank.pipe.recv()
    except (EOFError, OSError):
        rank.pipe.close()


def _death(rank: _Rank) -> EngineError:
    """Return the error of a rank that ended without a report."""
    code = rank.process.returncode
    resumes = "the same command resumes"
    if code >= 0:
        return EngineError(f"the process ended with exit code {code} and without an error", hint=resumes)
    if -code == signal.SIGKILL:
        resumes += "; if memory was full, use a smaller micro_batch_size, or fewer processes to evaluate"
    return EngineError(f"killed by signal {-code} ({signal.Signals(-code).name})", hint=resumes)


def _print_prefixed(number: int, stream: IO[bytes]) -> None:
    """Print the lines of a rank on stderr, each with the rank's number."""
    prefix = f"[rank {number}] "
    with stream:
        for line in stream:
            text = sanitize_terminal(line.decode(errors="replace").rstrip("\n"))
            sys.stderr.write(f"{text if text.startswith(prefix) else prefix + text}\n")
            sys.stderr.flush()
