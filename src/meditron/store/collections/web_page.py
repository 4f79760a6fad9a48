"""Checks of a fetched page or PDF: a server may send an error page with status 200, or half a file."""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urldefrag, urljoin

from meditron.store.collections.web_client import WebResponse
from meditron.store.html_page import HTML_TYPES, error_title, is_html_page, read_outline

__all__ = ["Page", "PageError", "check_page", "page_links"]

_META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w-]{2,40})", re.IGNORECASE)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HEAD_TAG = re.compile(r"<head(?:\s[^>]*)?>", re.IGNORECASE)
_TAG = re.compile(r"<[a-z][a-z0-9]*[\s/>]", re.IGNORECASE)
_HEAD = 4_096
_PDF_END = 4_096  # %%EOF is in the last bytes; some files have padding after it


class PageError(Exception):
    """A page that must not become a document; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Page:
    """A verified file: its kind and its bytes, HTML in an encoding that the file itself states."""

    kind: Literal["html", "pdf"]
    body: bytes


def check_page(
    response: WebResponse, kind: str | None, error_titles: Sequence[str], min_characters: int
) -> Page:
    """Return the verified content of a response.

    Args:
        response: The response.
        kind: `html` or `pdf` if the file must be of that kind.
        error_titles: Further regular expressions of the titles of error pages.
        min_characters: Minimum number of visible characters of an HTML page.

    Raises:
        PageError: The content is an error page, of another kind, or cut off.
    """
    body = response.body
    if response.status >= 400:
        raise PageError(f"the server answered {response.status}")
    if not body.strip():
        raise PageError("empty response")
    if b"%PDF-" in body[:1024] and not is_html_page(body[:_HEAD]):
        if kind == "html":
            raise PageError("a PDF where an HTML page was promised")
        if b"%%EOF" not in body[-_PDF_END:] and not response.complete:
            raise PageError("a PDF that is cut off")
        return Page("pdf", body[body.index(b"%PDF-") :])
    recognised = is_html_page(body[:_HEAD])
    if not recognised and response.content_type not in HTML_TYPES:
        raise PageError(f"neither HTML nor PDF but {response.content_type or 'of no stated type'}")
    text, stated = _decode(response)
    if not recognised and not _TAG.search(text):  # many servers call all that they do not know HTML
        raise PageError("neither HTML nor PDF: no element in it")
    outline = read_outline(text)
    if title := error_title(outline, error_titles):
        raise PageError(f"an error page with status {response.status}: '{title}'")
    if kind == "pdf":
        raise PageError("an HTML page where a PDF was promised")
    if outline.characters < min_characters:
        raise PageError(f"a page with little text: {outline.characters:,} characters")
    return Page("html", body if stated and recognised else _self_contained(text))


def page_links(response: WebResponse) -> list[str]:
    """Return the absolute addresses of a page's links, in order, without fragments and duplicates."""
    outline = read_outline(_decode(response)[0])
    base = urljoin(response.address, outline.base)
    found = []
    for link in outline.links:
        try:
            found.append(urldefrag(urljoin(base, link.strip())).url)
        except ValueError:  # not an address
            continue
    return list(dict.fromkeys(found))


def _decode(response: WebResponse) -> tuple[str, bool]:
    """Decode an HTML page by its byte order mark, its header or its meta element, in this order.

    Returns:
        The text, and whether the file itself states this encoding.
    """
    body = response.body
    for mark, name in _BYTE_ORDER_MARKS:
        if body.startswith(mark):
            return body.decode(name, "replace").removeprefix("\ufeff"), True
    meta = _META_CHARSET.search(body[:_HEAD])
    own = _codec_name(meta[1].decode("ascii", "replace")) if meta else None
    encoding = _codec_name(response.charset) or own
    if encoding is None:
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            encoding = "cp1252"  # what browsers assume
    return body.decode(encoding, "replace"), encoding == own


def _codec_name(encoding: str | None) -> str | None:
    """Return Python's name of an encoding; None if it is unknown, or no encoding of text (`hex`, `idna`)."""
    try:
        name = codecs.lookup(encoding or "").name
        b"text".decode(name, "replace")
    except (LookupError, ValueError):
        return None
    return name


def _self_contained(text: str) -> bytes:
    """Return a page in UTF-8 that states its type and encoding: the header that did is not stored."""
    if not is_html_page(text[:_HEAD].encode("utf-8", "replace")[:_HEAD]):
        text = f"<!DOCTYPE html><html>{text}"
    head = _HEAD_TAG.search(text)
    if head is None:
        return codecs.BOM_UTF8 + text.encode("utf-8", "replace")
    statement = '<meta charset="utf-8">'
    return f"{text[: head.end()]}{statement}{text[head.end() :]}".encode("utf-8", "replace")
