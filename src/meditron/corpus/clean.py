r"""Cleaning that damages nothing: no letter, digit or sign of a text is lost or changed into another.

Changed are only: Unicode to its canonical composition (NFC: `e` and a combining accent become `é`; never
NFKC, which turns `10²` into `102`), characters without a glyph (control characters, soft hyphens, byte order
marks, zero-width spaces, direction marks), and white space. `<5 … >10`, `[95% CI 1.1-2.3]`, `\noral` and
lines without letters stay as they are.
"""

import re
import unicodedata

from meditron.sources.document import Document
from meditron.store.corpus import SectionSpan

__all__ = ["clean", "compose"]

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ufff9-\ufffb]"
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANKS = re.compile("[\t \xa0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_BLANK_LINES = re.compile("\n{3,}")


def clean(text: str) -> str:
    """The text with its encoding, line ends and white space in order. Cleaning twice changes nothing more.

    Runs of blanks become one, also no-break and thin ones; lines keep their breaks, at most one empty line
    between them. Lone surrogates, which no encoding can hold, become U+FFFD.
    """
    text = _LINE_ENDS.sub("\n", text)
    text = _LONE_SURROGATE.sub("\ufffd", _INVISIBLE.sub("", text))
    text = unicodedata.normalize("NFC", text)
    lines = (line.strip(" ") for line in _BLANKS.sub(" ", text).split("\n"))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")


def compose(document: Document) -> tuple[str, tuple[SectionSpan, ...]]:
    """A document as one cleaned text, title before sections, and where those with a label stand.

    A label stands before a section of one line (`OBJECTIVE: To …`) and on a line of its own above a longer
    one. Sections without text are left out, with their labels.
    """
    whole = clean(document.title)
    parts = []
    for section in document.sections:
        text, label = clean(section.text), clean(section.label or "")
        if not text:
            continue
        head = "" if not label else f"\n{label}\n" if "\n" in text else f"{label}: "
        whole += f"\n{head}" if whole else head.lstrip("\n")
        if label or section.category:
            parts.append(SectionSpan(len(whole), len(whole) + len(text), label or None, section.category))
        whole += text
    return whole, tuple(parts)
