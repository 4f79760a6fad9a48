"""Reader of Semantic Scholar's JSON lines: S2ORC's papers in both forms, and abstracts.

- The older form has paragraphs (`body_text`, in `pdf_parse` or at the top) with `section`, `cite_spans`,
  `ref_spans` and `eq_spans`, and `bib_entries` and `ref_entries`.
- The form of the datasets API (`s2orc`: `content`; `s2orc_v2`: `body` and `bibliography`) has one text and
  spans in it, as strings of JSON: `paragraph`, `sectionheader`, `bibref`, `figureref`, `formula` and others.
- An abstract (`abstracts`) has no spans.

The id of a document is `s2orc:` and its `corpusid` or `paper_id`. The abstract is a section; author names,
affiliations and the bibliography are left out. Captions follow the text. Records without text are counted as
skipped. Fields of `meta`: `pmid`, `pmc`, `doi`, `licence`, `date`, `url`, `invalid_spans` (number of spans
outside of the text).

With `reference_tokens`, citations, references to figures and tables, captions and formulas are marked by
Meditron's tokens (`s2orc_tokens`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from meditron.core.errors import InputError
from meditron.sources import s2orc_tokens as tokens
from meditron.sources.dates import leading_year
from meditron.sources.document import Document, Readable, ReadLog, Section
from meditron.sources.outline import Outline
from meditron.sources.plain import iterate_json_values, iterate_jsonl_rows
from meditron.sources.s2orc_annotated import annotated_sections
from meditron.sources.s2orc_spans import Span, parse_spans, replace_spans
from meditron.sources.streams import check_length, head

__all__ = ["read", "recognises"]

_START = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*\{\s*(?:"
    rb'"corpusid"\s*:(?=.*"(?:content|body)"\s*:\s*\{|.*"abstract"\s*:\s*"|.*"openaccessinfo"\s*:)'
    rb'|"(?:content|body)"\s*:\s*\{\s*"(?:source|text|annotations)"'
    rb'|"paper_id"\s*:(?=.*"(?:_pdf_hash|pdf_parse|body_text|has_pdf_parse|cite_spans|header)"\s*:)'
    rb")",
    re.DOTALL,
)
_INDENTED = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{[ \t\r]*\n")
_ABSTRACT = "Abstract"


def recognises(start: bytes) -> bool:
    """Return True if a file that starts with these bytes has Semantic Scholar's records."""
    return _START.match(start) is not None


def read(
    file: Readable, log: ReadLog | None = None, name: str | None = None, *, reference_tokens: bool = False
) -> Iterator[Document]:
    """Yield the papers of a file in order.

    Args:
        file: The JSON lines.
        log: Log to which records without text are added.
        name: Unused, because every paper has an id.
        reference_tokens: Mark citations, references to figures, captions and formulas by Meditron's tokens.

    Raises:
        InputError: A line is no record with an id; the error names the line.
    """
    del name
    for row, place in _rows(file, log):
        identity = _identity(file, row, place)
        title, sections, invalid = _content(row, reference_tokens)
        if not sections:
            if log is not None:
                log.skipped["paper without text"] += 1
            continue
        meta = _metadata(row)
        if invalid:
            meta["invalid_spans"] = invalid
        check_length(file, sections, place)
        year = leading_year(str(row.get("year") or meta.get("date") or ""))
        yield Document(f"s2orc:{identity}", "s2orc", title, sections, None, year, meta=meta)


def _rows(file: Readable, log: ReadLog | None) -> Iterator[tuple[Any, str]]:
    """Yield the records of JSON lines, or of a file of indented JSON, which `s2orc-doc2json` writes."""
    return iterate_json_values(file) if _INDENTED.match(head(file)) else iterate_jsonl_rows(file, log)


def _identity(file: Readable, row: Any, place: str) -> str:  # noqa: ANN401
    identity = (row.get("corpusid") or row.get("paper_id")) if isinstance(row, dict) else None
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise InputError(file, 'no record with a "corpusid" or "paper_id"', place=place)
    return str(identity)


def _content(row: dict[str, Any], reference_tokens: bool) -> tuple[str, tuple[Section, ...], int]:
    """Return the title, the sections and the number of invalid spans of a record."""
    stated = _text(row.get("title")) or _text(_object(row.get("metadata")).get("title"))
    annotated = _object(row.get("content")) or _object(row.get("body"))
    if isinstance(annotated.get("text"), str):
        title, sections, invalid = annotated_sections(
            annotated, _object(row.get("bibliography")), reference_tokens
        )
        return stated or title, sections, invalid
    parse = _object(row.get("pdf_parse")) or row
    return stated, *_ParagraphForm(parse, reference_tokens).sections(row)


def _object(value: Any) -> dict[str, Any]:  # noqa: ANN401
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:  # noqa: ANN401
    return " ".join(value.split()) if isinstance(value, str) else ""


class _ParagraphForm:
    """The older form: a list of paragraphs, each with its spans."""

    def __init__(self, parse: Mapping[str, Any], reference_tokens: bool) -> None:
        self._parse = parse
        self._tokens = reference_tokens
        self._bibliography = _object(parse.get("bib_entries"))
        self._figures = _object(parse.get("ref_entries"))
        self._invalid = 0

    def sections(self, row: Mapping[str, Any]) -> tuple[tuple[Section, ...], int]:
        """Return the sections of the paper and the number of invalid spans."""
        outline = Outline()
        # The abstract of the record is from the publisher, that of the parse from the PDF.
        abstract = row.get("abstract") if isinstance(row.get("abstract"), str) else None
        if abstract and abstract.strip():
            outline.add_heading(1, _ABSTRACT)
            outline.add_text(abstract.replace(":::", "\n").strip())
        else:
            self._add_paragraphs(outline, self._parse.get("abstract") or row.get("abstract"), _ABSTRACT)
        self._add_paragraphs(outline, self._parse.get("body_text"), "")
        captions = [(entry, _text(entry.get("text"))) for entry in map(_object, self._figures.values())]
        captions = [
            (entry, text)
            for entry, text in captions
            if text and entry.get("type", entry.get("type_str")) != "equation"
        ]
        if captions:
            outline.add_heading(1, "Figures and tables")
        for entry, text in captions:
            is_table = entry.get("type", entry.get("type_str")) == "table"
            outline.add_text(tokens.caption(text, table=is_table) if self._tokens else text)
        return outline.sections(), self._invalid

    def _add_paragraphs(self, outline: Outline, paragraphs: Any, default: str) -> None:  # noqa: ANN401
        heading: tuple[str, str] | None = None
        for paragraph in paragraphs if isinstance(paragraphs, list) else ():
            fields = _object(paragraph)
            text = fields.get("text")
            if not isinstance(text, str) or not text.strip():
                continue
            label, number = _text(fields.get("section")) or default, _text(fields.get("sec_num"))
            if (label, number) != heading:
                outline.add_heading(number.rstrip(".").count(".") + 1, label)
                heading = (label, number)
            outline.add_text(self._paragraph(fields, text))

    def _paragraph(self, fields: dict[str, Any], text: str) -> str:
        replacements: list[tuple[Span, str]] = []
        for key, render in (
            ("cite_spans", self._citation),
            ("ref_spans", self._figure),
            ("eq_spans", self._formula),
        ):
            spans, invalid = parse_spans(fields.get(key), len(text))
            self._invalid += invalid
            if self._tokens:
                replacements += [(span, new) for span in spans if (new := render(text, span))]
        return " ".join(replace_spans(text, 0, len(text), replacements).split())

    def _citation(self, text: str, span: Span) -> str:
        del text
        entry = _object(self._bibliography.get(span.reference or ""))
        authors = entry.get("authors")
        author = _object(authors[0]) if isinstance(authors, list) and authors else {}
        return tokens.bib_ref(_text(entry.get("title")), _text(author.get("last")))

    def _figure(self, text: str, span: Span) -> str:
        entry = _object(self._figures.get(span.reference or ""))
        return tokens.fig_ref(text[span.start : span.end], _text(entry.get("text"))) if entry else ""

    @staticmethod
    def _formula(text: str, span: Span) -> str:
        return tokens.formula(text[span.start : span.end])


def _metadata(row: dict[str, Any]) -> dict[str, Any]:
    access = _object(row.get("openaccessinfo"))
    source = _object(_object(row.get("content")).get("source"))
    ids = {key.lower(): value for key, value in _object(access.get("externalids")).items()}
    ids |= {key.lower(): value for key, value in _object(row.get("externalids")).items() if value}
    open_access = _object(source.get("oainfo"))
    metadata = {
        "pmid": ids.get("pubmed") or row.get("pubmed_id"),
        "pmc": ids.get("pubmedcentral") or row.get("pmc_id"),
        "doi": ids.get("doi") or row.get("doi"),
        "licence": access.get("license") or open_access.get("license"),
        "url": access.get("url") or open_access.get("openaccessurl"),
        "date": row.get("publicationdate"),
    }
    return {key: str(value) for key, value in metadata.items() if isinstance(value, str | int) and value}
