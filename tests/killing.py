"""The real command in processes that are killed: forked from one that has paid for the imports already."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

WORK = (
    "meditron.cli",
    "meditron.corpus.build",
    "meditron.corpus.tokenize",
    "meditron.train.pretrain",
    "meditron.release.quantize",
    "meditron.evaluate.perplexity",
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


def wait_for_attempt(process: ForkServerProcess, folder: Path, attempt: int) -> None:
    """Return when the command has begun its work on a stage for the `attempt`-th time, or has ended."""
    while process.is_alive() and _attempts(folder) < attempt:
        time.sleep(0.001)


def _attempts(folder: Path) -> int:
    begun = folder / "begun.json"
    return json.loads(begun.read_bytes())["attempts"] if begun.is_file() else 0
