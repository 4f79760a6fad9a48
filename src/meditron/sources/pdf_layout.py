"""Paragraphs and headings of a PDF file: removes running heads and feet, and joins the lines of its pages."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from meditron.sources.pdf_process import Line

__all__ = ["Paragraph", "find_paragraphs", "join_hyphenated", "remove_running_lines"]

_EDGE_LINES = 3  # running heads and feet are among the first and last lines of a page
_MIN_REPEATS = 3
_REPEAT_SHARE = 0.5
_SAME_BASELINE = 0.5  # of the font size
_PARAGRAPH_GAP = 1.35  # of the usual distance of two lines
_HEADING_SIZE = 1.12  # of the size of the text
_LONGEST_HEADING = 150  # characters
_SHORT_LINE = 0.85  # of the text's width; a shorter line that ends a sentence ends the paragraph
_NUMBERS = re.compile(r"[0-9]+|\b[ivxlc]+\b")
_PAGE_NUMBER = re.compile(
    r"(?:page |p\. ?|[-–|] ?)?(?:#|[ivxlc]+)(?: ?(?:of|/) ?#)?(?: ?[-–|])?", re.IGNORECASE
)
_ITEM = re.compile(r"(?:[•▪◦●■‣∙·*–-]|\(?(?:[0-9]{1,2}|[a-z])[.)])\s")
_BULLET = re.compile(r"^[•▪◦●■‣∙·]\s*")
_SENTENCE_END = re.compile(r"[.!?:;]['\"”’)\]]?$")
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_BEFORE_HYPHEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*$")
_AFTER_HYPHEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
# Prefixes that keep their hyphen: `co-amoxiclav`, `non-steroidal`, `beta-blocker`, `low-dose`.
_PREFIXES = frozenset({
    "alpha", "anti", "beta", "co", "cross", "dose", "double", "evidence", "ex", "first", "follow", "gamma",
    "half", "health", "high", "kappa", "long", "low", "mid", "non", "one", "placebo", "quality", "self",
    "second", "short", "single", "three", "two", "well", "year",
})  # fmt: skip


class Paragraph(NamedTuple):
    """A paragraph, list item or heading."""

    text: str
    level: int
    """0 for text; 1 for the largest headings, 2 for the next size and so on."""
    item: bool
    """True for an item of a list."""


def remove_running_lines(pages: Sequence[list[Line]]) -> list[list[Line]]:
    """Remove the lines at the top and bottom of the pages that repeat on others, and page numbers.

    A line repeats if its text without numbers is, at about the same height, in the margin and among the first
    or last three lines of at least three pages and half of the pages. Lines in larger type than the text are
    headings, and no line between them and the text is removed.
    """
    text_size = _text_size([line for page in pages for line in page])
    edges: Counter[tuple[str, int]] = Counter()
    for page in pages:
        edges.update({_edge_key(page[i]) for edge in _edges(page) for i in edge})
    needed = max(_MIN_REPEATS, _REPEAT_SHARE * len(pages))
    kept = []
    for page in pages:
        running = set()
        for edge in _edges(page):
            for i in edge:
                repeats = _repeats(edges, page[i]) >= needed or _is_page_number(page, i, len(pages))
                if not repeats or page[i].size > _HEADING_SIZE * text_size:
                    break
                running.add(i)
        kept.append([line for i, line in enumerate(page) if i not in running])
    return kept


def _edges(page: list[Line]) -> tuple[list[int], list[int]]:
    """Return the positions of the lines in the upper and in the lower margin, each from the edge inwards."""
    by_height = sorted(range(len(page)), key=lambda i: -page[i].baseline)
    upper = [i for i in by_height if page[i].margin > 0]
    lower = [i for i in reversed(by_height) if page[i].margin < 0]
    return upper[:_EDGE_LINES], lower[:_EDGE_LINES]


def _edge_key(line: Line) -> tuple[str, int]:
    return _NUMBERS.sub("#", line.text.lower()), round(line.baseline / 4)


def _repeats(edges: Counter[tuple[str, int]], line: Line) -> int:
    text, height = _edge_key(line)
    return sum(edges[text, near] for near in (height - 1, height, height + 1))


def _is_page_number(page: list[Line], index: int, page_count: int) -> bool:
    text = _NUMBERS.sub("#", page[index].text.lower())
    heights = [line.baseline for line in page]
    outermost = page[index].baseline in {min(heights), max(heights)}
    return page_count > 1 and outermost and _PAGE_NUMBER.fullmatch(text) is not None


def find_paragraphs(pages: Sequence[list[Line]]) -> list[Paragraph]:
    """Join the lines of all pages to paragraphs; lines in larger type become headings."""
    lines = [line for page in pages for line in page]
    if not lines:
        return []
    text_size = _text_size(lines)
    bold_text = sum(len(line.text) for line in lines if line.bold) > 0.5 * sum(
        len(line.text) for line in lines
    )
    words = Counter(word.lower() for line in lines for word in _WORD.findall(line.text))
    groups = list(_group_lines(pages, text_size))
    heading_sizes = sorted({_size(group) for group in groups if _is_large(group, text_size)}, reverse=True)
    levels = {size: level for level, size in enumerate(heading_sizes, start=1)}
    paragraphs = []
    for group in groups:
        level = levels.get(_size(group), 0)
        if not level and not bold_text and _is_bold_heading(group):
            level = len(levels) + 1
        text = _BULLET.sub("- ", join_lines(group, words))
        paragraphs.append(Paragraph(text, min(level, 6), not level and _ITEM.match(text) is not None))
    return paragraphs


def _text_size(lines: Sequence[Line]) -> float:
    """Return the font size of most characters; 0 without lines."""
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[round(line.size, 1)] += len(line.text)
    return max(sizes, key=lambda size: (sizes[size], -size), default=0.0)


def _size(group: list[Line]) -> float:
    return max(round(line.size, 1) for line in group)


def _is_large(group: list[Line], text_size: float) -> bool:
    length = sum(len(line.text) for line in group)
    has_letter = any(character.isalpha() for line in group for character in line.text)
    return (
        min(line.size for line in group) > _HEADING_SIZE * text_size
        and length <= _LONGEST_HEADING
        and has_letter
    )


def _is_bold_heading(group: list[Line]) -> bool:
    text = group[-1].text
    length = sum(len(line.text) for line in group)
    is_phrase = len(group) <= 2 and length <= _LONGEST_HEADING and not text.endswith((".", ",", ";"))
    return is_phrase and all(line.bold for line in group) and any(map(str.isalpha, text))


def _group_lines(pages: Sequence[list[Line]], text_size: float) -> Iterator[list[Line]]:
    gaps = [
        upper.baseline - lower.baseline
        for page in pages
        for upper, lower in pairwise(page)
        if 0.5 * text_size < upper.baseline - lower.baseline < 3 * text_size
    ]
    spacing = median(gaps) if gaps else 1.2 * text_size
    group: list[Line] = []
    width = 0.0
    for page in pages:
        width = max((line.right - line.left for line in page), default=0.0)
        for number, line in enumerate(page):
            if group and (_begins_paragraph(group, line, spacing, width, new_page=number == 0)):
                yield group
                group = []
            group.append(line)
    if group:
        yield group


def _begins_paragraph(group: list[Line], line: Line, spacing: float, width: float, *, new_page: bool) -> bool:
    last = group[-1]
    if last.hyphenated:
        return False
    if abs(last.size - line.size) > 0.1 * last.size or last.bold != line.bold:
        # Emphasis and raised marks change within a line, headings only between lines.
        same_line = abs(last.baseline - line.baseline) < _SAME_BASELINE * max(last.size, line.size)
        return new_page or not same_line
    if _ITEM.match(line.text):
        return True
    down = last.baseline - line.baseline
    if new_page or down < 0:  # the next page or column
        return _SENTENCE_END.search(last.text) is not None
    if down > _PARAGRAPH_GAP * spacing * max(1.0, last.size / max(line.size, 1)):
        return True
    indented = line.left - last.left > 0.8 * line.size and len(group) > 1 and not _ITEM.match(group[0].text)
    ends = last.right - last.left < _SHORT_LINE * width and _SENTENCE_END.search(last.text) is not None
    return down > 0 and (indented or ends)


def join_lines(group: Sequence[Line], words: Counter[str]) -> str:
    """Join the lines of a paragraph with blanks, or as hyphenated words."""
    text = group[0].text
    for last, line in pairwise(group):
        text = join_hyphenated(text, line.text, words) if last.hyphenated else f"{text} {line.text}"
    return text + ("-" if group[-1].hyphenated else "")


def join_hyphenated(before: str, after: str, words: Counter[str]) -> str:
    """Join two lines of which the first ended with a hyphen, which is not in `before`.

    The hyphen is kept if the document has the word with a hyphen elsewhere, and removed if it has the word
    without. Otherwise it is kept after capitals, digits, single letters and prefixes such as `non`, and
    before capitals and digits (`IL-6`, `X-ray`, `TNF-alpha`, `co-amoxiclav`), and removed between other
    letters.

    Args:
        before: The text up to the hyphen.
        after: The text of the next line.
        words: The words within the lines of the document, in lower case, with their numbers.
    """
    start, end = _BEFORE_HYPHEN.search(before), _AFTER_HYPHEN.match(after)
    if start is None or end is None:
        return f"{before}-{after}" if end is not None or start is not None else f"{before}- {after}"
    first, second = start[0], end[0]
    joined, hyphenated = words[f"{first}{second}".lower()], words[f"{first}-{second}".lower()]
    if joined != hyphenated:
        keep = hyphenated > joined
    else:
        part = first.rpartition("-")[2]
        plain = part[1:].islower() and part.isalpha() and second.isalpha() and second.islower()
        keep = not plain or part.lower() in _PREFIXES or "-" in first
    return f"{before}-{after}" if keep else before + after
