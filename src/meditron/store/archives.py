"""One member out of a zip archive (a wheel is one), trusting nothing the archive says."""

import lzma
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from pathlib import Path

from meditron.core.errors import InputError, SourceError
from meditron.store.files import atomic

__all__ = ["MODEL", "extract", "members", "open_zip", "select", "unpack"]

MODEL = "*.gguf"
"""What a source that names no member may be taken for, when there is exactly one."""

_CHUNK = 1 << 20
# Deflate reaches 1,032 to 1; what promises more is not compressed but lying.
_HIGHEST_RATIO = 1_100
_SHOWN = 5
# What zipfile says of damage: a wild offset is an OSError, a compression it has not a NotImplementedError.
_UNREADABLE = (
    *(zipfile.BadZipFile, NotImplementedError, ValueError, OSError, RuntimeError),
    *(struct.error, zlib.error, lzma.LZMAError, EOFError, MemoryError, LookupError),
)


def members(archive: Path) -> list[str]:
    """The names of the files in an archive.

    InputError, naming archive and member, where it is no zip archive or a name is one no honest archive has:
    with `..`, absolute, with a drive letter, twice, or a symbolic link.
    """
    with open_zip(archive) as opened:
        entries = opened.infolist()
    seen: set[str] = set()
    for entry in entries:
        problem = "the name comes twice" if entry.filename in seen else _hostile(entry)
        if problem:
            raise InputError(archive, f"the archive is not to be trusted: {problem}", place=entry.filename)
        seen.add(entry.filename)
    return [entry.filename for entry in entries if not entry.is_dir()]


def open_zip(archive: Path) -> zipfile.ZipFile:
    """Open a zip archive; InputError if it cannot be read."""
    try:
        return zipfile.ZipFile(archive)
    except _UNREADABLE as error:
        raise InputError(archive, f"not a zip archive that can be read: {error}") from error


def _hostile(entry: zipfile.ZipInfo) -> str | None:
    name = entry.filename
    if not name:
        return "a member without a name"
    if ".." in re.split(r"[/\\]", name):
        return "the name climbs out of the archive"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "the name is absolute"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "a symbolic link"
    return None


def select(archive: Path, names: Sequence[str], pattern: str) -> str:
    """The one name that `pattern` means: itself, or a glob (`*`, `?`, `…` for any piece).

    SourceError, with the candidates, nearest first, when none or several are meant.
    """
    if pattern in names:
        return pattern
    glob = pattern.replace("…", "*")
    matches = [name for name in names if fnmatchcase(name, glob)]
    if len(matches) == 1:
        return matches[0]
    candidates = sorted(matches or names, key=lambda name: _likeness(name, pattern), reverse=True)[:_SHOWN]
    what = f"{len(matches)} members match {pattern}" if matches else f"no member {pattern}"
    listed = ", ".join(candidates) or "nothing in it"
    raise SourceError(f"{archive.name}: {what}", hint=f"{'name one of' if matches else 'nearest'}: {listed}")


def _likeness(name: str, pattern: str) -> float:
    last = SequenceMatcher(None, name.rsplit("/", 1)[-1], pattern.rsplit("/", 1)[-1]).ratio()
    return last + SequenceMatcher(None, name, pattern).ratio() / 10


def extract(archive: Path, member: str, target: Path) -> None:
    """Unpack one member to `target`, atomically.

    InputError as of `unpack`.
    """
    with open_zip(archive) as opened, atomic(target) as file:
        for chunk in unpack(archive, opened, opened.getinfo(member)):
            file.write(chunk)


def unpack(archive: Path, opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of one member; zipfile checks their CRC.

    Raises:
        InputError: The member is encrypted or damaged, its size is not the declared one, or the declared
            size is more than compression can reach; the error names the archive and the member.
    """
    if entry.flag_bits & 1:
        raise InputError(archive, "the member is encrypted", place=entry.filename)
    if entry.file_size > _HIGHEST_RATIO * max(entry.compress_size, 1):
        problem = f"{entry.compress_size:,} bytes promise to unpack to {entry.file_size:,}"
        raise InputError(archive, problem, place=entry.filename)
    done = 0
    try:
        with opened.open(entry) as source:
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                yield chunk
    except _UNREADABLE as error:
        raise InputError(archive, f"damaged: {error}", place=entry.filename) from error
    if done != entry.file_size:
        problem = f"unpacks to {done:,} bytes instead of {entry.file_size:,}"
        raise InputError(archive, problem, place=entry.filename)
