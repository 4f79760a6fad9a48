"""JSON lines: plain, gzip (`.gz`) or Zstandard (`.zst`), told apart by suffix.

Files of the same rows are the same bytes: no compressor puts a time or a name into them.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self, cast

import zstandard

from meditron.core.errors import InputError
from meditron.store.files import atomic, translate_read_errors

__all__ = ["LONGEST_LINE", "MOST_VALUES", "JsonlWriter", "check_values", "read_jsonl"]

LONGEST_LINE = 64 << 20
"""Bytes of a line of JSON: a small compressed file can unpack to any length."""
MOST_VALUES = 4_000_000
"""Commas, colons and brackets of a line of JSON, outside of its texts: each may stand for an object in memory
of some 70 bytes."""

_CHUNK = 1 << 20
_ZST_PIECE = 4 << 10
_MARKS = (b",", b":", b"[", b"{")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+|[,:\[{]', re.DOTALL)  # a text, or a mark outside of texts


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file, in order; blank lines are skipped.

    InputError, with the line, where the stream ends too early or is damaged, or a line is no JSON object,
    longer than LONGEST_LINE or of more than MOST_VALUES. SourceError where there is no file.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(_lines(_chunks(path, file)), start=1):
                if line.strip():
                    yield _row(path, number, line)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        problem = "the compressed stream ends too early" if isinstance(error, EOFError) else str(error)
        raise InputError(path, problem, place=f"after line {number}") from error
    except OverflowError as error:
        raise InputError(path, str(error), place=f"line {number + 1}") from error


def check_values(line: bytes) -> None:
    """Raise ValueError for JSON that might hold more than MOST_VALUES, before it is built in memory."""
    if len(line) <= MOST_VALUES or sum(map(line.count, _MARKS)) <= MOST_VALUES:
        return
    outside = (token for token in _TOKEN.finditer(line) if line[token.start()] != ord('"'))
    if next(islice(outside, MOST_VALUES, None), None) is not None:
        raise ValueError(f"more than {MOST_VALUES:,} commas, colons and brackets")


def _open(path: Path) -> BinaryIO:
    with translate_read_errors(path):
        return path.open("rb")


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        check_values(line)
        row = json.loads(line)
    except json.JSONDecodeError as error:
        place = f"line {number}, column {error.colno}"
        raise InputError(path, f"not JSON: {error.msg}", place=place) from error
    except UnicodeDecodeError as error:
        raise InputError(path, "not UTF-8", place=f"line {number}, byte {error.start}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(path, f"not JSON that can be read: {error}", place=f"line {number}") from error
    if not isinstance(row, dict):
        raise InputError(path, f"a {type(row).__name__} where an object should be", place=f"line {number}")
    return row


def _chunks(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The file's unpacked bytes; EOFError when a compressed stream stops before its end."""
    if path.suffix == ".zst":
        yield from _unpack_zst(file)
        return
    stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file)
    while chunk := stream.read(_CHUNK):
        yield chunk


def _unpack_zst(file: BinaryIO) -> Iterator[bytes]:
    # zstandard's stream_reader takes a frame that was cut off for the end of the file; this must not.
    frame = zstandard.ZstdDecompressor().decompressobj()
    whole = False
    # Small pieces, because four bytes of Zstandard can stand for 128 KiB.
    while piece := file.read(_ZST_PIECE):
        while piece:
            if whole:
                frame, whole = zstandard.ZstdDecompressor().decompressobj(), False
            yield frame.decompress(piece)
            whole, piece = frame.eof, frame.unused_data
    if not whole:
        raise EOFError


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Chunks to lines; OverflowError for a line longer than any document."""
    begun: list[bytes] = []
    length = 0
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        begun.append(first)
        length += len(first)
        if length > LONGEST_LINE:
            raise OverflowError(f"a line of more than {LONGEST_LINE >> 20} MiB")
        if rest:
            yield b"".join(begun)
            yield from rest[:-1]
            begun, length = [rest[-1]], len(rest[-1])
    if length:
        yield b"".join(begun)


class JsonlWriter:
    """Writes rows to `path`, compressed by its suffix; the file appears whole when the `with` block ends.

    Nothing appears when the block raises. StorageError for a full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        """Rows written so far."""
        self._closing = ExitStack()
        self._stream: Any = None

    def __enter__(self) -> Self:
        """Open the temporary file."""
        file = self._closing.enter_context(atomic(self.path))
        if self.path.suffix == ".zst":
            compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
            self._stream = self._closing.enter_context(compressor.stream_writer(file, closefd=False))
        elif self.path.suffix == ".gz":
            packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
            self._stream = self._closing.enter_context(packed)
        else:
            self._stream = file
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row.

        Raises:
            ValueError: NaN and infinity, which JSON does not know.
            InputError: a row that `read_jsonl` would refuse as too long.
        """
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        if len(line) > LONGEST_LINE:
            problem = f"a row of {len(line):,} bytes; {LONGEST_LINE:,} is the limit"
            raise InputError(self.path, problem, place=f"row {self.rows + 1:,}")
        self._stream.write(line + b"\n")
        self.rows += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the stream and rename it, or leave nothing after an error."""
        self._closing.__exit__(kind, error, trace)
