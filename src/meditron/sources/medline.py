"""MEDLINE: the XML of PubMed's baseline, daily update files and web exports.

A document's id is `pubmed:` and the PMID without its version; its sections are the AbstractText elements of
the article's own Abstract, with Label and NlmCategory as printed. `language` is the first Language (MEDLINE's
three letters), `year` the first year of PubDate. `meta`: `pmid`, `version`, `journal`, `publication_types`,
`mesh` (descriptor names), `doi` (the article id, else the electronic location), `retracted`: whether the
publication type "Retracted Publication" or a CommentsCorrections of RefType "RetractionIn" says so.

A text is all character data within its element, comments and processing instructions apart, white space
collapsed to single blanks; nothing is put in the place of a tag, so `CO<sub>2</sub>` is `CO2`. Vernacular
titles, OtherAbstract and CopyrightInformation are not read. A PubmedBookArticle is a document as well.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stringzilla import find

from meditron.ground.errors import InputError
from meditron.sources.document import Document
from meditron.sources.streams import chunks

__all__ = ["read", "read_deletions", "recognises"]

_PROLOGUE = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml\s[^>]*\?>\s*)?(?:<!--.*?-->\s*)*"
    rb"(?:<!DOCTYPE[^>\[]*>\s*)?(?:<!--.*?-->\s*)*"
    rb"(?P<root><(?P<name>[A-Za-z]+)[^>]*>)",
    re.DOTALL,
)
_SUBSET = re.compile(rb"<!DOCTYPE\s+PubmedArticleSet[^>\[]*\[")
_ENCODING = re.compile(rb"<\?xml\s[^>]*encoding\s*=\s*[\"']([^\"']+)")
_ENTRY = re.compile(rb"\s*(?:<(?P<name>[A-Za-z]+)(?=[\s>/])|(?P<aside><!--|<\?)|(?P<end></))")
_ROOT = b"PubmedArticleSet"
_ARTICLES = frozenset({b"PubmedArticle", b"PubmedBookArticle"})
_DELETIONS = frozenset({b"DeleteCitation", b"DeleteDocument"})
_ENTRIES = _ARTICLES | _DELETIONS
_PMID = re.compile(rb"<PMID\b[^>]*>\s*([0-9]+)\s*</PMID>")
_LARGEST = 32 << 20  # bytes of one citation; real ones, with thousands of authors, stay below 6 MB
_LARGEST_PROLOGUE = 64 << 10
_LONGEST_START = 1 << 10


class _Entry(NamedTuple):
    """An element below the root: its name, its bytes, and where it begins in the unpacked file."""

    name: bytes
    data: bytes
    offset: int


def recognises(start: bytes) -> bool:
    """Whether a file that starts so is MEDLINE XML."""
    match = _PROLOGUE.match(start)
    return _SUBSET.search(start) is not None or (match is not None and match["name"] == _ROOT)


def read(path: Path, skipped: Counter[str] | None = None, name: str | None = None) -> Iterator[Document]:
    """The citations of a MEDLINE file, plain or compressed, in its order.

    Raises InputError where the file is cut off (naming how many citations were whole), ill-formed (naming the
    byte and the PMID), or where its DOCTYPE declares entities of its own. Nothing is skipped.
    """
    from meditron.sources.medline_citation import scan
    from meditron.sources.medline_text import Unusual

    entries = _Entries(path)
    for entry in entries:
        if entry.name not in _ARTICLES:
            continue
        try:
            document = (
                scan(entry.data) if entry.name == b"PubmedArticle" else _parse(path, entries.root, entry)
            )
        except Unusual:
            document = _parse(path, entries.root, entry)
        yield document


def read_deletions(path: Path) -> list[str]:
    """The ids of the documents that a MEDLINE file declares deleted, as its last element."""
    found: list[str] = []
    for entry in _Entries(path):
        if entry.name in _DELETIONS:
            found += [f"pubmed:{pmid.decode()}" for pmid in _PMID.findall(entry.data)]
    return found


def _parse(path: Path, root: bytes, entry: _Entry) -> Document:
    """What lxml reads in an entry, within the root's own start tag: prefixes may be declared there."""
    from lxml import etree

    from meditron.sources.medline_citation import parse
    from meditron.sources.medline_text import xml_parser

    pmid = _PMID.search(entry.data)
    name = f"PMID {pmid[1].decode()}" if pmid else "a citation without a PMID"
    data = root + entry.data + b"</" + _ROOT + b">"
    try:
        document = parse(etree.fromstring(data, xml_parser())[0])
    except etree.XMLSyntaxError as error:
        at = entry.offset + max(0, _position(data, error.lineno, error.offset) - len(root))
        raise InputError(path, f"ill-formed XML: {error.msg}", place=f"{name}, byte {at:,}") from error
    except ValueError as error:
        raise InputError(path, f"not a number: {error}", place=f"{name}, byte {entry.offset:,}") from error
    if document is None:
        problem = "a citation lacks its PMID or its article"
        raise InputError(path, problem, place=f"{name}, byte {entry.offset:,}")
    return document


def _position(data: bytes, line: int | None, column: int | None) -> int:
    """The byte that a parser's line and column, both from 1, point to."""
    start = 0
    for _ in range((line or 1) - 1):
        start = data.find(b"\n", start) + 1
    return min(start + (column or 1) - 1, len(data))


class _Entries:
    """The elements below the root, one at a time, in bounded memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = b""
        self._chunks = chunks(path)
        self._buffer = b""
        self._at = 0  # where in the buffer we stand
        self._before = 0  # bytes of the file before the buffer
        self._whole = 0  # citations so far

    def __iter__(self) -> Iterator[_Entry]:
        self._read_prologue()
        while (match := self._next_start()) and not match["end"]:
            if match["aside"]:
                self._take(b"-->" if match["aside"] == b"<!--" else b"?>")
                continue
            name = match["name"]
            if name not in _ENTRIES:
                raise self._error(f"unexpected element {name.decode()}")
            self._at = match.start("name") - 1
            offset = self._before + self._at
            yield _Entry(name, self._take(b"</" + name + b">"), offset)
            self._whole += name in _ARTICLES

    def _read_prologue(self) -> None:
        while (match := _PROLOGUE.match(self._buffer)) is None:
            if _SUBSET.search(self._buffer):
                hint = "MEDLINE files need none; such declarations are how an XML bomb is made"
                raise InputError(self.path, "its DOCTYPE declares entities", place="prologue", hint=hint)
            if len(self._buffer) > _LARGEST_PROLOGUE or not self._more():
                raise self._error("no MEDLINE XML: no element PubmedArticleSet at its start")
        encoding = _ENCODING.search(match[0])
        if encoding and encoding[1].lower() not in {b"utf-8", b"us-ascii", b"ascii"}:
            raise InputError(self.path, f"encoded in {encoding[1].decode()}, not UTF-8", place="prologue")
        if match["name"] != _ROOT:
            raise self._error(f"no MEDLINE XML: its root is {match['name'].decode()}, not PubmedArticleSet")
        self.root = match["root"]
        self._at = match.end()

    def _next_start(self) -> re.Match[bytes] | None:
        while (match := _ENTRY.match(self._buffer, self._at)) is None or match.end() == len(self._buffer):
            if self._buffer[self._at :].strip() and len(self._buffer) - self._at > _LONGEST_START:
                raise self._error("text between citations")
            if not self._more():
                break
        if match is None or (match["end"] and not self._buffer.startswith(b"</" + _ROOT, match.start("end"))):
            raise self._error(f"ends before </{_ROOT.decode()}>")
        return match

    def _take(self, closing: bytes) -> bytes:
        """The bytes up to and with `closing`."""
        searched = self._at
        while (found := find(self._buffer, closing, searched)) < 0:
            searched = max(self._at, len(self._buffer) - len(closing))
            if len(self._buffer) - self._at > _LARGEST:
                raise self._error(f"no {closing.decode()} within {_LARGEST:,} bytes")
            dropped = self._at
            if not self._more():
                raise self._error("ends in the middle of a citation")
            searched -= dropped
        start, self._at = self._at, found + len(closing)
        return self._buffer[start : self._at]

    def _more(self) -> bool:
        """Read on, dropping what is done with; False at the file's end."""
        try:
            chunk = next(self._chunks, b"")
        except InputError as error:
            raise self._error(error.problem) from error
        self._before += self._at
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return bool(chunk)

    def _error(self, problem: str) -> InputError:
        place = f"after {self._whole:,} whole citations, byte {self._before + self._at:,}"
        return InputError(self.path, problem, place=place)
