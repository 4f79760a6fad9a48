"""Files as streams of bytes, unpacked by what they contain and not by their name."""

import bz2
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Protocol

import zstandard

from meditron.ground.errors import InputError, MissingExtra, SourceError

__all__ = ["chunks", "head", "lines"]

_PIECE = 256 << 10  # unpacked bytes at a time: what a decompression bomb can make us hold, and a cache can
_RAW = 64 << 10
_RAW_ZSTD = 4 << 10  # its decoder knows no bound on its output, so its input is bounded


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def chunks(path: Path) -> Iterator[bytes]:
    """The unpacked bytes of a plain, gzip, bzip2 or zstd file, in order, in pieces of 256 KB at most.

    All that precedes a damage is handed out. Then InputError says how many bytes were sound; SourceError
    where there is no such file.
    """
    done = 0
    try:
        with path.open("rb") as file:
            for chunk in _unpacked(file):
                yield chunk
                done += len(chunk)
    except FileNotFoundError as error:
        raise SourceError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise SourceError(f"{path}: a folder, where a file was expected") from error
    except EOFError as error:
        raise InputError(path, "the compressed data are cut off", place=f"after {done:,} bytes") from error
    except (OSError, ValueError, zstandard.ZstdError) as error:
        raise InputError(path, f"cannot be unpacked: {error}", place=f"after {done:,} bytes") from error


def head(path: Path, size: int = 4096) -> bytes:
    """The first `size` unpacked bytes, fewer if the file is shorter."""
    start = b""
    for chunk in chunks(path):
        start += chunk
        if len(start) >= size:
            break
    return start[:size]


def lines(path: Path) -> Iterator[bytes]:
    """The file's lines without their ends."""
    rest: list[bytes] = []
    for chunk in chunks(path):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest).removesuffix(b"\r")
            yield from (line.removesuffix(b"\r") for line in others[:-1])
            rest = [others[-1]]
    if last := b"".join(rest):
        yield last


def _unpacked(file: IO[bytes]) -> Iterator[bytes]:
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return _gunzipped(file)
    if magic.startswith(b"BZh"):
        return _stream(file, bz2.BZ2Decompressor)
    if magic == b"\x28\xb5\x2f\xfd":
        return _stream(file, _Zstd, _RAW_ZSTD)
    return iter(lambda: file.read(_PIECE), b"")


def _stream(file: IO[bytes], new: Callable[[], _Unpacker], raw: int = _RAW) -> Iterator[bytes]:
    """Unpack one compressed member after another, as gzip, bzip2 and zstd files may hold several."""
    data = file.read(raw)
    while data:
        unpacker = new()
        while not unpacker.eof:
            if unpacker.needs_input and not (data := data or file.read(raw)):
                raise EOFError
            if piece := unpacker.decompress(data, _PIECE):
                yield piece
            data = b""
        data = unpacker.unused_data or file.read(raw)
        if not data.strip(b"\0"):  # padding to whole blocks, as tapes leave it
            data = b""


def _gunzipped(file: IO[bytes]) -> Iterator[bytes]:
    try:
        from isal import igzip_lib, isal_zlib
    except ImportError as error:
        raise MissingExtra("isal", "corpus") from error
    try:
        yield from _stream(file, partial(igzip_lib.IgzipDecompressor, flag=igzip_lib.DECOMP_GZIP))
    except isal_zlib.IsalError as error:  # type: ignore[misc]  # its stub names no base
        raise ValueError(error) from error


class _Zstd:
    """A zstd frame behind the interface of the other two."""

    needs_input = True

    def __init__(self) -> None:
        self._frame = zstandard.ZstdDecompressor().decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return bytes(self._frame.decompress(data))
