"""Sections of plain text from the elements of a JATS article: one depth-first walk over lxml's tree.

An element is a block (a paragraph, list, table, …), is left out, or else is inline: its text continues the
text around it, without a blank. White space is collapsed to single blanks. The blocks of a section are
separated by an empty line:

- A list has one line per item, with the item's label, number or `- `. A definition list has lines
  `term: definition`.
- A table has its label and caption, its rows (see `jats_tables`) and its footnotes; a figure its caption.
- A display formula is a line with its label. Formulas are MathML as in `mathml`, or else their TeX.
- A footnote is a block; within a paragraph's text it is written in parentheses.

Citations and other references keep their printed text, `[12]` or `(Smith, 2010)`. To remove them would leave
sentences without their object ("as shown in"), and brackets that hold other words as well. A reference mark
that is printed without brackets directly after a word or number, whose typesetting raises it, is written as
a superscript (`8.3^a`, `trial.¹²`), since it would change a number. Brackets around an empty reference, or
around an image of a symbol, are removed. With reference tokens, references are written as in
`jats_references`, and figures, tables and display formulas are enclosed in tokens as well.

Left out are reference lists, affiliations, funding, supplementary material and media files, graphics with
their alternative texts, and permissions.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from meditron.sources.document import Section
from meditron.sources.jats_labels import (
    FUNDING_TYPES,
    is_funding,
    item_mark,
    join_label,
    section_category,
    tidy_heading,
)
from meditron.sources.jats_references import REFERENCE, TOKENS, ReferenceTokens, render_reference_marks
from meditron.sources.jats_tables import table_lines
from meditron.sources.mathml import math_text
from meditron.sources.scripts import END, SUB, SUP, render_sup_and_sub_marks

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["SectionWriter"]

MATH = "{http://www.w3.org/1998/Math/MathML}math"
# Mark of a reference without text, or of an image in the text. XML forbids this character.
_EMPTY = "\x04"
_EMPTY_BRACKETS = re.compile(f" ?[\\[(](?:[\\s,;\u2013-]*+{_EMPTY})++[\\s,;\u2013-]*+[\\])]")
_SEPARATORS = re.compile("[,;\u2013-] ?")
_RAISABLE = re.compile("[0-9A-Za-z](?:[0-9A-Za-z,\u2013-]*[0-9A-Za-z])?")
_RAISED_REFERENCES = frozenset({"bibr", "fn", "table-fn"})
_LONGEST_MARK = 4  # characters of a mark of a footnote; a longer text is a word
_OPENING = frozenset("([{/=<>\u2013\u2014-")  # characters after which a mark cannot be confused


class _Heading:
    """A heading of the current section or of one that encloses it."""

    __slots__ = ("category", "printed", "text")

    def __init__(self, text: str, category: str | None) -> None:
        self.text = text
        self.category = category
        self.printed = False  # True once a section has it as its label or in its path


class SectionWriter:
    """Converts elements of one article to sections, in document order."""

    def __init__(self, references: ReferenceTokens | None = None) -> None:
        """Create a writer without sections.

        Args:
            references: Resolves references, to write them as tokens; default: keep their printed text.
        """
        self.sections: list[Section] = []
        self._references = references
        self._headings: list[_Heading] = []
        self._blocks: list[str] = []  # finished blocks of the current section, cell, item or caption
        self._pieces: list[str] = []  # text of the current block; no piece is empty
        self._captures = 0  # number of elements around the current one whose text is captured
        self._in_script = False

    def add_section(self, element: "etree._Element", heading: str = "") -> None:
        """Write an element (`abstract`, `body`, `sec`, …) as a section with its subsections.

        Args:
            element: The element.
            heading: Heading of an element without `title`; without either, the content belongs to the section
                around it.
        """
        label, title = element.find("label"), element.find("title")
        printed = " ".join(self.line(part) for part in (label, title) if part is not None)
        heading = tidy_heading(printed) or heading
        if is_funding(element, heading):
            return
        if self._captures:  # in a box or a list, where a heading is a line of text
            self._flush()
            self._blocks += [heading] if heading else []
            self._write_children(element, ("label", "title"))
            self._flush()
            return
        self._end_section()
        before = len(self.sections)
        if heading:
            self._headings.append(_Heading(heading, section_category(element)))
        self._write_children(element, ("label", "title"))
        self._end_section()
        if heading:
            self._headings.pop()
            parts = (label is not None) + (title is not None)
            if parts and len(element) == parts and len(self.sections) == before:
                self._blocks.append(heading)  # the heading is the section's only text
                self._end_section()

    def add_children(self, element: "etree._Element") -> None:
        """Write the children of an element, such as `body`, as sections."""
        self._end_section()
        self._write(element)
        self._end_section()

    @contextmanager
    def below(self, heading: str) -> Iterator[None]:
        """Write the sections of a `with` block below a heading, which may be empty."""
        self._end_section()
        if heading:
            self._headings.append(_Heading(heading, None))
        yield
        self._end_section()
        if heading:
            self._headings.pop()

    def line(self, element: "etree._Element") -> str:
        """Return the text of an element as one line."""
        return " ".join(self._capture(element))

    def line_without_notes(self, element: "etree._Element") -> str:
        """Return the text of a title as one line, without footnotes and their marks."""
        return " ".join(self._capture(element, ("fn", "xref")))

    def _end_section(self) -> None:
        """Add the finished blocks as a section with the current headings."""
        self._flush()
        if not self._blocks:
            return
        text = "\n\n".join(self._blocks)
        self._blocks.clear()
        path = tuple([heading.text for heading in self._headings])
        last = self._headings[-1] if path else None
        category = last.category if last else None
        if last is None or last.printed:
            self.sections.append(Section(text, None, category, path))
        else:
            self.sections.append(Section(text, last.text, category, path[:-1]))
            for heading in self._headings:
                heading.printed = True

    def _flush(self) -> None:
        """Finish the current block."""
        pieces = self._pieces
        if pieces:
            text = pieces[0] if len(pieces) == 1 else "".join(pieces)
            pieces.clear()
            if text := _tidy(text):
                self._blocks.append(text)

    def _capture(self, element: "etree._Element", left_out: Iterable[str] = ()) -> list[str]:
        """Return the blocks of an element's content, without those of the children that are left out."""
        if not len(element):
            text = " ".join((element.text or "").split())
            return [text] if text else []
        blocks, pieces, in_script = self._blocks, self._pieces, self._in_script
        self._blocks, self._pieces, self._in_script = [], [], False
        self._captures += 1
        if left_out:
            self._write_children(element, left_out)
        else:
            self._write(element)
        self._flush()
        captured = self._blocks
        self._captures -= 1
        self._blocks, self._pieces, self._in_script = blocks, pieces, in_script
        return captured

    def _write(self, element: "etree._Element") -> None:
        """Write the content of an element; the default for elements without a rule, which are inline."""
        # Rules may replace `self._pieces` while they capture a text, but restore it.
        append = self._pieces.append
        if text := element.text:
            append(text)
        for child in element:
            (_rule_of(child.tag) or SectionWriter._write)(self, child)
            if text := child.tail:
                append(text)

    def _write_children(self, element: "etree._Element", left_out: Iterable[str]) -> None:
        """Write the content of an element without some of its children."""
        if text := element.text:
            self._pieces.append(text)
        for child in element:
            if child.tag not in left_out:
                (_rule_of(child.tag) or SectionWriter._write)(self, child)
            if text := child.tail:
                self._pieces.append(text)

    def _write_block(self, element: "etree._Element") -> None:
        self._flush()
        self._write(element)
        self._flush()

    def _skip(self, element: "etree._Element") -> None:
        """Leave an element out."""

    def _write_sup(self, element: "etree._Element") -> None:
        self._write_script(element, SUP)

    def _write_sub(self, element: "etree._Element") -> None:
        self._write_script(element, SUB)

    def _write_script(self, element: "etree._Element", mark: str) -> None:
        if not len(element):
            if text := element.text:
                self._pieces += (mark, text, END)
            return
        blocks, pieces, in_script = self._blocks, self._pieces, self._in_script
        self._blocks, self._pieces, self._in_script = [], [], True
        self._captures += 1
        self._write(element)
        if self._blocks:  # a block in a script, whose marks must be in one text
            self._flush()
        text = " ".join(self._blocks) or "".join(self._pieces)
        self._captures -= 1
        self._blocks, self._pieces, self._in_script = blocks, pieces, in_script
        if text:
            self._pieces += (mark, text, END)

    def _write_spaced(self, element: "etree._Element") -> None:
        """Write an element that has only elements as content, with blanks between them."""
        for child in element:
            self._pieces.append(" ")
            (_rule_of(child.tag) or SectionWriter._write)(self, child)
        self._pieces.append(" ")

    def _write_break(self, element: "etree._Element") -> None:
        self._pieces.append(" ")

    def _write_inline_graphic(self, element: "etree._Element") -> None:
        self._pieces.append(_EMPTY)

    def _write_label(self, element: "etree._Element") -> None:
        self._pieces.append(" ")
        self._write(element)
        self._pieces.append(" ")

    def _write_xref(self, element: "etree._Element") -> None:
        kind = element.get("ref-type")
        if self._references is not None and kind in TOKENS:
            self._pieces.append(self._references.mark(element, self.line(element)) or _EMPTY)
            return
        if len(element):
            self._write(element)
            return
        text = element.text
        if not text or text.isspace():
            self._pieces.append(_EMPTY)
        elif kind in _RAISED_REFERENCES and not self._in_script and self._is_raised(text, kind):
            self._pieces += (SUP, text.strip(), END)
        else:
            self._pieces.append(text)

    def _is_raised(self, text: str, kind: str) -> bool:
        """Return True if the mark of a reference is to be a superscript, given the text before it."""
        if not _RAISABLE.fullmatch(text.strip()):
            return False
        if kind != "bibr":
            return len(text.strip()) <= _LONGEST_MARK
        pieces = self._pieces
        if not pieces or not (text[0].isdigit() or len(text) == 1):
            return False
        last = pieces[-1]
        if len(pieces) > 1 and pieces[-2] == END and _SEPARATORS.fullmatch(last):
            return len(pieces) > 3 and pieces[-4] == SUP  # the mark before the separator was raised
        if last[-1] in ",;":  # `general,24` is raised, `[23,24]` is not
            return len(last) > 2 and not _is_in_brackets(last)
        return not (last[-1].isspace() or last[-1] in _OPENING)

    def _write_note(self, element: "etree._Element") -> None:
        if element.get("fn-type") in FUNDING_TYPES:
            return
        if any(not piece.isspace() for piece in self._pieces):
            if text := " ".join(self._capture(element, ("label",))):
                self._pieces.append(f" ({text})")
            return
        self._flush()
        label = element.find("label")
        mark = "" if label is None else self.line(label)
        blocks = self._capture(element, ("label",))
        if blocks:
            self._blocks.append(f"{mark} {chr(10).join(blocks)}".strip())

    def _write_list(self, element: "etree._Element") -> None:
        self._flush()
        kind = element.get("list-type", "bullet")
        lines: list[str] = []
        number = 0
        for child in element:
            if child.tag != "list-item":
                lines += self._capture_as_block(child)
                continue
            number += 1
            label = child.find("label")
            mark = item_mark(kind, number) if label is None else self.line(label)
            if blocks := self._capture(child, ("label",)):
                lines.append(f"{mark} {chr(10).join(blocks)}".strip())
        self._add_lines(lines)

    def _write_definitions(self, element: "etree._Element") -> None:
        self._flush()
        lines: list[str] = []
        for child in element:
            if child.tag != "def-item":
                lines += self._capture_as_block(child)
                continue
            terms = [line for term in child.iterfind("term") if (line := self.line(term))]
            blocks = self._capture(child, ("label", "term"))
            term = ", ".join(terms)
            lines.append(join_label(term, chr(10).join(blocks), ": ") if blocks else term)
        self._add_lines(filter(None, lines))

    def _write_lines(self, element: "etree._Element") -> None:
        """Write an element whose parts are lines of one block, such as a verse."""
        self._flush()
        self._add_lines(self._capture(element))

    def _write_preformatted(self, element: "etree._Element") -> None:
        self._flush()
        text = "".join(map(str, element.itertext()))
        self._add_lines(filter(None, (" ".join(line.split()) for line in text.split("\n"))))

    def _write_figure(self, element: "etree._Element") -> None:
        self._add_lines(self._float_blocks(element), "fig")

    def _write_table_wrap(self, element: "etree._Element") -> None:
        self._add_lines(self._float_blocks(element), "table")

    def _write_box(self, element: "etree._Element") -> None:
        self._blocks += self._float_blocks(element)

    def _float_blocks(self, element: "etree._Element") -> list[str]:
        """Return the blocks of an element with a label and a caption or title, which are joined."""
        self._flush()
        label = element.find("label")
        name = "" if label is None else self.line(label)
        head: list[str] = []
        for child in element.iterchildren("caption", "title"):
            head += self._capture(child)
        blocks = head + self._capture(element, ("label", "caption", "title"))
        if name and blocks:
            blocks[0] = join_label(name, blocks[0], ". ")
        return blocks or ([name] if name else [])

    def _write_table(self, element: "etree._Element") -> None:
        self._flush()
        self._add_lines(table_lines(element, self.line))

    def _write_formula(self, element: "etree._Element") -> None:
        label = element.find("label")
        self._flush()
        formula = " ".join(self._capture(element, ("label",)))
        number = "" if label is None else self.line(label)
        if formula:
            if self._references is not None:
                formula = f"[formula] {formula} [/formula]"
            self._blocks.append(f"{formula} {number}".rstrip())

    def _write_math(self, element: "etree._Element") -> None:
        self._write_formula_text(element, math_text(element))

    def _write_tex(self, element: "etree._Element") -> None:
        text = "".join(map(str, element.itertext()))
        _, begun, body = text.partition(r"\begin{document}")  # PMC writes a whole LaTeX document
        text = body.partition(r"\end{document}")[0] if begun else text
        self._write_formula_text(element, text.strip().strip("$").strip())

    def _write_formula_text(self, element: "etree._Element", text: str) -> None:
        if not text:
            return
        if self._pieces and self._pieces[-1][-1].isdigit() and text[0].isdigit():
            self._pieces.append(" ")
        self._pieces.append(text)
        if text[-1].isdigit() and (element.tail or "")[:1].isdigit():
            self._pieces.append(" ")

    def _write_alternatives(self, element: "etree._Element") -> None:
        """Write the most readable of several forms of the same content."""
        children = sorted(element, key=lambda child: _PREFERENCE.get(child.tag, 1))
        for child in children:
            blocks, pieces = len(self._blocks), len(self._pieces)
            (_rule_of(child.tag) or SectionWriter._write)(self, child)
            if (len(self._blocks), len(self._pieces)) != (blocks, pieces):
                return

    def _capture_as_block(self, element: "etree._Element") -> list[str]:
        """Return the blocks that an element would add."""
        blocks, self._blocks = self._blocks, []
        self._captures += 1
        (_rule_of(element.tag) or SectionWriter._write_block)(self, element)
        self._flush()
        captured, self._blocks = self._blocks, blocks
        self._captures -= 1
        return captured

    def _add_lines(self, lines: Iterable[str], token: str = "") -> None:
        """Add lines as one block, enclosed in tokens if references are written as tokens."""
        if text := "\n".join(lines):
            if token and self._references is not None:
                text = f"[{token}] {text} [/{token}]"
            self._blocks.append(text)


def _tidy(text: str) -> str:
    """Collapse white space and convert the marks in a text."""
    if REFERENCE in text:
        text = render_reference_marks(text)
    text = " ".join(text.split())
    if _EMPTY in text:
        text = _EMPTY_BRACKETS.sub("", text).replace(_EMPTY, "").strip()
    return " ".join(render_sup_and_sub_marks(text).split()) if END in text else text


def _is_in_brackets(text: str) -> bool:
    """Return True if a bracket or parenthesis is open at the end of a text."""
    return text.rfind("[") > text.rfind("]") or text.rfind("(") > text.rfind(")")


_Rule = Callable[[SectionWriter, "etree._Element"], None]
_PREFERENCE = {"table": 0, "array": 0, MATH: 0, "tex-math": 2, "inline-graphic": 3}
_RULES: Mapping[object, _Rule] = {
    **dict.fromkeys(
        (
            *("ref-list", "supplementary-material", "media", "graphic", "object-id", "inline-media"),
            *("alt-text", "long-desc", "permissions", "contrib-group", "aff", "aff-alternatives"),
            *("author-notes", "funding-group", "index-term", "kwd-group", "sec-meta", "custom-meta-group"),
            *("glyph-data", "colgroup", "col", "hr", "processing-meta", "subj-group"),
        ),
        SectionWriter._skip,
    ),
    **dict.fromkeys(
        (
            *("p", "title", "subtitle", "caption", "attrib", "disp-quote", "verse-line", "speaker", "term"),
            *("def", "table-wrap-foot", "floats-group", "speech", "sig-block", "term-head", "def-head"),
            *("td", "th", "question", "answer", "explanation", "textual-form", "license-p"),
        ),
        SectionWriter._write_block,
    ),
    **dict.fromkeys(
        ("sec", "app", "app-group", "glossary", "notes", "fn-group", "bio"), SectionWriter.add_section
    ),
    **dict.fromkeys(
        ("name", "person-group", "element-citation", "nlm-citation", "address", "date", "product"),
        SectionWriter._write_spaced,
    ),
    "ack": lambda writer, element: writer.add_section(element, "Acknowledgements"),
    "sup": SectionWriter._write_sup,
    "sub": SectionWriter._write_sub,
    "break": SectionWriter._write_break,
    "label": SectionWriter._write_label,
    "inline-graphic": SectionWriter._write_inline_graphic,
    "xref": SectionWriter._write_xref,
    "fn": SectionWriter._write_note,
    "list": SectionWriter._write_list,
    "def-list": SectionWriter._write_definitions,
    "verse-group": SectionWriter._write_lines,
    "preformat": SectionWriter._write_preformatted,
    "code": SectionWriter._write_preformatted,
    "fig": SectionWriter._write_figure,
    "table-wrap": SectionWriter._write_table_wrap,
    **dict.fromkeys(
        (
            *("boxed-text", "statement", "fig-group", "table-wrap-group", "chem-struct-wrap"),
            *("disp-formula-group", "question-wrap", "question-wrap-group", "block-alternatives"),
        ),
        SectionWriter._write_box,
    ),
    "table": SectionWriter._write_table,
    "array": SectionWriter._write_table,
    "tgroup": SectionWriter._write_table,
    "disp-formula": SectionWriter._write_formula,
    MATH: SectionWriter._write_math,
    "tex-math": SectionWriter._write_tex,
    "alternatives": SectionWriter._write_alternatives,
    "citation-alternatives": SectionWriter._write_alternatives,
}
_rule_of = _RULES.get
