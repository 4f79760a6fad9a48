"""Reader of JATS, the XML of journal articles in PubMed Central (`.nxml`) and of many publishers.

All versions are read, from NLM's journal DTD 1.0 to JATS 1.4. A file has one article, or a `pmc-articleset`.

Fields of a document:

- The id is `pmc:` and the number in PMC (`pmc:PMC123`), or else `doi:`, `pmid:` or `jats:` and the name of
  the file. `version` is PMC's version of the article, if it is stated.
- The sections are the abstracts, the notes before the body, the body, the back matter, figures and tables at
  the end, and the responses and reports that belong to the article (`sub-article`, `response`), each below
  its title. `jats_text` explains their text. A heading is the label of its section, or in the path of the
  sections that it encloses.
- `language` is `xml:lang` of the article or its abstract; the DTD's default is `en`. A translation of the
  whole article is not part of the document and is counted as skipped.
- `year` is that of `date`. `retracted` is true for retracted articles and for notices of a retraction.
- `meta` has `pmid`, `doi`, `journal`, `licence` (the article's own statement: a URL, or else its text),
  `date` (of the first publication: `2019-05-31`, or `2019-05`, or `2019`), `article_type` (JATS's),
  `publication_types` (MEDLINE's), `subjects`, `keywords` and `other_abstracts` (translated abstracts, each
  with `language`, `type` and `sections`, as of MEDLINE).

Authors, affiliations, references, funding statements, supplementary files and notes about authors are not
read. An article without abstract and body is counted as skipped.

The DTD is not loaded and no entity is expanded, except that the names of characters in HTML, which include
nearly all of JATS's (`&alpha;`), are replaced by the characters; other names stay as they are written.
"""

import re
from collections.abc import Iterator
from html.entities import html5
from typing import TYPE_CHECKING, Any

import msgspec

from meditron.core.errors import InputError, MissingExtra
from meditron.sources.document import Document, Readable, ReadLog
from meditron.sources.jats_metadata import (
    LANGUAGE,
    article_id,
    article_language,
    article_meta,
    article_version,
    is_retracted,
)
from meditron.sources.jats_references import ReferenceTokens
from meditron.sources.jats_text import SectionWriter
from meditron.sources.streams import read_whole

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["LARGEST_FILE", "read", "recognises"]

LARGEST_FILE = 128 << 20
"""Maximum bytes of a file. The largest articles in PMC, with tables of genomes, have about 40 MB."""

_MISC = rb"(?:\s++|<!--.*?-->|<\?.*?\?>)*+"
_START = re.compile(
    rb"(?:\xef\xbb\xbf)?+"
    + _MISC
    + rb"(?P<doctype><!DOCTYPE[^>\[]*+(?:\[.*?\]\s*)?+>)?+"
    + _MISC
    + rb"<(?P<root>[\w:.-]++)(?P<attributes>(?:[^<>\"']|\"[^\"<]*+\"|'[^'<]*+')*+)>?"
    + _MISC
    + rb"(?:<(?P<child>[\w:.-]++))?",
    re.DOTALL,
)
_NAMES = (b"JATS", b"//NLM//DTD", b"article-type", b"jats.nlm.nih.gov", b"dtds.nlm.nih.gov")
# A named entity, or a section that has none.
_ENTITY = re.compile(rb"<!\[CDATA\[.*?(?:\]\]>|\Z)|&([A-Za-z][A-Za-z0-9]*);", re.DOTALL)
_NAMED_ENTITY = re.compile(rb"&(?!#|amp;|lt;|gt;|quot;|apos;)")
_XML_ENTITIES = frozenset({b"amp", b"lt", b"gt", b"quot", b"apos"})
# `streams` converts files with a byte order mark to UTF-8, which their declaration then contradicts.
_WIDE_ENCODING = re.compile(rb"(<\?xml[^>]*?)\s+encoding\s*=\s*[\"'](?:utf|ucs)-?(?:16|32|2|4)\w*[\"']", re.I)
_LONGEST_DECLARATION = 256  # bytes
_ABSTRACT_HEADINGS = dict.fromkeys(("short", "teaser", "toc", "web-summary"), "Summary")
_PLAIN_ABSTRACTS = frozenset({"", "normal", "section", "ASCII"})


def recognises(start: bytes) -> bool:
    """Return True if a file that starts with these bytes is a JATS article, and not one of DocBook."""
    match = _START.match(start)
    if match is None:
        return False
    if match["root"] == b"pmc-articleset":
        return True
    declared = (match["doctype"] or b"") + match["attributes"]
    return match["root"] == b"article" and (
        match["child"] in {b"front", b"processing-meta"} or any(name in declared for name in _NAMES)
    )


def read(
    file: Readable, log: ReadLog | None = None, name: str | None = None, *, reference_tokens: bool = False
) -> Iterator[Document]:
    """Yield the articles of a plain or compressed file, usually one.

    Args:
        file: The file.
        log: Log to which articles without text and translations are added.
        name: Name of the file in the ids of articles without an id of their own; default: `file.name`.
        reference_tokens: True to write references, figures and formulas as tokens (see `jats_references`);
            by default references keep their printed text.

    Raises:
        InputError: The XML is truncated or ill-formed (the error names the line), has no article, declares
            entities, is nested too deeply, or is larger than LARGEST_FILE.
    """
    log = log or ReadLog()
    root = _parse(file)
    articles = [root] if root.tag == "article" else list(root.iterchildren("article"))
    if not articles:
        raise InputError(file, f"no JATS article: its root is {root.tag}", place="prologue")
    for number, article in enumerate(articles):
        own_name = name or file.name
        try:
            document = _document(
                article, log, f"{own_name}#{number + 1}" if number else own_name, reference_tokens
            )
        except RecursionError as error:
            place = f"article {number + 1:,}, line {article.sourceline or 1:,}"
            raise InputError(file, "elements are nested too deeply", place=place) from error
        if document is None:
            log.skipped["no abstract or body"] += 1
        else:
            yield document


def _parse(file: Readable) -> "etree._Element":
    try:
        from lxml import etree
    except ImportError as error:
        raise MissingExtra("lxml", "corpus") from error
    data = read_whole(file, LARGEST_FILE)
    if _NAMED_ENTITY.search(data):
        data = _ENTITY.sub(_replace_entity, data)
    if data.startswith(b"<?xml"):
        data = _WIDE_ENCODING.sub(rb"\1", data[:_LONGEST_DECLARATION], count=1) + data[_LONGEST_DECLARATION:]
    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise InputError(file, f"ill-formed XML: {error.msg}", place=f"line {error.lineno:,}") from error
    if b"<!ENTITY" in data:
        dtd = root.getroottree().docinfo.internalDTD
        if dtd is not None and any(entity.orig is not None for entity in dtd.iterentities()):
            hint = "articles in PMC declare none; XML bombs are made of such declarations"
            raise InputError(file, "its DOCTYPE declares entities", place="prologue", hint=hint)
    _remove_namespaces(root, data)
    return root


def _replace_entity(match: re.Match[bytes]) -> bytes:
    """Replace the name of a character by character references, which are valid in every encoding."""
    name = match[1]
    characters = html5.get(f"{name.decode()};") if name and name not in _XML_ENTITIES else None
    return "".join(f"&#{ord(character)};" for character in characters).encode() if characters else match[0]


def _remove_namespaces(root: "etree._Element", data: bytes) -> None:
    """Remove the namespace of JATS, which OAI-PMH sets, and of OASIS tables from the tags."""
    prefix = root.tag.rpartition("}")[0]
    namespaces = [f"{prefix}}}"] if prefix else []
    if b"oasis" in data:
        namespaces += ["{http://www.niso.org/standards/z39-96/ns/oasis-exchange/table}"]
        namespaces += ["{http://docs.oasis-open.org/ns/oasis-exchange/table}"]
    for namespace in namespaces:
        for element in root.iter(f"{namespace}*"):
            element.tag = element.tag.rpartition("}")[2]


def _document(article: "etree._Element", log: ReadLog, name: str, reference_tokens: bool) -> Document | None:
    """Return the document of an article; None if it has neither abstract nor body."""
    from lxml import etree

    meta = article.find("front/article-meta")
    if meta is None:
        meta = etree.Element("article-meta")
    plain = SectionWriter()
    title = _title(meta, plain)
    writer = SectionWriter(ReferenceTokens(article, plain.line)) if reference_tokens else plain
    _write_article(article, writer, log)
    if not writer.sections:
        return None
    fields: dict[str, Any] = article_meta(article, meta)
    fields["other_abstracts"] = list(_translated_abstracts(meta))
    return Document(
        article_id(meta, name),
        "jats",
        title,
        tuple(writer.sections),
        article_language(article, meta),
        int(fields["date"][:4]) if fields["date"] else None,
        article_version(meta),
        is_retracted(article, meta, title),
        fields,
    )


def _title(meta: "etree._Element", writer: SectionWriter) -> str:
    """Return the title and subtitles of an article, without the marks of notes."""
    group = meta.find("title-group")
    if group is None:
        return ""
    parts = (writer.line_without_notes(part) for part in group.iterchildren("article-title", "subtitle"))
    return ": ".join(filter(None, parts))


def _write_article(article: "etree._Element", writer: SectionWriter, log: ReadLog) -> None:
    """Write the parts of an article or of a response in their order."""
    for part in article:
        match part.tag:
            case "front" | "front-stub":
                meta = part.find("article-meta") if part.tag == "front" else part
                for abstract in () if meta is None else meta.iterchildren("abstract"):
                    writer.add_section(abstract, _abstract_heading(abstract))
                for notes in part.iterchildren("notes"):
                    writer.add_section(notes)
            case "body" | "back" | "floats-group":
                writer.add_children(part)
            case "sub-article" | "response":
                _write_response(part, writer, log)


def _write_response(article: "etree._Element", writer: SectionWriter, log: ReadLog) -> None:
    if article.get("article-type") == "translation":
        log.skipped["translation of an article"] += 1
        return
    front = article.find("front-stub")
    meta = article.find("front/article-meta") if front is None else front
    title = "" if meta is None else _title(meta, writer)
    with writer.below(title):
        _write_article(article, writer, log)


def _abstract_heading(abstract: "etree._Element") -> str:
    kind = abstract.get("abstract-type", "")
    if kind in _PLAIN_ABSTRACTS:
        return "Abstract"
    return _ABSTRACT_HEADINGS.get(kind) or kind.replace("-", " ").capitalize()


def _translated_abstracts(meta: "etree._Element") -> Iterator[dict[str, Any]]:
    for abstract in meta.iterchildren("trans-abstract"):
        writer = SectionWriter()
        writer.add_section(abstract)
        yield {
            "language": abstract.get(LANGUAGE),
            "type": abstract.get("abstract-type"),
            "sections": [msgspec.to_builtins(section) for section in writer.sections],
        }
