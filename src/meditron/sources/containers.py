"""Archives read in place: the files in a zip or tar archive, one after another, without unpacking to disk.

A tar archive may be compressed like any other file. Nothing is written, so a member's name is never used as a
path; it appears in ids and errors only. Memory is bounded: members are read as streams, and the sizes that
an archive declares are never allocated.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import IO, Literal, cast

from meditron.core.errors import InputError
from meditron.sources.document import Readable
from meditron.sources.file_types import unsupported_format
from meditron.sources.streams import chunks
from meditron.store.archives import member_chunks, member_names, open_zip

__all__ = ["ArchiveMember", "archive_kind", "read_members"]

ArchiveKind = Literal["zip", "tar"]

_REREADABLE = 1 << 20  # bytes at a member's start that can be read again, after its format was recognised
_PIECE = 256 << 10
_BLOCK = 512  # bytes; the unit of a tar archive
_LONGEST_HEADER = 1 << 20  # bytes of an extended header, which is held in memory: a name and some numbers
# Types of tar members, as in the POSIX and GNU formats.
_REGULAR = frozenset({b"0", b"\0", b"7"})
_WITHOUT_DATA = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"5": "folder", b"6": "pipe"}
_WITHOUT_DATA |= {b"V": "label"}  # GNU's `tar --label`
_EXTENSIONS = frozenset({b"L", b"K", b"x", b"g"})  # headers about the next member, or about all
_PAX_RECORD = re.compile(r"^[0-9]+ (path(?==)|size(?==[0-9]{1,19}$))=(.*)$", re.MULTILINE)


class ArchiveMember:
    """A file in an archive, as a `Readable`: read once, when its turn in the archive comes."""

    def __init__(self, archive: str, path: str, data: Iterator[bytes]) -> None:
        self.path = path
        """The path in the archive."""
        self._archive = archive
        self._data = data
        self._buffer = b""
        self._position = 0  # in the buffer
        self._dropped = False  # true once the member's start is gone

    def __str__(self) -> str:
        return f"{self._archive}!{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path in the archive."""
        return PurePosixPath(self.path).name

    def open(self, mode: Literal["rb"]) -> AbstractContextManager[IO[bytes]]:
        """Return a stream from the member's first byte; InputError once more than 1 MiB has been read."""
        self.seek(0)
        return nullcontext(cast("IO[bytes]", self))

    def seek(self, position: int) -> None:
        """Return to the first byte."""
        if position or self._dropped:
            raise InputError(self, "cannot be read twice from its archive", hint="unpack the archive")
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, fewer only at the end; all by default."""
        pieces = [self._buffer[self._position :]]
        available = len(pieces[0])
        while (size < 0 or available < size) and (piece := next(self._data, b"")):
            pieces.append(piece)
            available += len(piece)
        unread = b"".join(pieces)
        size = available if size < 0 else min(size, available)
        if self._dropped or self._position + size > _REREADABLE:
            self._buffer, self._position, self._dropped = unread[size:], 0, True
        else:
            self._buffer = self._buffer[: self._position] + unread
            self._position += size
        return unread[:size]


def archive_kind(start: bytes) -> ArchiveKind | None:
    """Recognise an archive by the first bytes of a file, decompressed.

    Office documents and e-books, which are zip archives, are not archives of documents.
    """
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None if unsupported_format(start) else "zip"
    # The oldest format (v7) has no signature, but the checksum of all.
    return "tar" if start[257:262] == b"ustar" or _is_header(start[:_BLOCK]) else None


def _is_header(block: bytes) -> bool:
    """Return true for a tar header with a size, whose checksum is right."""
    try:
        _number(block[124:136])
        checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        return len(block) == _BLOCK and checksum == _number(block[148:156])
    except ValueError:
        return False


def read_members(file: Readable, kind: ArchiveKind, skipped: Counter[str]) -> Iterator[ArchiveMember]:
    """Yield the files in an archive, in its order. A member must be read before the next one is requested.

    Args:
        file: The archive.
        kind: The result of `archive_kind`.
        skipped: Counts the members that are not files: links, devices, pipes. Folders are not counted.

    Raises:
        InputError: The archive is damaged or encrypted, or a member's name leads out of it (`..`, `/etc`);
            the error names the archive and the member.
    """
    return _tar_members(file, skipped) if kind == "tar" else _zip_members(file)


def _zip_members(file: Readable) -> Iterator[ArchiveMember]:
    path = cast("Path", file)  # the central directory is at the end: a stream would not do
    member_names(path)  # refuses hostile names before anything is read
    with open_zip(path) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                yield ArchiveMember(str(file), entry.filename, member_chunks(path, archive, entry))


# tarfile allocates an extended header of any declared size, so the format is read here, block by block.
class _Tar:
    """A tar archive as a stream of headers and data."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._pieces = chunks(file)
        self._buffer = b""
        self._offset = 0  # bytes taken so far
        self.member = "before the first member"
        """The current member, for errors."""

    def take(self, size: int) -> bytes:
        """Return the next bytes: at most `size` and at least one, except at the end of the file."""
        if not self._buffer:
            try:
                self._buffer = next(self._pieces, b"")
            except InputError as damage:
                raise self.error(f"{damage.problem} {damage.place or ''}".strip()) from damage
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        self._offset += len(taken)
        return taken

    def take_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes; nothing at the end of the file."""
        pieces: list[bytes] = []
        missing = size
        while missing and (piece := self.take(missing)):
            pieces.append(piece)
            missing -= len(piece)
        if pieces and missing:
            raise self.error("the archive is cut off")
        return b"".join(pieces)

    def data(self, size: int) -> Iterator[bytes]:
        """Yield the data of the current member, and skip the padding behind it."""
        missing = size
        while missing:
            piece = self.take(min(missing, _PIECE))
            if not piece:
                raise self.error("the archive is cut off")
            missing -= len(piece)
            yield piece
        self.take_exactly(-size % _BLOCK)

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """Yield type and size of each member; `member` is its name. Its data must be read before the next."""
        extended: dict[str, str] = {}  # name and size of the next member, if its own header cannot hold them
        ended = False
        while block := self.take_exactly(_BLOCK):
            # Blocks of zeros end an archive; more members may follow, as `cat` joins archives.
            ended = not any(block)
            if ended:
                continue
            name, size, kind = self._header(block)
            if kind in _EXTENSIONS:
                if size > _LONGEST_HEADER:
                    raise self.error(
                        f"an extended header of {size:,} bytes; the limit is {_LONGEST_HEADER:,}"
                    )
                data = b"".join(self.data(size))
                if kind == b"L":  # GNU's long names
                    extended["path"] = data.rstrip(b"\0").decode("utf-8", "backslashreplace")
                elif kind == b"x":
                    extended |= dict(_PAX_RECORD.findall(data.decode("utf-8", "backslashreplace")))
                continue
            self.member = extended.get("path", name).removeprefix("./")
            size = int(extended.get("size", size))
            extended = {}
            yield kind, 0 if kind in _WITHOUT_DATA else size
        if not ended:
            raise self.error("the archive is cut off after this member: no end mark")

    def _header(self, block: bytes) -> tuple[str, int, bytes]:
        """Return name, size and type in a header of 512 bytes; InputError for a wrong checksum."""
        if not _is_header(block):
            raise self.error(f"a damaged header of a member at byte {self._offset - _BLOCK:,}")
        size = _number(block[124:136])
        parts = [block[345:500]] if block[257:263] == b"ustar\0" else []
        parts = [part.partition(b"\0")[0] for part in (*parts, block[:100])]
        return b"/".join(filter(None, parts)).decode("utf-8", "backslashreplace"), size, block[156:157]

    def error(self, problem: str) -> InputError:
        """Return an error that names the archive and the current member."""
        return InputError(self._file, problem, place=self.member)


def _number(field: bytes) -> int:
    """Read a number of a tar header: octal digits, or, for large ones, binary after a byte 0x80."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:])
    return int(field.strip(b" \0") or b"0", 8)


def _tar_members(file: Readable, skipped: Counter[str]) -> Iterator[ArchiveMember]:
    tar = _Tar(file)
    for kind, size in tar.entries():
        if kind == b"5":
            continue
        if reason := _WITHOUT_DATA.get(kind):
            skipped[f"{reason} in an archive"] += 1
            continue
        if kind not in _REGULAR:
            raise tar.error(f"a member of the unknown type {kind.decode('latin-1')!r}")
        name = tar.member
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
            raise tar.error("the name leads out of the archive, which is not trusted")
        data = tar.data(size)
        yield ArchiveMember(str(file), name, data)
        for _ in data:  # skip the rest of a member that was not read to its end
            pass
