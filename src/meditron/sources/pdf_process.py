"""Client of the process that extracts the lines of PDF files (`pdf_worker`); each process starts one."""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from meditron.core.errors import InputError, MissingExtra
from meditron.sources.document import Readable
from meditron.sources.pdf_worker import MAX_MEMORY, MAX_PAGE_SECONDS

__all__ = ["Line", "read_pages"]

_LONGEST_ANSWER = 256 << 20


class Line(NamedTuple):
    """A line of text on a page. Lengths are in points, from the lower left corner."""

    text: str
    size: float
    """Font size."""
    bold: bool
    left: float
    right: float
    baseline: float
    hyphenated: bool
    """True if a hyphen at the line's end has been removed."""
    margin: int
    """1 in the uppermost tenth of the page, -1 in the lowermost, else 0."""


class _Worker:
    """A running worker process; it is started again after it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._busy = False

    def ask(self, request: dict[str, Any], data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the answers to a request; EOFError if the process ends without one."""
        if self._busy or self._owner != os.getpid():  # an unfinished answer, or a forked process
            self.close()
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process is not None  # noqa: S101
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        self._busy = True
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n" + data)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise EOFError(self._ending()) from error
        while answer := self._process.stdout.readline(_LONGEST_ANSWER):
            if not answer.endswith(b"\n"):  # it is too long, or the process was ended while it wrote
                self._process.kill()
                break
            fields = json.loads(answer)
            self._busy = "end" not in fields and "error" not in fields
            yield fields
            if not self._busy:
                return
        raise EOFError(self._ending())

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            process.wait()
        self._busy = False

    def _start(self) -> None:
        self.close()
        self._owner = os.getpid()
        # -P: no module is imported from the working folder.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "meditron.sources.pdf_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _ending(self) -> str:
        process = self._process
        code = 0 if process is None else process.wait()
        self.close()
        seconds, memory = MAX_PAGE_SECONDS, MAX_MEMORY >> 30
        if code == -signal.SIGXCPU:
            return f"a page needs more than {seconds} seconds"
        return f"PDFium failed: the file is damaged or needs more than {memory} GiB of memory"


_WORKER = _Worker()
atexit.register(_WORKER.close)


def read_pages(file: Readable, data: bytes | None) -> Iterator[tuple[dict[str, Any], list[Line]]]:
    """Yield for each page the document's metadata and the page's lines, in the order of the content.

    Args:
        file: The file.
        data: Its content; None if `file` is the path of an uncompressed file.

    Raises:
        InputError: The file is damaged or encrypted, or exceeds the limits of memory and time.
    """
    try:
        import pypdfium2  # noqa: F401
    except ImportError as error:
        raise MissingExtra("pypdfium2", "corpus") from error
    request: dict[str, Any] = (
        {"path": str(Path(str(file)).absolute())} if data is None else {"size": len(data)}
    )
    metadata: dict[str, Any] = {}
    number = 0
    try:
        for answer in _WORKER.ask(request, data or b""):
            if "metadata" in answer:
                metadata = answer["metadata"]
            elif "lines" in answer:
                number += 1
                yield metadata, [Line(*line) for line in answer["lines"]]
            elif "error" in answer:
                raise InputError(file, answer["error"], place=_place(number), hint=_hint(answer["error"]))
    except EOFError as error:
        raise InputError(file, str(error), place=_place(number)) from error


def _place(pages_read: int) -> str | None:
    return f"page {pages_read + 1:,}" if pages_read else None


def _hint(problem: str) -> str | None:
    return "remove the password, for example with qpdf --decrypt" if "password" in problem else None
