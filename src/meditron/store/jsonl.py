"""JSON Lines files: plain, gzip (`.gz`) or Zstandard (`.zst`), by suffix.

Output is reproducible: equal rows give equal bytes, because no compressor stores a time or a file name.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar, cast

import msgspec
import zstandard

from meditron.core.errors import InputError
from meditron.store.files import atomic_write, translate_read_errors

__all__ = [
    "LONGEST_LINE",
    "MOST_VALUES",
    "JsonlWriter",
    "check_value_count",
    "encode_row",
    "read_jsonl",
    "read_jsonl_as",
    "read_numbered_jsonl",
    "split_lines",
    "unpack_zstd",
]

_Row = TypeVar("_Row", bound=msgspec.Struct)

LONGEST_LINE = 64 << 20
"""Longest accepted line, in bytes; guards against decompression bombs."""
MOST_VALUES = 4_000_000
"""Maximum number of commas, colons and brackets outside of strings in one line; for each of them, parsing can
create an object of about 70 bytes."""

_CHUNK = 1 << 20
_BLOCK = 1 << 18
_ZSTD_PIECE = 4 << 10
_MARKS = (b",", b":", b"[", b"{")
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+|[,:\[{]', re.DOTALL)  # a string, or a mark outside of strings


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file, in order; blank lines are skipped.

    Raises:
        InputError: the stream is truncated or damaged, or a line is not a JSON object, is longer than
            LONGEST_LINE, or has more values than MOST_VALUES; the error names the line.
        SourceError: there is no such file.
    """
    return (row for _, row in read_numbered_jsonl(path))


def read_numbered_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a JSONL file with the numbers of their lines, from 1. Errors as of `read_jsonl`."""
    count = _LineCount()
    with _opened(path, count) as chunks:
        for count.lines, line in enumerate(split_lines(chunks), start=1):
            if line.strip():
                yield count.lines, _parse_row(path, count.lines, line)


def read_jsonl_as(path: Path, row_type: type[_Row]) -> Iterator[_Row]:
    """Yield the rows of a JSONL file as objects of a msgspec Struct; other fields of a row are not decoded.

    Raises:
        InputError: as of `read_jsonl`, or a row does not have the fields of `row_type`.
        SourceError: there is no such file.
    """
    decoder = msgspec.json.Decoder(row_type)
    for first, block in _line_blocks(path):
        try:
            check_value_count(block)
            rows: list[_Row | None] = [*decoder.decode_lines(block)]
        except (ValueError, RecursionError):
            rows = []
        # After an error, the lines are decoded one by one for the number of the line; and so they are if some
        # are blank, or have two objects.
        if len(rows) != block.count(b"\n"):
            lines = enumerate(block.split(b"\n"), start=first)
            rows = [_decode_row(path, number, line, decoder) for number, line in lines]
        yield from filter(None, rows)


def _decode_row(path: Path, number: int, line: bytes, decoder: msgspec.json.Decoder[_Row]) -> _Row | None:
    """Decode one line; None for a blank line."""
    if not line.strip():
        return None
    try:
        check_value_count(line)
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        raise InputError(path, str(error), place=f"line {number}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or too many values
        raise InputError(path, f"not JSON that can be read: {error}", place=f"line {number}") from error


class _LineCount:
    """Number of the lines of a file that have been read, for the place in an error."""

    lines = 0


@contextmanager
def _opened(path: Path, count: _LineCount) -> Iterator[Iterator[bytes]]:
    """Open a file for its decompressed chunks; InputError with the line if the stream is damaged."""
    with translate_read_errors(path):
        opened = path.open("rb")
    try:
        with opened as file:
            yield _decompressed_chunks(path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        problem = "the compressed stream ends too early" if isinstance(error, EOFError) else str(error)
        raise InputError(path, problem, place=f"after line {count.lines}") from error
    except OverflowError as error:
        raise InputError(path, str(error), place=f"line {count.lines + 1}") from error


def _line_blocks(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield blocks of complete lines, each with the number of its first line."""
    count = _LineCount()
    with _opened(path, count) as chunks:
        parts: list[bytes] = []
        size = 0
        for chunk in chunks:
            size += len(chunk)
            cut = chunk.rfind(b"\n") + 1 if size >= _BLOCK else 0
            if cut:
                block = b"".join([*parts, chunk[:cut]])
                yield count.lines + 1, block
                count.lines += block.count(b"\n")
                parts, size = [], len(chunk) - cut
            elif size > LONGEST_LINE + _BLOCK:
                raise OverflowError(f"a line of more than {LONGEST_LINE >> 20} MiB")
            parts.append(chunk[cut:])
        yield count.lines + 1, b"".join(parts)


def check_value_count(line: bytes) -> None:
    """Raise ValueError if a line of JSON may have more than MOST_VALUES values; called before parsing."""
    # The number of these characters in the whole line is a cheap upper bound. Only if it is above the limit
    # are the characters inside strings left out of the count.
    if len(line) <= MOST_VALUES or sum(map(line.count, _MARKS)) <= MOST_VALUES:
        return
    outside = (token for token in _TOKEN.finditer(line) if line[token.start()] != ord('"'))
    if next(islice(outside, MOST_VALUES, None), None) is not None:
        raise ValueError(f"more than {MOST_VALUES:,} commas, colons and brackets")


def _parse_row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        check_value_count(line)
        row = json.loads(line)
    except json.JSONDecodeError as error:
        place = f"line {number}, column {error.colno}"
        raise InputError(path, f"not JSON: {error.msg}", place=place) from error
    except UnicodeDecodeError as error:
        raise InputError(path, "not UTF-8", place=f"line {number}, byte {error.start}") from error
    except (RecursionError, ValueError) as error:
        raise InputError(path, f"not JSON that can be read: {error}", place=f"line {number}") from error
    if not isinstance(row, dict):
        raise InputError(path, f"expected a JSON object, got a {type(row).__name__}", place=f"line {number}")
    return row


def _decompressed_chunks(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """Yield the file's decompressed bytes; EOFError if a compressed stream is truncated."""
    if path.suffix == ".zst":
        yield from unpack_zstd(file)
        return
    stream = cast("IO[bytes]", gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file)
    while chunk := stream.read(_CHUNK):
        yield chunk


def unpack_zstd(file: IO[bytes]) -> Iterator[bytes]:
    """Decompress Zstandard frames, one after another, with zero padding between them if there is any.

    Raises:
        EOFError: the last frame is truncated, or the file is empty.
    """
    # zstandard's stream_reader ends at a truncated frame without an error, so frames are decompressed here.
    frame = zstandard.ZstdDecompressor().decompressobj()
    complete = False
    # Read in small pieces, because four bytes of Zstandard can expand to 128 KiB.
    while piece := file.read(_ZSTD_PIECE):
        while piece := piece.lstrip(b"\0") if complete else piece:
            if complete:
                frame = zstandard.ZstdDecompressor().decompressobj()
            if unpacked := frame.decompress(piece):
                yield unpacked
            complete, piece = frame.eof, frame.unused_data
    if not complete:
        raise EOFError


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split chunks at line ends; OverflowError for a line longer than LONGEST_LINE."""
    line_parts: list[bytes] = []
    length = 0
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        line_parts.append(first)
        length += len(first)
        if length > LONGEST_LINE:
            raise OverflowError(f"a line of more than {LONGEST_LINE >> 20} MiB")
        if rest:
            yield b"".join(line_parts)
            yield from rest[:-1]
            line_parts, length = [rest[-1]], len(rest[-1])
    if length:
        yield b"".join(line_parts)


def encode_row(row: Mapping[str, Any]) -> bytes:
    """Encode a row as one compact line of JSON with a newline; ValueError for NaN and infinity."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


class JsonlWriter:
    """Context manager that writes rows to `path` atomically, compressed as the suffix says.

    The complete file appears when the block ends; if the block raises, no file appears. StorageError for a
    full disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        """Rows written."""
        self._closing = ExitStack()
        self._stream: Any = None

    def __enter__(self) -> Self:
        """Open the temporary file."""
        file = self._closing.enter_context(atomic_write(self.path))
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
            ValueError: NaN and infinity, which JSON cannot represent.
            InputError: the row is longer than `read_jsonl` accepts.
        """
        line = encode_row(row)
        if len(line) - 1 > LONGEST_LINE:
            problem = f"a row of {len(line) - 1:,} bytes; at most {LONGEST_LINE:,} are allowed"
            raise InputError(self.path, problem, place=f"row {self.rows + 1:,}")
        self._stream.write(line)
        self.rows += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the stream and rename the file, or remove it after an error."""
        self._closing.__exit__(kind, error, trace)
