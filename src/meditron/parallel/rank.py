"""One rank of `meditron run --nproc N`: reads a task from stdin, does its part, and reports to the launcher.

The launcher starts it as `python -m meditron.parallel.rank`.
"""

import ctypes
import faulthandler
import os
import pickle
import re
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Literal, NoReturn

from meditron.core.console import configure
from meditron.core.errors import LostRankError, MeditronError
from meditron.parallel.task import StageTask
from meditron.parallel.world import current_world, disconnect

__all__ = [
    "PARENT_VARIABLE",
    "REPORT_VARIABLE",
    "Outcome",
    "end_process",
    "is_lost_connection",
    "lost_connection_error",
    "run_rank",
]

REPORT_VARIABLE = "MEDITRON_REPORT_FD"
"""Environment variable with the descriptor of the pipe to the launcher."""
PARENT_VARIABLE = "MEDITRON_LAUNCHER_PID"
"""Environment variable with the launcher's process id."""

Outcome = Literal["done", "failed", "lost", "interrupted"]
"""End of a rank: `lost` if another rank closed its connection, which is a consequence and no cause."""

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_LOST = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|remote process exited|NCCL|gloo",
    re.IGNORECASE,
)


class _Launcher:
    """The pipe to the launcher; None in a process that it has not started."""

    pipe: "Connection | None" = None


def run_rank() -> int:
    """Do this rank's part of the task on stdin; return the process's exit code."""
    _die_with_launcher(int(os.environ.pop(PARENT_VARIABLE)))
    descriptor = int(os.environ.pop(REPORT_VARIABLE))
    os.set_inheritable(descriptor, False)  # a child of this rank must not keep the pipe open
    _Launcher.pipe = Connection(descriptor, readable=False)
    # A crash in compiled code prints the Python stack. SIGTERM before the training loop, which handles it
    # itself, ends a rank like Ctrl-C does.
    faulthandler.enable()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler)
    quiet, _, task = sys.stdin.readline().partition(" ")
    world = current_world()
    configure(quiet=quiet == "quiet" or not world.is_main)
    try:
        metrics = StageTask.from_json(task).run()
        if "torch" in sys.modules:
            disconnect()
        _report("done", metrics if world.is_main else None)
    except KeyboardInterrupt:
        _report("interrupted", None)
        return _leave(130)
    # Every error of this process is reported, because the launcher prints it.
    except Exception as error:
        _report("lost" if is_lost_connection(error) else "failed", _picklable(error))
        return _leave(1)
    return 0


def _leave(code: int) -> NoReturn:
    # Destructors of a process group wait for the other ranks, which may be gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _report(outcome: Outcome, value: object) -> None:
    if _Launcher.pipe is not None:
        _Launcher.pipe.send((outcome, value))


def _picklable(error: Exception) -> Exception:
    """Return an error that the launcher can unpickle, with the traceback as a note for `--debug`."""
    text = traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  # made in this process
    except Exception:  # a class whose arguments are not those of its base
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(text)
    return error


def _die_with_launcher(launcher: int) -> None:
    """End this process when the launcher ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The launcher may have ended before the line above.
    if os.getppid() != launcher:
        os._exit(1)


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error says that another rank has ended: a consequence, never the cause."""
    if isinstance(error, LostRankError):
        return True
    if type(error).__module__.startswith("torch") and type(error).__name__.startswith("Dist"):
        return True
    # gloo raises plain RuntimeErrors.
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def lost_connection_error(error: BaseException) -> LostRankError:
    """Return the one-line error of a rank that has lost the others; `error` itself if it is one."""
    if isinstance(error, LostRankError):
        return error
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return LostRankError(
        f"the connection to another rank was lost: {reason}",
        hint="the cause is the error of that rank; the same command resumes",
    )


def end_process(error: MeditronError) -> NoReturn:
    """Report an error of the whole job and end this process, from any thread, while the main thread hangs."""
    vars(error)["rank"] = None  # the launcher does not add the number of the rank that reports it
    if _Launcher.pipe is not None:
        _report("failed", error)
        # Time for the launcher to read the reports of all ranks before their connections break.
        time.sleep(0.5)
    else:
        line = f"meditron: error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else "")
        sys.stderr.write(line)
    _leave(1)


def main() -> NoReturn:
    """Run as a script."""
    sys.exit(run_rank())


if __name__ == "__main__":
    # The module is imported again under its own name, because `end_process` of that one is called.
    from meditron.parallel import rank

    rank.main()
