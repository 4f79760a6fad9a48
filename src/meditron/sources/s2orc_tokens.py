"""The tokens with which Meditron marked references, formulas and captions: `[bib_ref] … [/bib_ref]`.

The form is that of the GAP-Replay corpus: a citation has at most twelve words of the cited title and the
family name of its first author; a reference to a figure or table has the beginning of the caption.
"""

import re

__all__ = ["bib_ref", "caption", "fig_ref", "formula"]

_MOST_WORDS = 12
_LONGEST = 300  # characters; bounds the text for records that cite an enormous title many times
_CLAUSE_END = re.compile(r"[.;:()]")
_SHORTEST_CLAUSE = 20  # characters of a caption before a mark at which it is cut


def bib_ref(title: str, author: str) -> str:
    """Return a citation: `[bib_ref] Early goal-directed therapy, Rivers [/bib_ref]`; "" without a title."""
    title = _first_words(title)
    return f" [bib_ref] {title}{f', {author[:_LONGEST]}' if author else ''} [/bib_ref] " if title else ""


def fig_ref(name: str, text: str) -> str:
    """Return a reference to a figure or table, with the beginning of its caption."""
    for match in _CLAUSE_END.finditer(text):
        if match.start() > _SHORTEST_CLAUSE:
            text = text[: match.start()]
            break
    text = _first_words(text)
    return f" [fig_ref] {name}{f': {text}' if text else ''} [/fig_ref] "


def formula(text: str) -> str:
    """Return a formula on a line of its own."""
    return f"\n[formula] {text} [/formula]\n"


def caption(text: str, *, table: bool) -> str:
    """Return the caption of a figure or table."""
    return f"[table] {text} [/table]" if table else f"[fig] {text} [/fig]"


def _first_words(text: str) -> str:
    words = text[:_LONGEST].split()
    return " ".join(words[:_MOST_WORDS]) + ("..." if len(words) > _MOST_WORDS else "")
