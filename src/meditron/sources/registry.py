"""The list of source formats, and functions that open a file in any format.

To add a format, write a module with a reader and add one line to SOURCES.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from meditron.core.errors import InputError, SourceError
from meditron.sources import guidelines, html, jats, mediawiki, medline, ngc, parquet, pdf, plain, s2orc
from meditron.sources.containers import ArchiveMember, archive_kind, read_members
from meditron.sources.document import Document, Readable, ReadLog
from meditron.sources.file_types import reason_to_skip, unsupported_format
from meditron.sources.provenance import add_provenance, provenance_rows
from meditron.sources.streams import head, path_as_text
from meditron.store.file_signature import names_data_file

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

    read: Callable[..., Iterator[Document]]
    """The reader: a `Reader` that may have further keyword arguments, the `options`."""
    recognises: Callable[[bytes], bool]
    """Returns True if a file that starts with these (decompressed) bytes has this format."""
    declares_deletions: bool = False
    """True if a file may end with a list of deleted ids. Such files are read to the end, also beyond the
    limit."""
    options: frozenset[str] = frozenset()
    """Names of the keyword arguments of `read` that a source's config can set."""


SOURCES = {
    "medline": SourceFormat(medline.read, medline.recognises, declares_deletions=True),
    "mediawiki": SourceFormat(mediawiki.read, mediawiki.recognises),
    "jats": SourceFormat(jats.read, jats.recognises, options=frozenset({"reference_tokens"})),
    "ngc": SourceFormat(ngc.read, ngc.recognises),
    "html": SourceFormat(html.read, html.recognises, options=frozenset({"keep", "drop"})),
    "pdf": SourceFormat(pdf.read, pdf.recognises),
    "parquet": SourceFormat(parquet.read, parquet.recognises),
    "s2orc": SourceFormat(s2orc.read, s2orc.recognises, options=frozenset({"reference_tokens"})),
    "guidelines": SourceFormat(guidelines.read, guidelines.recognises),
    "jsonl": SourceFormat(plain.read_jsonl, plain.recognises_jsonl),
    "json": SourceFormat(plain.read_json, plain.recognises_json),
    "csv": SourceFormat(plain.read_csv, plain.recognises_csv),
    "text": SourceFormat(plain.read_text, plain.recognises_text),
}


_PAGE_FORMATS = frozenset({"html", "pdf"})


def open_source(
    file: Readable,
    format: str | None = None,
    log: ReadLog | None = None,
    name: str | None = None,
    skip: SkipRule = reason_to_skip,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Document]:
    """Return an iterator over the documents of a file, or of all files in an archive, in order.

    Args:
        file: The file, plain or compressed, or a zip or tar archive.
        format: A name in SOURCES; default: recognised by content.
        log: Log to which the entries that are not documents are added.
        name: Name of the file in the ids of documents without an id of their own; default: `file.name`. For a
            member of an archive it is `name!path/in/the/archive`.
        skip: Rule that selects the members of an archive; default: skip hidden files, checksums and READMEs.
        options: Options of the readers. A reader gets those that it has (`SourceFormat.options`).

    Raises:
        SourceError: There is no such file or format, or the format has no reference tokens.
        InputError: The content has no known format. While the documents are read: the file is damaged.
    """
    start = head(file)
    provenance = provenance_rows(file)
    if kind := archive_kind(start):
        log = log or ReadLog()
        name = name or path_as_text(Path(file.name))
        members = read_members(file, kind, log.skipped)
        return _read_archive(members, format, log, name, skip, options, provenance)
    source = _choose_format(file, start, format)
    return add_provenance(_read_file(source, file, log, name, options), provenance.get(""))


def _read_file(
    source: SourceFormat, file: Readable, log: ReadLog | None, name: str | None, options: Mapping[str, Any]
) -> Iterator[Document]:
    if options.get("reference_tokens") and "reference_tokens" not in source.options:
        with_tokens = [name for name, known in SOURCES.items() if "reference_tokens" in known.options]
        hint = f"remove reference_tokens; formats with them: {', '.join(with_tokens)}"
        raise SourceError(f"the format '{format_name(source)}' has no reference tokens", hint=hint)
    known = {key: value for key, value in options.items() if key in source.options}
    return source.read(file, log, name, **known)


def _read_archive(
    members: Iterator[ArchiveMember],
    format: str | None,
    log: ReadLog,
    name: str,
    skip: SkipRule,
    options: Mapping[str, Any],
    provenance: Mapping[str, Mapping[str, Any]],
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
        documents = _read_file(source, member, log, member_name, options)
        yield from add_provenance(documents, provenance.get(member.path))


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
    """Raise InputError for a file that is probably not of the data, but describes them or reports an error.

    That is plain text beside files of another format, and an HTML page beside data. HTML pages and PDF files
    are mixed in many collections.

    Args:
        example_files: Name of a format → the first file of that format, and its path below the source.

    Raises:
        InputError: There are files of plain text and of another format, or HTML pages and data.
    """
    if "text" in example_files and len(example_files) > 1:
        file, path = example_files["text"]
        other, (_, example) = next(item for item in example_files.items() if item[0] != "text")
        problem = f"plain text in a folder of {other} files (such as {example})"
        raise InputError(file, problem, hint=exclude_hint(path))
    if "html" in example_files and (others := [*example_files.keys() - _PAGE_FORMATS]):
        file, path = example_files["html"]
        problem = f"an HTML page in a folder of {min(others)} files (such as {example_files[min(others)][1]})"
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
        if source is SOURCES["html"] and names_data_file(file.name):
            hint = 'servers send a page instead of a missing file; download it again, or set format = "html"'
            raise InputError(file, "an HTML page under the name of another kind of file", hint=hint)
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
