"""Reader of HTML pages: one document per page, its main content with headings, lists and tables.

The id of a document is `html:` and its file's name. Pages without content are counted as skipped: error and
login pages, and pages without text. Fields of `meta`: `date`, `licence` (the page's own statement) and `url`
(its canonical address), those that the page states.
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from meditron.core.errors import InputError, MissingExtra
from meditron.sources.document import Document, Readable, ReadLog, Section
from meditron.sources.html_blocks import Block, iterate_blocks
from meditron.sources.html_main import main_content
from meditron.sources.html_metadata import page_language, page_metadata, page_title
from meditron.sources.html_tree import Page, TooManyElements, parse_page
from meditron.sources.outline import Outline
from meditron.sources.streams import check_length, path_as_text, read_whole
from meditron.store.html_page import is_html_page

__all__ = ["fragment_blocks", "read", "recognises"]

_LARGEST = 32 << 20  # bytes of a page; pages with embedded images have some megabytes
_META_CHARSET = re.compile(rb"<meta\b[^>]*?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_HEAD_BYTES = 4096
# Segments of a title that name an error, complete: `Babinski sign in infants` is a document.
_ERROR_TITLE = re.compile(
    r"(?:error|http)?\s*(?:4[0-9]{2}|5[0-9]{2})?\s*[:.!-]?\s*(?:the )?(?:requested )?"
    r"(?:(?:page|file|url|resource) )?(?:was |is |could ?n[o']t be |cannot be )?"
    r"(?:not found|found|unavailable|not available|access denied|permission denied|forbidden|unauthorized|"
    r"service unavailable|service temporarily unavailable|bad gateway|gateway time-?out|bad request|"
    r"internal server error|server error|too many requests|error|oops|just a moment|attention required|"
    r"security check|captcha|are you (?:a )?(?:robot|human)|verify(?:ing)? (?:that )?you are (?:a )?human|"
    r"log ?in|log ?on|sign ?in|sign in required|login required|please log ?in|"
    r"session (?:has )?expired|redirecting|"
    r"under maintenance|maintenance)?[!.\s…]*",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"\s+[|–—:·»-]\s+|\|")
_FEWEST_WORDS = 150  # a page with more words of content is a document, whatever its title says


def recognises(start: bytes) -> bool:
    """Return True if a file that starts with these bytes is an HTML page."""
    return is_html_page(start)


def read(
    file: Readable,
    log: ReadLog | None = None,
    name: str | None = None,
    *,
    keep: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
) -> Iterator[Document]:
    """Yield the page as one document; nothing if it is an error page or has no content.

    Args:
        file: The page.
        log: Log to which a page without content is added, by reason.
        name: Name of the file in the document's id; default: `file.name`.
        keep: CSS selectors of the main content; default: found by the page's structure.
        drop: CSS selectors of elements to leave out.

    Raises:
        InputError: The page is larger than 32 MiB, has more than a million elements, or is not text in the
            encoding that it declares.
        SourceError: A selector is not valid.
    """
    text = _decode(file, read_whole(file, _LARGEST))
    try:
        page = parse_page(text, keep, drop)
    except TooManyElements as error:
        raise InputError(file, str(error)) from error
    ranges, skipped = main_content(page)
    blocks = [block for start, end in ranges for block in iterate_blocks(page, start, end, skipped)]
    titles = [block.text for block in blocks if block.level == 1]
    title = page_title(page, titles)
    if reason := _reason_to_skip_page(page, title, blocks):
        if log is not None:
            log.skipped[reason] += 1
        return
    metadata = page_metadata(page)
    sections = _sections(blocks, title)
    check_length(file, sections)
    year = int(metadata["date"][:4]) if "date" in metadata else None
    identity = f"html:{name or path_as_text(Path(file.name))}"
    yield Document(identity, "html", title, sections, page_language(page), year, meta=metadata)


def fragment_blocks(html: str) -> list[Block]:
    """Return the blocks of a fragment of HTML, such as a field of a record, without leaving anything out."""
    page = parse_page(html)
    return list(iterate_blocks(page, 0, len(page.nodes)))


def _decode(file: Readable, data: bytes) -> str:
    """Return the text of a page: UTF-8 if the bytes are valid, else as declared, else as detected."""
    declared = _META_CHARSET.search(data[:_HEAD_BYTES])
    encoding = declared[1].decode("ascii") if declared else ""
    try:
        # Pages of ASCII bytes can be in ISO-2022-JP; other declared encodings contradict valid UTF-8.
        if not encoding.lower().startswith("iso-2022"):
            return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
    except ImportError as error:
        raise MissingExtra("resiliparse", "corpus") from error
    known = map_encoding_to_html5(encoding, fallback_utf8=False) if encoding else None
    chosen = (
        known if known and known.lower() not in {"utf-8", "utf-16le", "utf-16be"} else detect_encoding(data)
    )
    try:
        codec = codecs.lookup(chosen or "cp1252")
    except LookupError:
        codec = codecs.lookup("cp1252")
    if (at := data.find(b"\0")) >= 0 and not codec.name.startswith(("utf-16", "utf-32")):
        raise InputError(file, "a NUL byte, which HTML must not contain", place=f"byte {at:,}")
    return codec.decode(data, "replace")[0]


def _reason_to_skip_page(page: Page, title: str, blocks: list[Block]) -> str | None:
    words = sum(len(block.text.split()) for block in blocks)
    if not words:
        return "page without text"
    if words >= _FEWEST_WORDS:
        return None
    titles = [title, *(element.attributes["text"] for element in page.head if element.tag == "title")]
    segments = [segment.strip() for text in titles for segment in _SEPARATOR.split(text)]
    if any(segment and _ERROR_TITLE.fullmatch(segment) for segment in segments):
        return "error or login page"
    refreshes = (element.attributes.get("http-equiv", "").lower() == "refresh" for element in page.head)
    return "redirect page" if any(refreshes) and words < _FEWEST_WORDS // 5 else None


def _sections(blocks: list[Block], title: str) -> tuple[Section, ...]:
    outline = Outline()
    for block in blocks:
        if block.level == 1 and block.text == title:
            outline.add_heading(1, "")  # the title is no section's heading
        elif block.level:
            outline.add_heading(block.level, block.text)
        else:
            outline.add_text(block.text, tight=block.tight)
    return outline.sections()
