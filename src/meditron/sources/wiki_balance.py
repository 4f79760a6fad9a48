"""Balancing of wikitext: openings without an end become text, so that parsing takes linear time.

mwparserfromhell reads well-formed wikitext in linear time, but searches the rest of the page for the end of
each unclosed opening: 20,000 times `[http://a ` take a minute. One pass over the page turns such openings
into text. Attributes, comments and tables, which are not kept anyway, are removed in the same pass.
"""

import re
from collections import Counter

__all__ = ["LONGEST_PAGE", "MOST_MARKUP", "VERBATIM", "TooMuchMarkup", "balance"]

LONGEST_PAGE = 4 << 20
"""Characters of a page; MediaWiki accepts 2 MiB."""
MOST_MARKUP = 40_000
"""Links, templates, tags, headings and list items of a page; parsing them takes about ten seconds."""
_DEEPEST = 30  # the parser gives up at 40

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
# Without a mark, an unclosed 10<sup>9 would read 109.
_TEXT_IF_UNCLOSED = {**_AS_TEXT, "sup": "^", "sub": "_"}
_OPENING_OF = {"}}": "{{", "]]": "[[", "]": "["}


class TooMuchMarkup(Exception):
    """A page with more markup than the limits allow."""


def balance(wikitext: str) -> str:
    """Return the page with unclosed openings turned into text; TooMuchMarkup beyond the limits above."""
    if len(wikitext) > LONGEST_PAGE:
        raise TooMuchMarkup(f"{len(wikitext):,} characters")
    return _Balancer(wikitext).run()


class _Balancer:
    """One pass over a page, with a stack of open markup."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.pieces: list[str] = []
        self.open: list[tuple[str, int]] = []  # kind of markup, and the piece that opens it
        self.opened: Counter[str] = Counter()
        self.missing_ends: set[str] = set()  # end marks that do not occur in the rest of the page
        self.markup = 0

    def run(self) -> str:
        at = 0
        while match := _TOKEN.search(self.text, at):
            self.pieces.append(self.text[at : match.start()])
            at = self._handle_token(match)
        self.pieces.append(self.text[at:])
        self._unwind_to(0)
        return "".join(self.pieces)

    def _handle_token(self, match: re.Match[str]) -> int:
        """Handle one token and return the position after it."""
        mark = match[0]
        if match["comment"]:
            end = self._find("-->", match.end())
            self.pieces.append("&lt;!--" if end < 0 else "")
            return match.end() if end < 0 else end + 3
        if match["name"]:
            return self._handle_tag(match)
        if match["line"]:
            self._end_external_links()
        if match["table_end"]:
            if (start := self._close("{|")) is not None:
                del self.pieces[start:]
                return match.end()
        elif match["end"]:
            if mark == "]]" and self.open and self.open[-1][0] == "[":
                mark = "]"
            self._close(_OPENING_OF[mark])
        elif match["table"] or match["open"]:
            self._open("{|" if match["table"] else mark, mark)
            return match.end()
        elif match["other"]:
            self._count()
        self.pieces.append("&lt;" if match["stray"] else mark)
        return match.start() + len(mark)

    def _handle_tag(self, match: re.Match[str]) -> int:
        name = match["name"].lower()
        whole = match[0].endswith("/>")
        if match["close"]:
            if name in _VOID_TAGS or self._close(name) is not None:
                self.pieces.append(f"</{name}>")
        elif whole or name in _VOID_TAGS:
            self.pieces.append(f"<{name}/>" if whole else f"<{name}>")
        elif name in VERBATIM:
            end = self._find(f"</{name}", match.end())
            if end >= 0:
                self._count()
                stop = self.text.find(">", end)
                self.pieces.append(f"<{name}>{self.text[match.end() : end]}</{name}>")
                return len(self.text) if stop < 0 else stop + 1
        else:
            self._open(name, f"<{name}>")
        return match.end()

    def _end_external_links(self) -> None:
        """Turn external links without an end on their line into text."""
        if self.opened["["]:
            for kind, piece in self.open:
                if kind == "[":
                    self.pieces[piece] = _AS_TEXT[kind]
            self.open = [entry for entry in self.open if entry[0] != "["]
            del self.opened["["]

    def _find(self, end: str, start: int) -> int:
        """Find an end mark, in any case; -1 if there is none, which is remembered."""
        if end in self.missing_ends:
            return -1
        match = re.compile(re.escape(end), re.IGNORECASE).search(self.text, start)
        if match is None:
            self.missing_ends.add(end)
            return -1
        return match.start()

    def _count(self) -> None:
        self.markup += 1
        if self.markup > MOST_MARKUP:
            raise TooMuchMarkup(f"more than {MOST_MARKUP:,} links, templates, tags and list items")

    def _open(self, kind: str, mark: str) -> None:
        self._count()
        if len(self.open) >= _DEEPEST:
            self.pieces.append(_AS_TEXT.get(kind, ""))
            return
        self.open.append((kind, len(self.pieces)))
        self.opened[kind] += 1
        self.pieces.append(mark)

    def _close(self, kind: str) -> int | None:
        """Close the innermost markup of a kind, drop all opened after it, and return the opening piece.

        A tag is not closed across a link or a template.
        """
        if not self.opened[kind]:
            return None
        at = len(self.open) - 1
        while self.open[at][0] != kind:
            if self.open[at][0] in _AS_TEXT and kind not in _AS_TEXT:
                return None
            at -= 1
        self._unwind_to(at + 1)
        self.opened[kind] -= 1
        return self.open.pop()[1]

    def _unwind_to(self, depth: int) -> None:
        """Turn the openings above `depth` into text; tags are removed."""
        while len(self.open) > depth:
            kind, piece = self.open.pop()
            self.opened[kind] -= 1
            self.pieces[piece] = _TEXT_IF_UNCLOSED.get(kind, "")
