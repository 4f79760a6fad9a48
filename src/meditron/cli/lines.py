"""Lines as people type them: edited, with a history of their own, where they sit at a terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meditron.core.console import info, warn
from meditron.core.errors import UsageError

__all__ = ["at_terminal", "lines"]

_PROMPT = "> "
_REMEMBERED = 1000


def at_terminal() -> bool:
    """Whether somebody types and sees: stdin and stdout are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def lines() -> Iterator[str]:
    """The lines of stdin until its end; UsageError for one that is not UTF-8.

    At a terminal they are edited with readline, and Ctrl-C drops what was typed.
    """
    if not at_terminal():
        yield from _piped()
        return
    with _history():
        while True:
            try:
                yield input(_PROMPT)
            except EOFError:
                sys.stdout.write("\n")
                return
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                info("(Ctrl-D or /quit ends the conversation)")


def _piped() -> Iterator[str]:
    for number in range(1, sys.maxsize):
        try:
            line = sys.stdin.readline()
            line.encode()
        except UnicodeError as error:
            raise UsageError(f"line {number} on stdin is not UTF-8") from error
        if not line:
            return
        yield line


@contextmanager
def _history() -> Iterator[None]:
    """Lines typed before, from a file that only the user reads: questions may be about people."""
    import readline

    path = _state_folder() / "chat_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
        readline.read_history_file(path)
    except OSError as error:
        warn(f"{path}: {error.strerror}: what is typed is not remembered")
        yield
        return
    readline.set_history_length(_REMEMBERED)
    try:
        yield
    finally:
        readline.write_history_file(path)


def _state_folder() -> Path:
    """`$XDG_STATE_HOME/meditron`, else `~/.local/state/meditron`."""
    shared = os.environ.get("XDG_STATE_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "state") / "meditron"
