"""Reading of files as streams of decompressed bytes. UTF-16 and UTF-32 are converted to UTF-8.

The compression is recognised by the first bytes, not by the file name.
"""

import bz2
import codecs
import lzma
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Protocol

import zstandard

from meditron.core.errors import InputError, MissingExtra, SourceError
from meditron.sources.document import Readable, Section
from meditron.store.jsonl import split_lines, unpack_zstd

__all__ = ["LONGEST_DOCUMENT", "check_length", "chunks", "head", "lines", "path_as_text", "read_whole"]

LONGEST_DOCUMENT = 24 << 20
"""Maximum bytes of a document's text in UTF-8. With escapes in JSON it is still shorter than LONGEST_LINE."""

# Bytes that are decompressed at once. Bounds the memory for a decompression bomb, and fits in the CPU cache.
_PIECE = 256 << 10
_COMPRESSED_PIECE = 64 << 10
# An xz file declares how much memory its decompression needs; `xz -9` needs 64 MiB.
_MAX_XZ_MEMORY = 256 << 20
# UTF-32 before UTF-16, because the byte order mark of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


class _Decompressor(Protocol):
    """The interface of the incremental decompressors in the standard library."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def chunks(file: Readable) -> Iterator[bytes]:
    """Yield the decompressed bytes of a plain, gzip, bzip2, xz or zstd file, in pieces of about 256 KB.

    Text that begins with the byte order mark of UTF-16 or UTF-32 is converted to UTF-8. If the file is
    damaged, the bytes before the damage are yielded before the error is raised.

    Raises:
        InputError: The compressed data are damaged; the error has the number of bytes before the damage.
        SourceError: There is no such file, or the path is a folder.
    """
    done = 0
    try:
        with file.open("rb") as stream:
            for chunk in _convert_to_utf8(file, _decompress(stream)):
                yield chunk
                done += len(chunk)
    except FileNotFoundError as error:
        raise SourceError(f"{file}: no such file") from error
    except IsADirectoryError as error:
        raise SourceError(
            f"{file}: expected a file, got a folder", hint=f"name its files: {file}/*"
        ) from error
    except EOFError as error:
        raise InputError(file, "the compressed data are cut off", place=f"after {done:,} bytes") from error
    except (OSError, ValueError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise InputError(file, f"cannot be decompressed: {error}", place=f"after {done:,} bytes") from error


def check_length(file: Readable, sections: Sequence[Section], place: str | None = None) -> None:
    """Raise InputError if the sections of a document are longer than LONGEST_DOCUMENT."""
    if sum(len(section.text.encode("utf-8", "replace")) for section in sections) > LONGEST_DOCUMENT:
        raise InputError(file, f"a text of more than {LONGEST_DOCUMENT >> 20} MiB", place=place)


def path_as_text(path: Path) -> str:
    """Return a path as text. Bytes of the path that are not UTF-8 become hexadecimal escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def head(file: Readable, size: int = 4096) -> bytes:
    """Return the first `size` decompressed bytes, fewer if the file is shorter."""
    start = b""
    for chunk in chunks(file):
        start += chunk
        if len(start) >= size:
            break
    return start[:size]


def read_whole(file: Readable, limit: int) -> bytes:
    """Return all decompressed bytes; InputError if there are more than `limit`."""
    pieces: list[bytes] = []
    size = 0
    for piece in chunks(file):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            hint = "split it, or make it JSON lines with one document per line"
            raise InputError(file, f"longer than {limit >> 20} MiB", hint=hint)
    return b"".join(pieces)


def lines(file: Readable) -> Iterator[bytes]:
    """Yield the lines of a file without line ends; InputError for a line longer than LONGEST_LINE."""
    number = 0
    try:
        for line in split_lines(chunks(file)):
            number += 1
            yield line.removesuffix(b"\r")
    except OverflowError as error:
        raise InputError(file, str(error), place=f"line {number + 1:,}") from error


def _convert_to_utf8(file: Readable, pieces: Iterator[bytes]) -> Iterator[bytes]:
    first = next(pieces, b"")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if first.startswith(mark)), None)
    if encoding is None:
        yield first
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    done = 0
    try:
        for piece in chain([first], pieces):
            yield decoder.decode(piece).encode()
            done += len(piece)
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise InputError(file, f"not {encoding.upper()[:6]}", place=f"after {done:,} bytes") from error


def _decompress(file: IO[bytes]) -> Iterator[bytes]:
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return _gunzip(file)
    if magic.startswith(b"BZh"):
        return _decompress_members(file, bz2.BZ2Decompressor)
    # Files of pzstd begin with a skippable frame.
    skippable = magic[1:4] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50
    if magic.startswith(b"\x28\xb5\x2f\xfd") or skippable:
        return unpack_zstd(file)
    if magic == b"\xfd7zXZ\0":
        return _decompress_members(file, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, _MAX_XZ_MEMORY))
    return iter(lambda: file.read(_PIECE), b"")


def _decompress_members(file: IO[bytes], new_decompressor: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """Decompress a file of one or several compressed members, which gzip, bzip2 and xz allow."""
    data = file.read(_COMPRESSED_PIECE)
    while data:
        unpacker = new_decompressor()
        while not unpacker.eof:
            if unpacker.needs_input and not (data := data or file.read(_COMPRESSED_PIECE)):
                raise EOFError
            if piece := unpacker.decompress(data, _PIECE):
                yield piece
            data = b""
        data = unpacker.unused_data or file.read(_COMPRESSED_PIECE)
        # Files from tapes are padded with zeros to whole blocks; members may follow the padding.
        while data and not (data := data.lstrip(b"\0")):
            data = file.read(_COMPRESSED_PIECE)


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    try:
        from isal import igzip_lib, isal_zlib
    except ImportError as error:
        raise MissingExtra("isal", "corpus") from error
    try:
        yield from _decompress_members(file, partial(igzip_lib.IgzipDecompressor, flag=igzip_lib.DECOMP_GZIP))
    except isal_zlib.IsalError as error:  # type: ignore[misc]  # its stub names no base
        raise ValueError(error) from error
