"""The source formats by name, and the functions that open a file in any of them.

A new format is one file with a reader and one line in SOURCES.
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
from meditron.sources.streams import as_text, head

__all__ = [
    "SOURCES",
    "SkipRule",
    "SourceFormat",
    "exclude_hint",
    "find_source",
    "format_name",
    "open_source",
    "refuse_mixed_text",
]

SkipRule = Callable[[str], str | None]
"""Returns the reason to skip a member of an archive, given its path in the archive; None to read it."""


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """A format of source files."""

    read: Reader
    recognises: Callable[[bytes], bool]
    """Returns true for the first bytes, decompressed, of a file of this format."""
    declares_deletions: bool = False
    """True if a file may end with a list of deleted ids: it is then read to its end, whatever the limit."""


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
    """Return the documents of a file, in its order; of an archive those of all files in it.

    Args:
        file: The file, plain or compressed, or a zip or tar archive.
        format: A name in SOURCES; by default recognised from the content.
        log: Receives the entries of the file that are not documents.
        name: Stands for the file in the ids of documents without an id of their own; by default its name.
            A member of an archive is `name!path/in/the/archive`.
        skip: Selects the members of an archive; by default hidden files, checksums and READMEs are skipped.

    Raises:
        SourceError: The file or the format does not exist.
        InputError: The content is of no known format; while reading, the file is damaged.
    """
    start = head(file)
    if kind := archive_kind(start):
        log = log or ReadLog()
        name = name or as_text(Path(file.name))
        return _read_archive(read_members(file, kind, log.skipped), format, log, name, skip)
    return _find(file, start, format).read(file, log, name)


def _read_archive(
    members: Iterator[ArchiveMember], format: str | None, log: ReadLog, name: str, skip: SkipRule
) -> Iterator[Document]:
    examples: dict[str, tuple[Readable, str]] = {}
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
        source = _find(member, start, format)
        member_name = f"{name}!{member.path}"
        if format is None:
            examples.setdefault(format_name(source), (member, member_name))
            refuse_mixed_text(examples)
        yield from source.read(member, log, member_name)


def find_source(file: Readable, format: str | None = None, skip: SkipRule = reason_to_skip) -> SourceFormat:
    """Return the format of a file, of an archive that of the first file read in it.

    Arguments and errors as of `open_source`.
    """
    start = head(file)
    kind = archive_kind(start)
    if kind is None:
        return _find(file, start, format)
    for member in read_members(file, kind, Counter()):
        if skip(member.path) is None and (start := head(member)):
            return _find(member, start, format)
    raise InputError(file, "the archive contains no file to read")


def format_name(source: SourceFormat) -> str:
    """Return the name of a format in SOURCES."""
    return next(name for name, known in SOURCES.items() if known is source)


def refuse_mixed_text(examples: Mapping[str, tuple[Readable, str]]) -> None:
    """Refuse plain text beside files of a structured format: it describes the data and is not part of them.

    Args:
        examples: By name of each format, the first file of that format and its path below the source.

    Raises:
        InputError: There is plain text and another format.
    """
    if "text" in examples and len(examples) > 1:
        file, path = examples["text"]
        other, (_, example) = next(item for item in examples.items() if item[0] != "text")
        problem = f"plain text in a folder of {other} files (such as {example})"
        raise InputError(file, problem, hint=exclude_hint(path))


def exclude_hint(path: str) -> str:
    """Return the hint to leave a file of a source out."""
    return f'leave it out with exclude = ["{path}"] or choose files with `include`'


def _find(file: Readable, start: bytes, format: str | None) -> SourceFormat:
    """Return the format of a file by its name or by its first bytes. Errors as of `open_source`."""
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
            source = SOURCES["csv"]  # its reader raises the error about the missing column `text`
    # Much content is recognised as text, so known formats without a reader are refused first. A format that
    # the user set is never overridden.
    if format != "text" and source in (None, SOURCES["text"]) and (known_format := unsupported_format(start)):
        raise InputError(file, f"{known_format[0]}, which is not read", hint=known_format[1])
    if source is None:
        raise _unknown_format(file, start)
    return source


def _unknown_format(file: Readable, start: bytes) -> InputError:
    if (at := start.find(b"\0")) >= 0:
        hint = f"formats: {', '.join(SOURCES)}"
        return InputError(file, "binary data, not text: a NUL byte", place=f"byte {at:,}", hint=hint)
    try:
        start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # `start` may end in the middle of a character
            hint = "convert it, for example with iconv -f latin1 -t utf-8"
            problem = f"not UTF-8: 0x{start[error.start]:02x}"
            return InputError(file, problem, place=f"byte {error.start:,}", hint=hint)
    if not start.strip():
        return InputError(file, "only white space")
    return InputError(file, "content of no known format", hint=f"formats: {', '.join(SOURCES)}")
