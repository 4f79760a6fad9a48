"""Special tokens of the original Meditron corpus for references: `[bib_ref] … [/bib_ref]`.

The content of a token is that of the original: for a citation the first words of the cited title and the
first author's surname, for a figure or table its number and the beginning of its caption. Brackets and
parentheses around nothing but references are replaced by the tokens, as in the original. A reference that
cannot be resolved keeps its printed text inside the token.
"""

import re
from typing import TYPE_CHECKING

from meditron.sources.scripts import END, SUP

if TYPE_CHECKING:
    from collections.abc import Callable

    from lxml import etree

__all__ = ["REFERENCE", "TOKENS", "ReferenceTokens", "render_reference_marks"]

REFERENCE, REFERENCE_END = "\x05", "\x06"
"""Marks of the start and end of a reference in text that `render_reference_marks` has not converted yet. XML
forbids these characters."""

_MAX_WORDS = 12
_MIN_CUT = 20  # characters; a shorter beginning of a caption is not cut at punctuation
_CUT = re.compile("[.;:()]")
_ONE = f"{REFERENCE}[^{REFERENCE}{REFERENCE_END}]*{REFERENCE_END}"
_RUN = f"\\s?({_ONE}(?:[\\s,;\u2013-]*{_ONE})*)\\s?"
_ENCLOSED = re.compile(rf"\[{_RUN}\]|\({_RUN}\)|{SUP}{_RUN}{END}")
_SINGLE = re.compile(_ONE)
_PASSES = 3  # brackets in a superscript in brackets; bounds the time for thousands of nested brackets
TOKENS = {"bibr": "bib_ref", "fig": "fig_ref", "table": "fig_ref", "table-wrap": "fig_ref"}
"""Type of a reference (`ref-type`) → name of its token."""
_FLOATS = ("fig", "table-wrap", "fig-group", "table-wrap-group")


class ReferenceTokens:
    """Resolves the references of one article to the content of their tokens."""

    def __init__(self, article: "etree._Element", text_of: "Callable[[etree._Element], str]") -> None:
        """Collect the targets of references in an article.

        Args:
            article: The article element.
            text_of: Function that returns the text of an element as one line.
        """
        self._text_of = text_of
        self._targets = {
            identity: target for target in article.iter("ref", *_FLOATS) if (identity := target.get("id"))
        }
        self._contents: dict[str, str] = {}

    def mark(self, reference: "etree._Element", printed: str) -> str:
        """Return the marked tokens of an `xref` of a type in TOKENS, given its printed text."""
        token = TOKENS[reference.get("ref-type", "")]
        # One xref may refer to several targets: rid="B1 B2".
        contents = [text for rid in reference.get("rid", "").split() if (text := self._content(rid))]
        contents = contents or [printed.strip("[]() ")]
        return "".join(f"{REFERENCE}[{token}] {text} [/{token}]{REFERENCE_END}" for text in contents if text)

    def _content(self, rid: str) -> str:
        if rid not in self._contents:
            target = self._targets.get(rid)
            describe = self._citation if target is not None and target.tag == "ref" else self._float
            self._contents[rid] = "" if target is None else describe(target)
        return self._contents[rid]

    def _citation(self, ref: "etree._Element") -> str:
        title = next(ref.iter("article-title", "chapter-title", "source"), None)
        author = next(ref.iter("surname", "collab"), None)
        parts = [
            "" if title is None else _first_words(self._text_of(title), "…"),
            "" if author is None else self._text_of(author),
        ]
        return ", ".join(filter(None, parts))

    def _float(self, target: "etree._Element") -> str:
        label, caption = target.find("label"), target.find("caption")
        name = "" if label is None else self._text_of(label).rstrip(".: ")
        text = "" if caption is None else self._text_of(caption)
        if cut := _CUT.search(text, _MIN_CUT):
            text = text[: cut.start()]
        return ": ".join(filter(None, [name, _first_words(text, "...")]))


def _first_words(text: str, ellipsis: str) -> str:
    words = text.split()
    return " ".join(words[:_MAX_WORDS]).rstrip(".") + (ellipsis if len(words) > _MAX_WORDS else "")


def render_reference_marks(text: str) -> str:
    """Replace the marks of references by blanks, and remove brackets that enclose nothing but references."""
    for _ in range(_PASSES):
        text = _ENCLOSED.sub(_keep_references, text)
    return text.replace(REFERENCE, " ").replace(REFERENCE_END, " ")


def _keep_references(match: re.Match[str]) -> str:
    return " ".join(_SINGLE.findall(match[0]))
