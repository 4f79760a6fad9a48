"""The real command in processes that tests kill, forked from one that has done the imports."""

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path

WORK = (
    "meditron.cli",
    "meditron.corpus.build",
    "meditron.corpus.tokenize",
    "meditron.train.pretrain",
    "meditron.release.quantize",
    "meditron.evaluate.stage",
)


def run_command(words: Sequence[str], log: Path) -> None:
    """Run `meditron WORDS…` in its own process group; stdout and stderr go to `log`."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from meditron.cli import main

    main(list(words))


def start_command(words: Sequence[str], log: Path) -> ForkServerProcess:
    """Start the command in a child process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(WORK))
    process = context.Process(target=run_command, args=(list(words), log))
    process.start()
    return process


def kill_group(process: ForkServerProcess) -> None:
    """Send SIGKILL to the command and all processes it started."""
    if process.pid is not None and process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def count_changes(process: ForkServerProcess, folder: Path, changes: int | None = None) -> int:
    """Count the changes of the files in `folder`, until `changes` were seen or the command ends.

    Progress is measured in changes, not seconds: a busy machine delays them but makes the same ones.
    """
    seen, now = 0, _state(folder)
    while process.is_alive() and (changes is None or seen < changes):
        time.sleep(0.001)
        before, now = now, _state(folder)
        seen += before != now
    return seen


def _state(folder: Path) -> set[tuple[str, int]]:
    """Return names and sizes of all files that still exist when they are read."""
    files = set()
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                path = os.path.join(parent, name)  # noqa: PTH118 (pathlib is too slow to follow with)
                files.add((path, os.stat(path).st_size))  # noqa: PTH116
    return files
