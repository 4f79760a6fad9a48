"""The real command in processes that are killed: forked from one that has paid for the imports already."""

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


def command(words: Sequence[str], log: Path) -> None:
    """Become `meditron WORDS…` in a process group of its own, its words going to `log`."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from meditron.cli import main

    main(list(words))


def start(words: Sequence[str], log: Path) -> ForkServerProcess:
    """Start the command; it runs as long as its process lives."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(WORK))
    process = context.Process(target=command, args=(list(words), log))
    process.start()
    return process


def kill(process: ForkServerProcess) -> None:
    """SIGKILL to the command and all that it started."""
    if process.pid is not None and process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def follow(process: ForkServerProcess, folder: Path, changes: int | None = None) -> int:
    """Count how often what lies in `folder` changes, until so many changes were seen or the command ends.

    Changes, not seconds, say how far the work has come: on a busy machine they come late, but all come.
    """
    seen, now = 0, _state(folder)
    while process.is_alive() and (changes is None or seen < changes):
        time.sleep(0.001)
        before, now = now, _state(folder)
        seen += before != now
    return seen


def _state(folder: Path) -> set[tuple[str, int]]:
    """Names and sizes of all files, as far as they stay long enough to be looked at."""
    found = set()
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                path = os.path.join(parent, name)  # noqa: PTH118 (pathlib is too slow to follow with)
                found.add((path, os.stat(path).st_size))  # noqa: PTH116
    return found
