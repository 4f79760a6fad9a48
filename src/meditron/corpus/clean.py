r"""The pass that renders a document as cleaned text. It removes no letter, digit or sign.

The changes are: Unicode becomes its canonical composition (NFC: `e` and a combining accent become `é`;
never NFKC, which turns `10⁹` into `109`, `½` into `1⁄2` and `™` into `TM`), text whose encoding was certainly
mistaken is repaired (`mojibake`), characters without a glyph (control characters, soft hyphens, byte
order marks, zero-width spaces, direction marks) are removed, and white space is normalised. `<5 … >10`,
`[95% CI 1.1-2.3]`, `\noral` and lines without letters stay unchanged.
"""

import re
import unicodedata
from dataclasses import replace

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason
from meditron.corpus.mojibake import repair_mojibake
from meditron.sources.document import Document
from meditron.store.corpus import SectionSpan

__all__ = ["Clean", "clean_text", "render_document"]

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# The zero-width joiner and non-joiner (U+200D, U+200C) are not removed: Persian and Indic spelling needs
# them.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ufff9-\ufffb]"
)
# Half of a surrogate pair: JSON can contain one as an escape, but UTF-8 cannot encode it.
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANKS = re.compile("[\t \xa0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_BLANK_LINES = re.compile("\n{3,}")


class Clean(CorpusPass):
    """A pass that renders each document as one cleaned text."""

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document with its cleaned text and the positions of its labelled sections."""
        text, spans = render_document(candidate.document)
        return replace(candidate, text=text, section_spans=spans)


def clean_text(text: str) -> str:
    """Normalise a text's Unicode, line ends and white space. Cleaning a cleaned text changes nothing.

    A run of blanks, including no-break and thin spaces, becomes one blank. Line breaks stay, with at most one
    empty line between lines. Lone surrogates, which UTF-8 cannot encode, become U+FFFD.
    """
    cleaned = _clean_once(text)
    # Removing an invisible character or composing an accent can make a sequence that is to be repaired.
    while (again := repair_mojibake(cleaned)) != cleaned:
        cleaned = _clean_once(again)
    return cleaned


def _clean_once(text: str) -> str:
    # The repair comes first: it needs the control characters and no-break spaces that stand for bytes.
    text = _LINE_ENDS.sub("\n", repair_mojibake(text))
    text = _LONE_SURROGATE.sub("\ufffd", _INVISIBLE.sub("", text))
    # NFC comes after the removal: a soft hyphen between a letter and its accent would prevent their
    # composition.
    text = unicodedata.normalize("NFC", text)
    lines = (line.strip(" ") for line in _BLANKS.sub(" ", text).split("\n"))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")


def render_document(document: Document) -> tuple[str, tuple[SectionSpan, ...]]:
    """Render a document as one cleaned text: the title, then the sections.

    A section's label precedes its text on the same line (`OBJECTIVE: To …`) if the text is one line, and is a
    line of its own above a longer text. The headings of the enclosing sections are lines above the first
    section that they enclose, unless they are the label of an earlier one. Sections without text are left
    out, with their labels.

    Returns:
        The text, and the positions in it of the sections that have a label or a category.
    """
    whole = clean_text(document.title)
    spans = []
    above: tuple[str, ...] = ()  # headings that are open at the end of the text
    for section in document.sections:
        text, label = clean_text(section.text), clean_text(section.label or "")
        if not text:
            continue
        head = "" if not label else f"\n{label}\n" if "\n" in text else f"{label}: "
        if headings := "\n".join(filter(None, map(clean_text, _new_headings(section.heading_path, above)))):
            head = f"\n{headings}\n{head}"
        above = (*section.heading_path, section.label or "")
        whole += f"\n{head}" if whole else head.lstrip("\n")
        if label or section.category:
            spans.append(SectionSpan(len(whole), len(whole) + len(text), label or None, section.category))
        whole += text
    return whole, tuple(spans)


def _new_headings(path: tuple[str, ...], above: tuple[str, ...]) -> tuple[str, ...]:
    """Return the headings of a path that are not open yet."""
    same = 0
    while same < min(len(path), len(above)) and path[same] == above[same]:
        same += 1
    return path[same:]
