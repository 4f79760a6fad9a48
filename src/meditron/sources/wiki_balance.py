"""Balancing of wikitext: markup that is opened but never closed becomes text, so that parsing is fast.

mwparserfromhell parses well-formed wikitext in linear time, but for every unclosed opening it searches the
rest of the page: a page of 20,000 times `[http://a ` takes a minute. One pass over the page replaces such
openings by text. The same pass removes attributes, comments and tables, which are not converted to plain text
anyway.
"""

import re
from collections import Counter

__all__ = ["LONGEST_PAGE", "MOST_MARKUP", "VERBATIM", "TooMuchMarkup", "balance_markup"]

LONGEST_PAGE = 4 << 20
"""Maximum number of characters of a page; MediaWiki itself accepts 2 MiB."""
MOST_MARKUP = 40_000
"""Maximum number of links, templates, tags, headings and list items of a page; parsing so many takes about
ten seconds."""
_DEEPEST = 30  # maximum nesting; mwparserfromhell parses no more than 40 levels

VERBATIM = frozenset(
    {"math", "chem", "ce", "source", "syntaxhighlight", "nowiki", "pre", "score", "timeline", "gallery"}
    | {"imagemap", "graph", "templatedata", "categorytree", "hiero", "inputbox", "section", "mapframe"}
)
_VOID_TAGS = frozenset({"br", "wbr", "hr", "meta", "link", "img", "li", "dt", "dd", "th", "td", "tr", "p"})
_TOKEN = re.compile(
    r"""(?P<comment><!--)
    |<(?P<close>/?)(?P<name>[A-Za-z][A-Za-z0-9]*+)(?:[\s/][^<>]*+)?>
    |(?P<stray><(?=[A-Za-z/!]))
    |(?P<table>^[ :*;\#]*+\{\|)
    |(?P<table_end>^[ ]*+\|\}(?!\}))
    |(?P<open>\{\{|\[\[|\[(?=(?:[A-Za-z][A-Za-z+.-]{0,20}:)?//|mailto:|news:))
    |(?P<end>\}\}|\]\]?)
    |(?P<other>^[*\#:;=-]|://)
    |(?P<line>\n)""",
    re.VERBOSE | re.MULTILINE,
)
_AS_TEXT = {"{{": "&#123;&#123;", "[[": "&#91;&#91;", "[": "&#91;", "{|": "&#123;|"}
# An unclosed `10<sup>9` becomes `10^9`; without the mark it would be read as 109.
_TEXT_IF_UNCLOSED = {**_AS_TEXT, "sup": "^", "sub": "_"}
_OPENING_OF = {"}}": "{{", "]]": "[[", "]": "["}


class TooMuchMarkup(Exception):
    """A page that is longer or has more markup than the limits allow."""


def balance_markup(wikitext: str) -> str:
    """Return a page with unclosed openings replaced by text; TooMuchMarkup if the page exceeds a limit."""
    if len(wikitext) > LONGEST_PAGE:
        raise TooMuchMarkup(f"{len(wikitext):,} characters")
    return _MarkupBalancer(wikitext).balance_page()


class _MarkupBalancer:
    """One pass over a page, with a stack of the open markup."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces: list[str] = []
        self.open: list[tuple[str, int]] = []  # for each open markup, its kind and the index of its piece
        self.opened: Counter[str] = Counter()
        self.missing_ends: set[str] = set()  # end marks that are known not to occur in the rest of the page
        self.markup = 0

    def balance_page(self) -> str:
        at = 0
        while match := _TOKEN.search(self.text, at):
            self.pieces.append(self.text[at : match.start()])
            at = self._handle_token(match)
        self.pieces.append(self.text[at:])
        self._turn_openings_into_text(0)
        return "".join(self.pieces)

    def _handle_token(self, match: re.Match[str]) -> int:
        """Handle one token and return the position after it."""
        mark = match[0]
        if match["comment"]:
            end = self._find_end_mark("-->", match.end())
            self.pieces.append("&lt;!--" if end < 0 else "")
            return match.end() if end < 0 else end + 3
        if match["name"]:
            return self._handle_tag(match)
        if match["line"]:
            self._end_external_links()
        if match["table_end"]:
            if (start := self._close_markup("{|")) is not None:
                del self.pieces[start:]
                return match.end()
        elif match["end"]:
            if mark == "]]" and self.open and self.open[-1][0] == "[":
                mark = "]"
            self._close_markup(_OPENING_OF[mark])
        elif match["table"] or match["open"]:
            self._open_markup("{|" if match["table"] else mark, mark)
            return match.end()
        elif match["other"]:
            self._count_markup()
        self.pieces.append("&lt;" if match["stray"] else mark)
        return match.start() + len(mark)

    def _handle_tag(self, match: re.Match[str]) -> int:
        name = match["name"].lower()
        whole = match[0].endswith("/>")
        if match["close"]:
            if name in _VOID_TAGS or self._close_markup(name) is not None:
                self.pieces.append(f"</{name}>")
        elif whole or name in _VOID_TAGS:
            self.pieces.append(f"<{name}/>" if whole else f"<{name}>")
        elif name in VERBATIM:
            end = self._find_end_mark(f"</{name}", match.end())
            if end >= 0:
                self._count_markup()
                stop = self.text.find(">", end)
                self.pieces.append(f"<{name}>{self.text[match.end() : end]}</{name}>")
                return len(self.text) if stop < 0 else stop + 1
        else:
            self._open_markup(name, f"<{name}>")
        return match.end()

    def _end_external_links(self) -> None:
        """Replace external links that are still open at the end of their line by text."""
        if self.opened["["]:
            for kind, piece in self.open:
                if kind == "[":
                    self.pieces[piece] = _AS_TEXT[kind]
            self.open = [entry for entry in self.open if entry[0] != "["]
            del self.opened["["]

    def _find_end_mark(self, end: str, start: int) -> int:
        """Return the position of an end mark, ignoring case; -1 if the rest of the page has none."""
        if end in self.missing_ends:
            return -1
        match = re.compile(re.escape(end), re.IGNORECASE).search(self.text, start)
        if match is None:
            self.missing_ends.add(end)
            return -1
        return match.start()

    def _count_markup(self) -> None:
        self.markup += 1
        if self.markup > MOST_MARKUP:
            raise TooMuchMarkup(f"more than {MOST_MARKUP:,} links, templates, tags and list items")

    def _open_markup(self, kind: str, mark: str) -> None:
        self._count_markup()
        if len(self.open) >= _DEEPEST:
            self.pieces.append(_AS_TEXT.get(kind, ""))
            return
        self.open.append((kind, len(self.pieces)))
        self.opened[kind] += 1
        self.pieces.append(mark)

    def _close_markup(self, kind: str) -> int | None:
        """Close the innermost open markup of a kind, and replace the openings after it by text.

        An end tag does not close a tag that was opened before an open link or template.

        Returns:
            The index of the piece that opens the markup; None if nothing is closed.
        """
        if not self.opened[kind]:
            return None
        at = len(self.open) - 1
        while self.open[at][0] != kind:
            if self.open[at][0] in _AS_TEXT and kind not in _AS_TEXT:
                return None
            at -= 1
        self._turn_openings_into_text(at + 1)
        self.opened[kind] -= 1
        return self.open.pop()[1]

    def _turn_openings_into_text(self, depth: int) -> None:
        """Replace the openings above `depth` in the stack by text, and remove tags."""
        while len(self.open) > depth:
            kind, piece = self.open.pop()
            self.opened[kind] -= 1
            self.pieces[piece] = _TEXT_IF_UNCLOSED.get(kind, "")
