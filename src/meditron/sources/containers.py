"""Reading of the files in a zip or tar archive, one after another, without unpacking the archive to disk.

A tar archive may be compressed like any other file. Nothing is written to disk, so the name of a member is
never used as a path; it appears in ids and errors only. Memory is bounded: members are read as streams, and
no buffer has a size that the archive declares.
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

_REREADABLE = 1 << 20  # bytes at a member's start that are kept, to read them again after format recognition
_PIECE = 256 << 10
_BLOCK = 512  # bytes; headers and data of a tar archive are padded to multiples of this size
_LONGEST_HEADER = 1 << 20  # maximum bytes of an extended header, which has a long name and some numbers
# Type bytes of tar members in the POSIX and GNU formats.
_REGULAR = frozenset({b"0", b"\0", b"7"})
_WITHOUT_DATA = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"5": "folder", b"6": "pipe"}
_WITHOUT_DATA |= {b"V": "label"}  # GNU's `tar --label`
_EXTENSIONS = frozenset({b"L", b"K", b"x", b"g"})  # headers with fields of the next member, or of all members
_PAX_RECORD = re.compile(r"^[0-9]+ (path(?==)|size(?==[0-9]{1,19}$))=(.*)$", re.MULTILINE)


class ArchiveMember:
    """A file in an archive, as a `Readable`. It can be read once, before the next member is requested."""

    def __init__(self, archive: str, path: str, data: Iterator[bytes]) -> None:
        self.path = path
        """Path of the file in the archive."""
        self._archive = archive
        self._data = data
        self._buffer = b""
        self._position = 0  # of the next byte, in the buffer
        self._dropped = False  # True if the buffer no longer begins with the first byte of the member

    def __str__(self) -> str:
        return f"{self._archive}!{self.path}"

    @property
    def name(self) -> str:
        """The last part of the path in the archive."""
        return PurePosixPath(self.path).name

    def open(self, mode: Literal["rb"]) -> AbstractContextManager[IO[bytes]]:
        """Return a stream from the first byte; InputError if more than 1 MiB has been read already."""
        self.seek(0)
        return nullcontext(cast("IO[bytes]", self))

    def seek(self, position: int) -> None:
        """Return to the first byte; InputError if it is no longer in the buffer."""
        if position or self._dropped:
            raise InputError(self, "cannot be read twice from its archive", hint="unpack the archive")
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes (fewer at the end of the file), or by default all remaining bytes."""
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
    """Return the kind of an archive, recognised by the first bytes of the decompressed file; None for others.

    Office documents and e-books are zip archives, but count as documents.
    """
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None if unsupported_format(start) else "zip"
    # The oldest format (v7) has no signature, but the checksum of all.
    return "tar" if start[257:262] == b"ustar" or _is_header(start[:_BLOCK]) else None


def _is_header(block: bytes) -> bool:
    """Return true for a tar header with a size, whose checksum is right."""
    try:
        _parse_tar_number(block[124:136])
        checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
        return len(block) == _BLOCK and checksum == _parse_tar_number(block[148:156])
    except ValueError:
        return False


def read_members(file: Readable, kind: ArchiveKind, skipped: Counter[str]) -> Iterator[ArchiveMember]:
    """Yield the files in an archive, in its order. Each must be read before the next one is requested.

    Args:
        file: The archive.
        kind: The result of `archive_kind`.
        skipped: Counter to which the members that are links, devices or pipes are added, by reason.

    Raises:
        InputError: The archive is damaged or encrypted, or the path of a member leads outside of it (`..`,
            `/etc`); the error names the archive and the member.
    """
    return _tar_members(file, skipped) if kind == "tar" else _zip_members(file)


def _zip_members(file: Readable) -> Iterator[ArchiveMember]:
    path = cast("Path", file)  # not a stream: the central directory of a zip file is at its end
    member_names(path)  # raises InputError for hostile names before any member is read
    with open_zip(path) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                yield ArchiveMember(str(file), entry.filename, member_chunks(path, archive, entry))


# Python's tarfile allocates memory for a header of any declared size, so the format is parsed here instead.
class _TarReader:
    """A parser of a tar archive that is read as a stream."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._pieces = chunks(file)
        self._buffer = b""
        self._offset = 0  # bytes of the archive read so far
        self.member = "before the first member"
        """Name of the current member, for errors."""

    def read_up_to(self, size: int) -> bytes:
        """Return at least one and at most `size` of the next bytes; nothing at the end of the file."""
        if not self._buffer:
            try:
                self._buffer = next(self._pieces, b"")
            except InputError as damage:
                raise self.input_error(f"{damage.problem} {damage.place or ''}".strip()) from damage
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        self._offset += len(taken)
        return taken

    def read_exactly(self, size: int) -> bytes:
        """Return the next `size` bytes, or nothing at the end of the file; InputError if fewer are left."""
        pieces: list[bytes] = []
        missing = size
        while missing and (piece := self.read_up_to(missing)):
            pieces.append(piece)
            missing -= len(piece)
        if pieces and missing:
            raise self.input_error("the archive is cut off")
        return b"".join(pieces)

    def read_member_data(self, size: int) -> Iterator[bytes]:
        """Yield the data of the current member, and skip the padding after it."""
        missing = size
        while missing:
            piece = self.read_up_to(min(missing, _PIECE))
            if not piece:
                raise self.input_error("the archive is cut off")
            missing -= len(piece)
            yield piece
        self.read_exactly(-size % _BLOCK)

    def iterate_members(self) -> Iterator[tuple[bytes, int]]:
        """Yield type and size of each member; its name is in `member`.

        The data of a member must be read before the next one is requested.
        """
        extended_fields: dict[
            str, str
        ] = {}  # name and size of the next member, if they do not fit in its header
        ended = False
        while block := self.read_exactly(_BLOCK):
            # Blocks of zeros end an archive; another archive may follow, if two were joined with `cat`.
            ended = not any(block)
            if ended:
                continue
            name, size, kind = self._parse_header(block)
            if kind in _EXTENSIONS:
                if size > _LONGEST_HEADER:
                    raise self.input_error(
                        f"an extended header of {size:,} bytes; the limit is {_LONGEST_HEADER:,}"
                    )
                data = b"".join(self.read_member_data(size))
                if kind == b"L":  # long name in the GNU format
                    extended_fields["path"] = data.rstrip(b"\0").decode("utf-8", "backslashreplace")
                elif kind == b"x":
                    extended_fields |= dict(_PAX_RECORD.findall(data.decode("utf-8", "backslashreplace")))
                continue
            self.member = extended_fields.get("path", name).removeprefix("./")
            size = int(extended_fields.get("size", size))
            extended_fields = {}
            yield kind, 0 if kind in _WITHOUT_DATA else size
        if not ended:
            raise self.input_error("the archive is cut off after this member: no end mark")

    def _parse_header(self, block: bytes) -> tuple[str, int, bytes]:
        """Return the name, size and type in a header block; InputError for a wrong checksum."""
        if not _is_header(block):
            raise self.input_error(f"a damaged header of a member at byte {self._offset - _BLOCK:,}")
        size = _parse_tar_number(block[124:136])
        parts = [block[345:500]] if block[257:263] == b"ustar\0" else []
        parts = [part.partition(b"\0")[0] for part in (*parts, block[:100])]
        return b"/".join(filter(None, parts)).decode("utf-8", "backslashreplace"), size, block[156:157]

    def input_error(self, problem: str) -> InputError:
        """Return an InputError that names the archive and the current member."""
        return InputError(self._file, problem, place=self.member)


def _parse_tar_number(field: bytes) -> int:
    """Return a number in a tar header: octal digits, or for large numbers the byte 0x80 and binary digits."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:])
    return int(field.strip(b" \0") or b"0", 8)


def _tar_members(file: Readable, skipped: Counter[str]) -> Iterator[ArchiveMember]:
    tar = _TarReader(file)
    for kind, size in tar.iterate_members():
        if kind == b"5":
            continue
        if reason := _WITHOUT_DATA.get(kind):
            skipped[f"{reason} in an archive"] += 1
            continue
        if kind not in _REGULAR:
            raise tar.input_error(f"a member of the unknown type {kind.decode('latin-1')!r}")
        name = tar.member
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name):
            raise tar.input_error("the archive is not trusted: the path of this member leads outside of it")
        data = tar.read_member_data(size)
        yield ArchiveMember(str(file), name, data)
        for _ in data:  # skip data that the caller has not read
            pass
