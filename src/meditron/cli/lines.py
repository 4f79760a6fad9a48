"""Reading of a conversation's input lines, with line editing and a history at a terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from meditron.core.console import info, warn
from meditron.core.errors import UsageError

__all__ = ["is_interactive", "read_input_lines"]

_PROMPT = "> "
_HISTORY_LINES = 1000


def is_interactive() -> bool:
    """Return True if stdin and stdout are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def read_input_lines() -> Iterator[str]:
    """Yield the lines of stdin until its end.

    At a terminal, lines are edited with readline, and Ctrl-C discards the line that is being typed.

    Raises:
        UsageError: a line is not UTF-8.
    """
    if not is_interactive():
        yield from _piped_lines()
        return
    with _line_history():
        while True:
            try:
                yield input(_PROMPT)
            except EOFError:
                sys.stdout.write("\n")
                return
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                info("(Ctrl-D or /quit ends the conversation)")


def _piped_lines() -> Iterator[str]:
    for number in range(1, sys.maxsize):
        try:
            line = sys.stdin.readline()
            line.encode()  # with surrogateescape, bytes that are not UTF-8 fail only here
        except UnicodeError as error:
            raise UsageError(f"stdin, line {number}: not UTF-8") from error
        if not line:
            return
        yield line


@contextmanager
def _line_history() -> Iterator[None]:
    """Load the history of typed lines, and save it when the block ends.

    Only the user may read the history's file, because questions may be about patients.
    """
    import readline

    path = _state_folder() / "chat_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
        readline.read_history_file(path)
    except OSError as error:
        warn(f"{path}: {error.strerror}; the history is not saved")
        yield
        return
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        readline.write_history_file(path)


def _state_folder() -> Path:
    """Return `$XDG_STATE_HOME/meditron`, or `~/.local/state/meditron`."""
    state_home = os.environ.get("XDG_STATE_HOME")
    return (Path(state_home) if state_home else Path.home() / ".local" / "state") / "meditron"
