"""Recognition of HTML pages, and of error and login pages that a server sends with status 200."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser

__all__ = ["HTML_TYPES", "PageOutline", "error_title", "is_html_page", "read_outline"]

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})
"""Media types of HTML pages."""
_START = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
# Titles of error pages, whatever the length of the page.
_ERROR_TITLES = (
    r"^\W*(?:http\s*)?(?:error\s*)?[45]\d\d\W*$",
    r"^\W*(?:http\s*)?[45]\d\d\W+(?:error|not|bad|forbidden|unauthori[sz]ed|internal|service|gone|page|server)\b",
    r"\b(?:error|status)(?: code)?\W{0,2}[45]\d\d\b",
    r"\b(?:page|file|document|resource|url)\b.{0,20}\bnot\b.{0,8}\bfound\b",
    r"^\W*not found\b",
    r"^\W*just a moment",
)
# Titles that a guideline may have too, so that they count only on a short page.
_SHORT_ERROR_TITLES = (
    r"\b(?:access|permission)\s+(?:is\s+)?denied\b",
    r"^\W*forbidden\b",
    r"\battention required\b",
    r"\bare you (?:a robot|human)\b",
    r"\b(?:temporarily|service) unavailable\b",
    r"\bunder maintenance\b",
    r"^\W*(?:sign|log)\s?in\b",
)
_SHORT_PAGE = 5_000  # visible characters; menus of an error page have up to some thousands
_UNSEEN = frozenset({"script", "style", "noscript", "template", "svg"})


@dataclass
class PageOutline(HTMLParser):
    """Collects the title, the first heading, the links and the number of visible characters of a page."""

    title: str = ""
    heading: str = ""
    base: str = ""
    links: list[str] = field(default_factory=list)
    characters: int = 0

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open = ""
        self._unseen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a link, and which text follows."""
        if tag in ("a", "base") and (target := dict(attrs).get("href")):
            if tag == "a":
                self.links.append(target)
            else:
                self.base = self.base or target
        if tag in _UNSEEN:
            self._unseen.append(tag)
        if (tag == "title" and not self.title) or (tag == "h1" and not self.heading):
            self._open = tag

    def handle_endtag(self, tag: str) -> None:
        """End the title, the heading or an invisible element."""
        if tag == self._open:
            self._open = ""
        if tag in self._unseen:
            del self._unseen[self._unseen.index(tag) :]

    def handle_data(self, data: str) -> None:
        """Count visible characters."""
        if self._unseen:
            return
        if self._open == "title":
            self.title += data
            return
        if self._open == "h1":
            self.heading += data
        self.characters += len(" ".join(data.split()))


def is_html_page(start: bytes) -> bool:
    """Return True if a file that starts with these bytes, in UTF-8 or another superset of ASCII, is HTML."""
    return _START.match(start) is not None


def read_outline(text: str) -> PageOutline:
    """Parse a page's outline; damaged HTML is read as far as possible."""
    outline = PageOutline()
    outline.feed(text)
    outline.close()
    return outline


def error_title(outline: PageOutline, more: Sequence[str] = ()) -> str | None:
    """Return the title or first heading if it is that of an error or login page, else None.

    Args:
        outline: The page. Some titles, such as `Access denied`, count on short pages only.
        more: Further regular expressions of such titles.
    """
    patterns = [*_ERROR_TITLES, *more, *(_SHORT_ERROR_TITLES if outline.characters < _SHORT_PAGE else ())]
    for title in (outline.title, outline.heading):
        shown = " ".join(title.split())[:200]
        if any(re.search(pattern, shown, re.IGNORECASE) for pattern in patterns):
            return shown[:80]
    return None
