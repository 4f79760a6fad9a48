"""Reader of MEDLINE XML: PubMed's baseline, daily update files and web exports.

Fields of a document:

- The id is `pubmed:` and the PMID without its version; `version` is the Version of the PMID.
- The sections are the AbstractText elements of the article's Abstract, with their Label and NlmCategory.
- `language` is the language of the text. NLM puts only English abstracts into Abstract and translates titles,
  in brackets, so the language is `eng` unless a citation has an untranslated title and no abstract.
- `year` is the first year of PubDate.
- `retracted` is true for the publication type "Retracted Publication" and for a CommentsCorrections of the
  RefType "RetractionIn".
- `meta` has `pmid`, `journal`, `languages` (of the article, as MEDLINE's three-letter codes),
  `publication_types`, `mesh` (descriptor names), `doi` (the article id, or else the electronic location),
  `date` (PubDate in ISO 8601, as precise as known; of a period the end) and
  `other_abstracts` (OtherAbstract, each with `language`, `type` and `sections`).

The articles that a retraction notice names (RefType "RetractionOf") are logged as retracted, because the
record of an article, in an older file, may not state its retraction yet.

The text of an element is all its character data without comments and processing instructions, with white
space collapsed to single blanks. Sub- and superscripts and MathML become plain text: `CO₂`, `10⁹`, `1/2`.
Vernacular titles and CopyrightInformation are not read. A PubmedBookArticle is a document as well.

The root element is a set of citations or one citation. A file may contain several XML documents one after
another, as `cat` joins them. A file may have any size: memory is bounded by the largest citation.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from stringzilla import find

from meditron.core.errors import InputError
from meditron.sources.document import Document, Readable, ReadLog
from meditron.sources.streams import chunks

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["LARGEST_CITATION", "read", "recognises"]

LARGEST_CITATION = 16 << 20
"""Maximum bytes of one citation, or of a comment between two. The largest real citations, with thousands of
authors, have less than 6 MB; libxml2 reads at most 10 MB of one text or attribute."""
# Maximum bytes of a citation that is read without lxml, because libxml2 refuses texts of 10 MB.
_MAX_MATCH = 8 << 20
_LARGEST_PROLOGUE = 64 << 10
_MIN_UNREAD = 64 << 10  # more is read if fewer unread bytes are in the buffer
_READ_SIZE = 512 << 10  # bytes read at a time
_SETS = frozenset({b"PubmedArticleSet", b"PubmedBookArticleSet", b"MedlineCitationSet"})
_ARTICLES = frozenset({b"PubmedArticle", b"PubmedBookArticle", b"MedlineCitation"})
_DELETIONS = frozenset({b"DeleteCitation", b"DeleteDocument"})

_ENCODINGS = frozenset({b"utf-8", b"utf8", b"us-ascii", b"ascii"})
_NO_MEDLINE = "not MEDLINE XML: no element PubmedArticleSet at its start"
_NOT_ASCII = "a byte that is not ASCII, although its first line declares ASCII"

# Patterns of white space and of skipped markup: between the citations of a set, and outside of a set.
_INSIDE = (
    re.compile(rb"(?:[ \t\r\n]|&#(?:0*+(?:9|10|13|32)|x0*+(?:9|[aAdD]|20));)++"),
    re.compile(rb"<!--|<!\[CDATA\[(?=[ \t\r\n]*+\]\]>)|<\?(?!xml[ \t\r\n])"),
)
_OUTSIDE = (re.compile(rb"[ \t\r\n]++"), re.compile(rb"<!--|<\?(?!xml[ \t\r\n])"))
_MISC = rb"(?:[ \t\r\n]++|<!--.*?-->|<\?(?!xml[ \t\r\n]).*?\?>)*+"
_IN_TAG = rb"(?:[^<>\"']|\"[^\"<]*+\"|'[^'<]*+')*+"
_DECLARATION = rb"(?:\xef\xbb\xbf)?+(?:<\?xml[ \t\r\n][^>]*?\?>)?+" + _MISC
_DOCTYPE = rb"<!DOCTYPE(?:[^<>\[\"']|\"[^\"]*+\"|'[^']*+')*+"
_PROLOGUE = re.compile(
    _DECLARATION
    + rb"(?:"
    + _DOCTYPE
    + rb"(?:\[[ \t\r\n]*+\][ \t\r\n]*+)?+>)?+"
    + _MISC
    + rb"(?P<root><(?P<name>[A-Za-z]++)"
    + _IN_TAG
    + rb">)",
    re.DOTALL,
)
_SUBSET = re.compile(_DECLARATION + _DOCTYPE + rb"\[[ \t\r\n]*+[^\] \t\r\n]", re.DOTALL)
_NAMED = re.compile(_DECLARATION + rb"<!DOCTYPE[ \t\r\n]++(?P<name>[A-Za-z]++)", re.DOTALL)
_ENCODING = re.compile(rb"<\?xml[ \t\r\n][^>]*?encoding[ \t\r\n]*=[ \t\r\n]*[\"']([^\"']+)")
_CONTENT = re.compile(rb"<(?:(?P<name>[A-Za-z]++)(?=[ \t\r\n>/])|(?P<end>/))")
_PMID = re.compile(rb"<PMID\b[^>]*>\s*([0-9]+)\s*</PMID")
_SKIPPED = {b"<!--": b"-->", b"<![CDATA[": b"]]>", b"<?": b"?>"}
_TAGS = {
    name: re.compile(rb"<!--|<!\[CDATA\[|<\?|<(/?+)" + name + rb"(?=[ \t\r\n/>])")
    for name in _ARTICLES | _DELETIONS
}
_IN_A_TAG = re.compile(_IN_TAG)
_OPEN_VALUE = re.compile(rb"\"[^\"<]*+|'[^'<]*+")  # the value of an attribute without its end
_LOOKAHEAD = 64  # bytes; longer than any token that is searched


class _RawElement(NamedTuple):
    """The unparsed bytes of an element in a set, with its offset in the decompressed file."""

    name: bytes
    xml: bytes
    offset: int


def recognises(start: bytes) -> bool:
    """Return True if a file that starts with these bytes is MEDLINE XML."""
    match = _PROLOGUE.match(start) or _NAMED.match(start)
    return match is not None and match["name"] in _SETS | _ARTICLES


def read(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the citations of a plain or compressed MEDLINE file in order. No citation is skipped.

    Args:
        file: The file.
        log: Log to which the ids are added that the file's last element declares deleted, or a notice
            declares retracted.
        name: Unused, because every citation has a PMID.

    Raises:
        InputError: The file is truncated (the error has the number of complete citations) or ill-formed (the
            error has the byte and the PMID), its DOCTYPE declares entities, or a citation is larger than
            LARGEST_CITATION.
    """
    reader = _MedlineReader(file)
    for item in reader.iterate_elements():
        if isinstance(item, list):
            yield from item
        elif item.name in _ARTICLES:
            document, retracted = reader.parse_citation(item)
            if log is not None:
                log.retracted.extend(f"pubmed:{pmid}" for pmid in retracted)
            yield document
        elif log is not None:
            log.deleted.extend(f"pubmed:{pmid}" for pmid in reader.parse_deleted_pmids(item))


class _MedlineReader:
    """Reads the elements of a file one at a time, in bounded memory."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._chunks = chunks(file)
        self._buffer = b""
        self._at = 0  # position of the next unread byte in the buffer
        self._buffer_offset = 0  # offset of the buffer's first byte in the decompressed file
        self._citations = 0  # number of citations read
        self._ascii = False
        self._name = b""  # of the root element
        self._empty = False  # True for a root of one empty tag, <PubmedArticleSet/>
        self._root = b""  # start and end tag of the root, put around an element that lxml parses alone
        self._end_tag = b""
        self._damage = ""  # error in the file after the end of the buffer
        self._checked_to = 0  # offset in the file up to which `_legal` applies
        self._legal = False  # True if all characters in the buffer up to `_checked_to` are legal in XML

    def iterate_elements(self) -> Iterator[list[Document] | _RawElement]:
        """Yield citations that match the grammar as lists of documents, and all other elements unparsed."""
        while self._read_root_start():
            if self._name in _ARTICLES:
                yield self._read_element(self._name)
                continue
            while not self._empty:
                if len(self._buffer) - self._at < _MIN_UNREAD:
                    self._read_more(_READ_SIZE)
                position = self._buffer_offset + self._at
                if documents := self._read_matching_citations():
                    yield documents
                if self._buffer_offset + self._at == position:
                    entry = self._read_next_element()
                    if entry is None:
                        break
                    yield entry

    def _read_matching_citations(self) -> list[Document]:
        """Read the consecutive citations at the current position that match the grammar."""
        from meditron.sources.medline_citation import document_from_match
        from meditron.sources.medline_grammar import ARTICLE_END, CITATION
        from meditron.sources.medline_text import NeedsLxml, is_legal_xml

        data, at = self._buffer, self._at
        end = data.rfind(ARTICLE_END, at) + len(ARTICLE_END)
        if self._name != b"PubmedArticleSet" or end < at + len(ARTICLE_END):
            return []
        if self._buffer_offset + end > self._checked_to:
            self._checked_to, self._legal = self._buffer_offset + end, is_legal_xml(data, at, end)
        documents = []
        while at < end and (match := CITATION.match(data, at)):
            if match.end() - at > _MAX_MATCH or not (self._legal or is_legal_xml(data, at, match.end())):
                break
            try:
                documents.append(document_from_match(match))
            except NeedsLxml:
                break
            at = match.end()
            self._citations += 1
        self._at = at
        return documents

    def _read_root_start(self) -> bool:
        """Read the prologue and root tag of the next XML document; return False at the end of the file."""
        if self._name:
            self._skip_comments(_OUTSIDE)
            if self._at == len(self._buffer):
                if self._damage:
                    raise self._input_error("")
                return False
        problem = "content after the set that is not another set" if self._name else _NO_MEDLINE
        while (match := _PROLOGUE.match(self._buffer, self._at)) is None:
            if _SUBSET.match(self._buffer, self._at):
                hint = "MEDLINE files declare none; XML bombs are made of such declarations"
                raise InputError(self._file, "its DOCTYPE declares entities", place="prologue", hint=hint)
            if len(self._buffer) - self._at > _LARGEST_PROLOGUE or not self._read_more():
                raise self._input_error(problem)
        encoding = _ENCODING.search(match[0])
        named = encoding[1].lower() if encoding else b"utf-8"
        if named not in _ENCODINGS:
            hint = f"iconv -f {named.decode(errors='replace')} -t UTF-8, and name UTF-8 in its first line"
            problem = f"encoded in {named.decode(errors='replace')}, not UTF-8"
            raise InputError(self._file, problem, place="prologue", hint=hint)
        self._name = match["name"]
        if self._name not in _SETS | _ARTICLES:
            root = self._name.decode()
            raise self._input_error(f"not MEDLINE XML: its root is {root}, not PubmedArticleSet")
        self._ascii = b"ascii" in named
        if self._ascii and not self._buffer.isascii():
            raise self._input_error(_NOT_ASCII)
        self._empty = match["root"].endswith(b"/>")
        closing = b"</" + self._name + b">"
        self._parse_xml(
            match[0] + (b"" if self._empty else closing), "prologue", self._buffer_offset + self._at
        )
        if self._name in _ARTICLES:
            self._root, self._end_tag = b"<x>", b"</x>"
            self._at = match.start("root")
        else:
            self._root, self._end_tag = match["root"], closing
            self._at = match.end()
        return True

    def _read_next_element(self) -> _RawElement | None:
        """Return the next element of the set; None at the end of the set."""
        self._skip_comments(_INSIDE)
        match = _CONTENT.match(self._buffer, self._at)
        if match is None:
            ended = self._at == len(self._buffer)
            raise self._input_error(
                f"ends before {self._end_tag.decode()}" if ended else "text between citations"
            )
        if match["end"]:
            end = re.compile(self._end_tag[:-1] + rb"[ \t\r\n]*+>").match(self._buffer, self._at)
            if end is None:
                raise self._input_error(f"an end tag that is not {self._end_tag.decode()}")
            self._at = end.end()
            return None
        if match["name"] not in _ARTICLES | _DELETIONS:
            raise self._input_error(f"unexpected element {match['name'].decode()}")
        return self._read_element(match["name"])

    def _skip_comments(self, patterns: tuple[re.Pattern[bytes], re.Pattern[bytes]]) -> None:
        """Skip white space, comments and processing instructions; fill the buffer for the next token."""
        while True:
            if blank := patterns[0].match(self._buffer, self._at):
                self._at = blank.end()
            if len(self._buffer) - self._at < _LOOKAHEAD and self._read_more():
                continue
            aside = patterns[1].match(self._buffer, self._at)
            if aside is None:
                return
            offset = self._buffer_offset + self._at
            done = len(aside[0])
            while (end := find(self._buffer, _SKIPPED[aside[0]], self._at + done)) < 0:
                self._double_buffer("a comment")
            end += len(_SKIPPED[aside[0]])
            self._parse_xml(b"<x>" + self._buffer[self._at : end] + b"</x>", "between citations", offset, 3)
            self._at = end

    def _read_element(self, name: bytes) -> _RawElement:
        """Return the unparsed element at the current position.

        Of an ill-formed element, return so much that lxml raises the error.
        """
        offset = self._buffer_offset + self._at
        size = self._size_to_first_end_tag(name) or self._size_with_nested_elements(name)
        if size > LARGEST_CITATION:
            raise self._input_error(f"a citation of more than {LARGEST_CITATION:,} bytes")
        data = self._buffer[self._at : self._at + size]
        self._at += size
        self._citations += name in _ARTICLES
        return _RawElement(name, data, offset)

    def _size_to_first_end_tag(self, name: bytes) -> int:
        """Return the number of bytes up to the first end tag; 0 if the element may end at a later end tag."""
        closing = b"</" + name + b">"
        end = find(self._buffer, closing, self._at) + len(closing)
        if end < self._at + len(closing):
            return 0
        inside = (find(self._buffer, other, self._at + 1, end) for other in (b"<!", b"<?", b"<" + name))
        return 0 if any(at >= 0 for at in inside) else end - self._at

    def _size_with_nested_elements(self, name: bytes) -> int:
        """Return the number of bytes of an element, which may contain comments and elements of its name."""
        done, depth = 0, 0
        while True:
            token = _TAGS[name].search(self._buffer, self._at + done)
            if token is None:
                done = max(done, len(self._buffer) - self._at - _LOOKAHEAD)
                self._double_buffer("a citation")
                continue
            start = token.start() - self._at
            if skipped := _SKIPPED.get(token[0]):
                end = find(self._buffer, skipped, token.end())
                done = start if end < 0 else end + len(skipped) - self._at
                if end < 0:
                    self._double_buffer("a citation")
                continue
            tag = _IN_A_TAG.match(self._buffer, token.end())
            end = tag.end() if tag else token.end()
            if end == len(self._buffer) or _OPEN_VALUE.fullmatch(self._buffer, end):
                done = start
                self._double_buffer("a citation")
                continue
            done = end + 1 - self._at
            if self._buffer[end : end + 1] != b">":
                return done  # the tag is ill-formed, for which lxml raises the error
            if not self._buffer.endswith(b"/", token.end(), end):
                depth += -1 if token[1] else 1
            if depth <= 0:
                return done

    def parse_citation(self, entry: _RawElement) -> tuple[Document, list[str]]:
        """Parse an unparsed citation with lxml; return it with the PMIDs that it retracts."""
        from meditron.sources.medline_citation import NotACitation, document_from_element, retracted_pmids

        element = self._parse_element(entry)
        try:
            return document_from_element(element), retracted_pmids(element)
        except NotACitation as error:
            raise InputError(self._file, str(error), place=_citation_place(entry)) from error

    def parse_deleted_pmids(self, entry: _RawElement) -> Iterator[str]:
        """Yield the PMIDs in an unparsed element that lists deletions."""
        for pmid in self._parse_element(entry).iter("PMID"):
            text = (pmid.text or "").strip()
            if not (text.isascii() and text.isdigit()):
                raise InputError(self._file, f"a deleted PMID is not a number: {text[:40]!r}", place="end")
            yield text

    def _parse_element(self, entry: _RawElement) -> "etree._Element":
        """Return lxml's tree of an element, parsed inside the root's tags, which may declare prefixes."""
        pmid = _PMID.search(entry.xml)
        place = f"PMID {pmid[1].decode()}" if pmid else "a citation without a PMID"
        data = self._root + entry.xml + self._end_tag
        return self._parse_xml(data, place, entry.offset, len(self._root))[0]

    def _parse_xml(self, data: bytes, place: str, offset: int, before: int = 0) -> "etree._Element":
        """Parse an XML document with lxml and return its root.

        Args:
            data: The document. Its first `before` bytes are not from the file.
            place: Name of the document in the error message.
            offset: Offset in the decompressed file of the first byte that is from the file.
            before: Number of bytes before the first byte that is from the file.

        Raises:
            InputError: The document is ill-formed; the error has the byte in the file.
        """
        from lxml import etree

        from meditron.sources.medline_text import xml_parser

        try:
            return etree.fromstring(data, xml_parser())
        except etree.XMLSyntaxError as error:
            at = offset + max(0, _byte_offset(data, error.lineno, error.offset) - before)
            raise InputError(
                self._file, f"ill-formed XML: {error.msg}", place=f"{place}, byte {at:,}"
            ) from error

    def _double_buffer(self, reading: str) -> None:
        """Double the unread bytes in the buffer, so that repeated searches take linear time in total."""
        missing = len(self._buffer) - self._at
        if missing > LARGEST_CITATION:
            raise self._input_error(f"{reading} of more than {LARGEST_CITATION:,} bytes")
        if not self._read_more(max(missing, 1)):
            raise self._input_error(f"ends in the middle of {reading}")

    def _read_more(self, size: int = 1) -> bool:
        """Read at least `size` more bytes and drop the bytes already read; False at the end of the file."""
        pieces = [self._buffer[self._at :]]
        added = 0
        while added < size and not self._damage:
            try:
                chunk = next(self._chunks, b"")
            except InputError as error:
                self._damage = error.problem
                break
            if not chunk:
                break
            if self._ascii and not chunk.isascii():
                self._damage = _NOT_ASCII
                break
            pieces.append(chunk)
            added += len(chunk)
        if added:
            self._buffer_offset += self._at
            self._at = 0
            self._buffer = b"".join(pieces)
        return bool(added)

    def _input_error(self, problem: str) -> InputError:
        place = f"after {self._citations:,} whole citations, byte {self._buffer_offset + self._at:,}"
        return InputError(self._file, self._damage or problem, place=place)


def _citation_place(entry: _RawElement) -> str:
    pmid = _PMID.search(entry.xml)
    name = f"PMID {pmid[1].decode()}" if pmid else "a citation without a PMID"
    return f"{name}, byte {entry.offset:,}"


def _byte_offset(data: bytes, line: int | None, column: int | None) -> int:
    """Convert a parser's line and column, which both count from 1, to a byte offset."""
    start = 0
    for _ in range((line or 1) - 1):
        start = data.find(b"\n", start) + 1
    return min(start + (column or 1) - 1, len(data))
