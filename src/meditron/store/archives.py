"""Extraction of one member from a zip archive (a wheel is one), which may be damaged or hostile."""

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
from meditron.store.files import atomic_write

__all__ = ["MODEL_GLOB", "extract_member", "member_chunks", "member_names", "open_zip", "select_member"]

MODEL_GLOB = "*.gguf"
"""If a source names no member of an archive, the archive's only file that matches this pattern is used."""

_CHUNK = 1 << 20
# Deflate compresses at most 1,032 to 1. A member that declares a larger ratio is a decompression bomb or has
# a false size.
_MAX_RATIO = 1_100
_MAX_LISTED = 5
# The errors that zipfile raises for a damaged archive: OSError for an impossible offset, NotImplementedError
# for an unknown compression method, and so on.
_DAMAGE = (
    zipfile.BadZipFile,
    NotImplementedError,
    ValueError,
    OSError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    MemoryError,
    LookupError,
)


def member_names(archive: Path) -> list[str]:
    """Return the names of the files in an archive.

    Raises:
        InputError: it is not a zip archive, or a name is hostile: it contains `..`, is absolute, has a drive
            letter, occurs twice or is a symbolic link; the error names the archive and the member.
    """
    with open_zip(archive) as opened:
        entries = opened.infolist()
    names: set[str] = set()
    for entry in entries:
        problem = "the name occurs twice" if entry.filename in names else _member_name_problem(entry)
        if problem:
            raise InputError(archive, f"the archive is not trusted: {problem}", place=entry.filename)
        names.add(entry.filename)
    return [entry.filename for entry in entries if not entry.is_dir()]


def open_zip(archive: Path) -> zipfile.ZipFile:
    """Open a zip archive; InputError if it cannot be read."""
    try:
        return zipfile.ZipFile(archive)
    except _DAMAGE as error:
        raise InputError(archive, f"not a readable zip archive: {error}") from error


def _member_name_problem(entry: zipfile.ZipInfo) -> str | None:
    name = entry.filename
    if not name:
        return "a member without a name"
    if ".." in re.split(r"[/\\]", name):
        return "the name leads out of the archive"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "the name is absolute"
    # If the archive was written on Unix, the upper 16 bits of this field are the file's Unix mode.
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "a symbolic link"
    return None


def select_member(archive: Path, names: Sequence[str], pattern: str) -> str:
    """Return the one name that matches a pattern: the name itself, or a glob (`*`, `?`, `…` for `*`).

    Raises:
        SourceError: none or several match; the hint lists candidates, the most similar first.
    """
    if pattern in names:
        return pattern
    glob = pattern.replace("…", "*")
    matches = [name for name in names if fnmatchcase(name, glob)]
    if len(matches) == 1:
        return matches[0]
    candidates = sorted(matches or names, key=lambda name: _name_similarity(name, pattern), reverse=True)
    problem = f"{len(matches)} members match {pattern}" if matches else f"no member {pattern}"
    listed = ", ".join(candidates[:_MAX_LISTED]) or "the archive is empty"
    raise SourceError(
        f"{archive.name}: {problem}", hint=f"{'name one of' if matches else 'nearest'}: {listed}"
    )


def _name_similarity(name: str, pattern: str) -> float:
    last = SequenceMatcher(None, name.rsplit("/", 1)[-1], pattern.rsplit("/", 1)[-1]).ratio()
    return last + SequenceMatcher(None, name, pattern).ratio() / 10


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Extract one member to `target`, atomically. Raises the errors of `member_chunks`."""
    with open_zip(archive) as opened, atomic_write(target) as file:
        for chunk in member_chunks(archive, opened, opened.getinfo(member)):
            file.write(chunk)


def member_chunks(archive: Path, opened: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the bytes of one member; zipfile checks their CRC.

    Raises:
        InputError: the member is encrypted or damaged, its size is not the declared one, or the declared size
            is more than compression can achieve; the error names the archive and the member.
    """
    if entry.flag_bits & 1:
        raise InputError(archive, "the member is encrypted", place=entry.filename)
    if entry.file_size > _MAX_RATIO * max(entry.compress_size, 1):
        problem = f"declares {entry.file_size:,} bytes, from only {entry.compress_size:,} compressed bytes"
        raise InputError(archive, problem, place=entry.filename)
    done = 0
    try:
        with opened.open(entry) as source:
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                yield chunk
    except _DAMAGE as error:
        raise InputError(archive, f"damaged: {error}", place=entry.filename) from error
    if done != entry.file_size:
        problem = f"unpacks to {done:,} bytes instead of {entry.file_size:,}"
        raise InputError(archive, problem, place=entry.filename)
