"""The output of a Python program on a pseudo-terminal."""

import os
import pty
import subprocess
import sys
from collections.abc import Mapping


def terminal_output(program: str, environment: Mapping[str, str], *, data: bytes | None = None) -> str:
    """Run a program whose stderr is a terminal, and return what it writes there.

    Args:
        program: Python code.
        environment: The whole environment, except PATH.
        data: The expected stdout, which is then a pipe; None for a stdout that is the same terminal.
    """
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=theirs if data is None else subprocess.PIPE,
        stderr=theirs,
        env={"PATH": os.environ["PATH"], **environment},
    ) as process:
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 65536):
                written += piece
        except OSError:  # Linux's way to report that the other end is closed
            pass
        finally:
            os.close(ours)
        if data is not None:
            assert process.stdout
            assert process.stdout.read() == data
    assert process.returncode == 0, written.decode()
    return written.decode().replace("\r\n", "\n")
