"""The list of source formats, and functions that open a file in any format.

To add a format, write a module with a reader and add one line to SOURCES.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from meditron.core.errors import InputError, SourceError
from meditron.sources import mediawiki, medline, plain
from meditron.sources.containers import ArchiveMember, archive_kind, read_members
from meditron.sources.document import Document, Readable, Reader, ReadLog
from meditron.sources.file_types import reason_to_skip, unsupported_format
from meditron.sources.streams import head, path_as_text

__all__ = [
    "SOURCES",
    "SkipRule",
    "SourceFormat",
    "exclude_hint",
    "find_source_format",
    "format_name",
    "open_source",
    "refuse_mixed_text",
]

SkipRule = Callable[[str], str | None]
"""Function that returns the reason to skip a member of an archive, given its path; None to read the
member."""


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """A source format: its reader and its recognition."""

    read: Reader
    recognises: Callable[[bytes], bool]
    """Returns True if a file that starts with these (decompressed) bytes has this format."""
    declares_deletions: bool = False
    """True if a file may end with a list of deleted ids. Such files are read to the end, also beyond the
    limit."""


SOURCES = {
    "medline": SourceFormat(medline.read, medline.recognises, declares_deletions=True),
    "mediawiki": SourceFormat(mediawiki.read, mediawiki.recognises),
    "jsonl": SourceFormat(plain.read_jsonl, plain.recognises_jsonl),
    "json": SourceFormat(plain.read_json, plain.recognises_json),
    "csv": SourceFormat(plain.read_csv, plain.recognises_csv),
    "text": SourceFormat(plain.read_text, plain.recognises_text),
}


def open_source(
    file: Readable,
    format: str | None = None,
    log: ReadLog | None = None,
    name: str | None = None,
    skip: SkipRule = reason_to_skip,
) -> Iterator[Document]:
    """Return an iterator over the documents of a file, or of all files in an archive, in order.

    Args:
        file: The file, plain or compressed, or a zip or tar archive.
        format: A name in SOURCES; default: recognised by content.
        log: Log to which the entries that are not documents are added.
        name: Name of the file in the ids of documents without an id of their own; default: `file.name`. For a
            member of an archive it is `name!path/in/the/archive`.
        skip: Rule that selects the members of an archive; default: skip hidden files, checksums and READMEs.

    Raises:
        SourceError: There is no such file or format.
        InputError: The content has no known format. While the documents are read: the file is damaged.
    """
    start = head(file)
    if kind := archive_kind(start):
        log = log or ReadLog()
        name = name or path_as_text(Path(file.name))
        return _read_archive(read_members(file, kind, log.skipped), format, log, name, skip)
    return _choose_format(file, start, format).read(file, log, name)


def _read_archive(
    members: Iterator[ArchiveMember], format: str | None, log: ReadLog, name: str, skip: SkipRule
) -> Iterator[Document]:
    example_files: dict[str, tuple[Readable, str]] = {}
    names: set[str] = set()
    for member in members:
        start = b"" if (reason := skip(member.path)) else head(member)
        if not start:
            log.skipped[reason or "empty file"] += 1
            continue
        if member.path in names:
            # `tar --update` appends a newer file under the same name: unpacked, it replaces the older one.
            raise InputError(member, "the name occurs twice in the archive", hint="unpack the archive")
        names.add(member.path)
        source = _choose_format(member, start, format)
        member_name = f"{name}!{member.path}"
        if format is None:
            example_files.setdefault(format_name(source), (member, member_name))
            refuse_mixed_text(example_files)
        yield from source.read(member, log, member_name)


def find_source_format(
    file: Readable, format: str | None = None, skip: SkipRule = reason_to_skip
) -> SourceFormat:
    """Return the format of a file; for an archive, the format of the first file to read in it.

    The arguments and errors are those of `open_source`.
    """
    start = head(file)
    kind = archive_kind(start)
    if kind is None:
        return _choose_format(file, start, format)
    for member in read_members(file, kind, Counter()):
        if skip(member.path) is None and (start := head(member)):
            return _choose_format(member, start, format)
    raise InputError(file, "the archive contains no file to read")


def format_name(source: SourceFormat) -> str:
    """Return the name under which a format is registered in SOURCES."""
    return next(name for name, known in SOURCES.items() if known is source)


def refuse_mixed_text(example_files: Mapping[str, tuple[Readable, str]]) -> None:
    """Raise InputError for plain text beside files of another format: it probably describes the data.

    Args:
        example_files: Name of a format → the first file of that format, and its path below the source.

    Raises:
        InputError: There are files of plain text and of another format.
    """
    if "text" in example_files and len(example_files) > 1:
        file, path = example_files["text"]
        other, (_, example) = next(item for item in example_files.items() if item[0] != "text")
        problem = f"plain text in a folder of {other} files (such as {example})"
        raise InputError(file, problem, hint=exclude_hint(path))


def exclude_hint(path: str) -> str:
    """Return the hint that explains how to exclude a file of a source."""
    return f'leave it out with exclude = ["{path}"] or choose files with `include`'


def _choose_format(file: Readable, start: bytes, format: str | None) -> SourceFormat:
    """Return the format with the given name, or recognise it by the first bytes. Raises as `open_source`."""
    if format is not None and format not in SOURCES:
        raise SourceError(f"no source format '{format}'", hint=f"formats: {', '.join(SOURCES)}")
    if not start:
        raise InputError(file, "the file is empty")
    if archive_kind(start):
        raise InputError(file, "an archive inside an archive", hint="unpack the outer archive")
    if format is not None:
        source: SourceFormat | None = SOURCES[format]
    else:
        source = next((known for known in SOURCES.values() if known.recognises(start)), None)
        if source is SOURCES["text"] and re.search(r"\.(csv|tsv)(\.\w+)?$", file.name, re.IGNORECASE):
            source = SOURCES["csv"]  # whose reader names the missing column `text` in its error
    # Other formats can look like text, so known formats without a reader are refused before reading as text.
    # A format that the user has set is never overridden.
    if format != "text" and source in (None, SOURCES["text"]) and (known_format := unsupported_format(start)):
        raise InputError(file, f"{known_format[0]}, which cannot be read as documents", hint=known_format[1])
    if source is None:
        raise _unknown_format_error(file, start)
    return source


def _unknown_format_error(file: Readable, start: bytes) -> InputError:
    if (at := start.find(b"\0")) >= 0:
        hint = f"formats: {', '.join(SOURCES)}"
        return InputError(file, "binary data, not text: a NUL byte", place=f"byte {at:,}", hint=hint)
    try:
        start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else `start` ends in the middle of a character
            hint = "convert it, for example with iconv -f latin1 -t utf-8"
            problem = f"not UTF-8: 0x{start[error.start]:02x}"
            return InputError(file, problem, place=f"byte {error.start:,}", hint=hint)
    if not start.strip():
        return InputError(file, "only white space")
    return InputError(file, "content of no known format", hint=f"formats: {', '.join(SOURCES)}")
