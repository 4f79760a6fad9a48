"""Sections of a paper in the form of Semantic Scholar's datasets API: one text with annotations."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from meditron.sources import s2orc_tokens as tokens
from meditron.sources.document import Section
from meditron.sources.outline import Outline
from meditron.sources.s2orc_spans import Span, parse_spans, replace_spans, spans_within

__all__ = ["annotated_sections"]

# Parts of the text that are not of the paper's body, if a record has no annotated paragraphs.
_NOT_BODY = (
    "title", "author", "authorfirstname", "authorlastname", "authoraffiliation", "publisher", "venue",
    "abstract", "bibentry", "figure", "table", "sectionheader",
)  # fmt: skip
_MOST_ABSTRACTS = 10  # papers have one, some in two languages
_FIGURES_HEADING = "Figures and tables"


class _Piece(NamedTuple):
    """A part of the text: a heading, a paragraph or a formula between paragraphs."""

    span: Span
    kind: str


def annotated_sections(
    content: Mapping[str, Any], bibliography: Mapping[str, Any], reference_tokens: bool
) -> tuple[str, tuple[Section, ...], int]:
    """Return the title, the sections and the number of invalid spans of a paper.

    Args:
        content: `text` and `annotations` of the paper.
        bibliography: `text` and `annotations` of the bibliography, if it is separate.
        reference_tokens: Mark references, captions and formulas by tokens.
    """
    paper = _AnnotatedPaper(content, bibliography, reference_tokens)
    return paper.title(), paper.sections(), paper.invalid


class _AnnotatedText:
    def __init__(self, content: Mapping[str, Any]) -> None:
        text, annotations = content.get("text"), content.get("annotations")
        self.text = text if isinstance(text, str) else ""
        self.invalid = 0
        self._spans: dict[str, list[Span]] = {}
        for name, value in annotations.items() if isinstance(annotations, Mapping) else ():
            spans, invalid = parse_spans(value, len(self.text))
            self._spans[str(name).replace("_", "")] = spans
            self.invalid += invalid

    def spans(self, name: str) -> list[Span]:
        """Return the spans of an annotation, such as `bibref`, in order."""
        return self._spans.get(name, [])

    def at(self, span: Span) -> str:
        """Return the text of a span, with single blanks."""
        return " ".join(self.text[span.start : span.end].split())

    def first_within(self, name: str, outer: Span) -> str:
        """Return the text of the first span of an annotation that is within another span."""
        return next(map(self.at, spans_within(self.spans(name), outer)), "")


class _AnnotatedPaper:
    def __init__(self, content: Mapping[str, Any], bibliography: Mapping[str, Any], mark: bool) -> None:
        self._paper = _AnnotatedText(content)
        self._entries = _AnnotatedText(bibliography) if bibliography else self._paper
        self._mark = mark
        self._replacements = self._find_replacements() if mark else {}
        self._replaced = _in_order(self._replacements)

    @property
    def invalid(self) -> int:
        """Number of invalid spans."""
        return self._paper.invalid + (self._entries.invalid if self._entries is not self._paper else 0)

    def title(self) -> str:
        """Return the title."""
        return next(map(self._paper.at, self._paper.spans("title")), "")

    def sections(self) -> tuple[Section, ...]:
        """Return the abstract, the sections of the body and the captions."""
        outline = Outline()
        abstracts = _without_overlaps(self._paper.spans("abstract"))[:_MOST_ABSTRACTS]
        if abstracts:
            outline.add_heading(1, "Abstract")
            for span in abstracts:
                outline.add_text(self._render(span))
        end_of_abstract = max((span.end for span in abstracts), default=0)
        begun = False
        for span, kind in self._pieces():
            if any(outer.start < span.end and span.start < outer.end for outer in abstracts):
                continue
            if kind == "sectionheader":
                heading = self._paper.at(span)
                outline.add_heading((span.number or "1").rstrip(".").count(".") + 1, heading)
                begun = True
                continue
            if not begun and span.start >= end_of_abstract and abstracts:
                outline.add_heading(1, "")  # the body has no heading at its beginning
                begun = True
            if kind == "formula":
                outline.add_text(
                    tokens.formula(self._paper.at(span)).strip() if self._mark else self._paper.at(span)
                )
            else:
                outline.add_text(self._render(span))
        self._add_captions(outline)
        return outline.sections()

    def _pieces(self) -> list[_Piece]:
        """Return the headings, paragraphs and formulas in order; of overlapping ones the first."""
        paragraphs = self._paper.spans("paragraph") or self._remaining_text()
        pieces = [_Piece(span, "paragraph") for span in paragraphs]
        for kind in ("sectionheader", "formula"):
            pieces += [_Piece(span, kind) for span in self._paper.spans(kind)]
        kept: list[_Piece] = []
        for piece in sorted(pieces, key=lambda piece: (piece.span.start, -piece.span.end)):
            if not kept or piece.span.start >= kept[-1].span.end:
                kept.append(piece)
        return kept

    def _remaining_text(self) -> list[Span]:
        """Return the paragraphs of a text whose paragraphs are not annotated: its lines after the abstract.

        The text before the abstract or the first heading has the authors; that after the first entry of the
        bibliography or the first figure is not of the body.
        """
        others = _in_order(span for name in _NOT_BODY for span in self._paper.spans(name))
        begins = [span.end for name in ("abstract", "sectionheader") for span in self._paper.spans(name)[:1]]
        ends = [
            span.start for name in ("bibentry", "figure", "table") for span in self._paper.spans(name)[:1]
        ]
        at, end = min(begins, default=0), min(ends, default=len(self._paper.text))
        gaps: list[tuple[int, int]] = []
        for span in others:
            if span.end > at:
                gaps.append((at, min(span.start, end)))
                at = max(at, span.end)
        gaps.append((at, end))
        lines = re.compile(r"[^\n]*\S[^\n]*")
        return [
            Span(match.start(), match.end())
            for first, last in gaps
            if first < last
            for match in lines.finditer(self._paper.text, first, last)
        ]

    def _render(self, span: Span) -> str:
        replaced = [(inner, self._replacements[inner]) for inner in spans_within(self._replaced, span)]
        text = replace_spans(self._paper.text, span.start, span.end, replaced)
        lines = (" ".join(line.split()) for line in text.split("\n"))
        return "\n".join(filter(None, lines))

    def _find_replacements(self) -> dict[Span, str]:
        paper, entries = self._paper, self._entries
        citations = {span.reference: span for span in entries.spans("bibentry")}
        figures = {span.reference: span for name in ("table", "figure") for span in paper.spans(name)}
        replacements: dict[Span, str] = {}
        for span in paper.spans("bibref"):
            entry = citations.get(span.reference) if span.reference else None
            if entry is not None:
                author = entries.first_within("bibauthorlastname", entry)
                replacements[span] = tokens.bib_ref(entries.first_within("bibtitle", entry), author)
        for span in [*paper.spans("figureref"), *paper.spans("tableref")]:
            figure = figures.get(span.reference) if span.reference else None
            if figure is not None:
                caption = paper.first_within("figurecaption", figure) or paper.at(figure)
                replacements[span] = tokens.fig_ref(paper.at(span), caption)
        replacements |= {span: tokens.formula(paper.at(span)) for span in paper.spans("formula")}
        return {span: new for span, new in replacements.items() if new}

    def _add_captions(self, outline: Outline) -> None:
        captions = _without_overlaps(self._paper.spans("figurecaption"))
        if captions:
            outline.add_heading(1, _FIGURES_HEADING)
        tables = _without_overlaps(self._paper.spans("table"))
        in_tables = {span for table in tables for span in spans_within(captions, table)}
        for span in captions:
            text = self._paper.at(span)
            outline.add_text(tokens.caption(text, table=span in in_tables) if self._mark and text else text)


def _in_order(spans: Iterable[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: (span.start, -span.end))


def _without_overlaps(spans: list[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in spans:
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept
