"""Reader of MediaWiki XML dumps (Wikipedia and similar wikis): current revisions of the main namespace.

The id of a document is `wiki:` and the id of the page. The sections are those of the page; `wikitext`
explains their labels and paths. Redirects, pages of other namespaces and pages with too much markup are
counted as skipped; for pages with too much markup a warning names the title. The names of namespaces are read
from the dump's `<siteinfo>`. If a page has no `<ns>`, as in dumps before 2010, its title decides the
namespace. Fields of `meta`: `page`, `revision`, `timestamp`.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from meditron.core.console import warn
from meditron.core.errors import InputError, MissingExtra
from meditron.sources.document import Document, Readable, ReadLog
from meditron.sources.streams import chunks
from meditron.sources.wikitext import TooMuchMarkup, WikiSite, parse_sections

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["read", "recognises"]

_ROOT = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<mediawiki[\s>]", re.DOTALL)
_REDIRECT = re.compile(r"\s*#\s?[^\W\d_]+\s*:?\s*\[\[[^\]\n]+\]\]")
_LONGEST_REDIRECT = 1_000  # characters; a longer page that looks like a redirect is a numbered list
# Maximum bytes of a page, and of anything between two pages. libxml2 limits the text of a page to 10 MB.
_LARGEST = 64 << 20


def recognises(start: bytes) -> bool:
    """Return True if a file that starts with these bytes is a MediaWiki dump."""
    return _ROOT.match(start) is not None


def read(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the articles of a plain or compressed dump in order, in bounded memory.

    Args:
        file: The dump.
        log: Log to which the skipped pages are added.
        name: Unused, because every page has an id.

    Raises:
        InputError: The dump is truncated or ill-formed, has a DOCTYPE, or an element is too large; the error
            names the line.
    """
    skipped = (log or ReadLog()).skipped
    site = WikiSite({})
    for element in _iterate_elements(file):
        if _local_name(element) == "siteinfo":
            site = _parse_siteinfo(element)
            continue
        fields = {_local_name(child): child for child in element}
        revision = {_local_name(child): child.text or "" for child in fields.get("revision", ())}
        title, text = _child_text(fields, "title"), revision.get("text", "")
        if _page_namespace(fields, site) != 0:
            skipped["other namespace"] += 1
        elif "redirect" in fields or (len(text) <= _LONGEST_REDIRECT and _REDIRECT.match(text)):
            skipped["redirect"] += 1
        else:
            number = _child_text(fields, "id")
            meta = {"page": number, "revision": revision.get("id"), "timestamp": revision.get("timestamp")}
            try:
                parts = tuple(parse_sections(text, site))
            except TooMuchMarkup as error:
                skipped["too much markup"] += 1
                warn(f"{file.name}: the page '{title}' (id {number}) is left out: {error}")
            else:
                language = next(element.iterancestors()).get("{http://www.w3.org/XML/1998/namespace}lang")
                yield Document(f"wiki:{number}", "mediawiki", title, parts, language, meta=meta)
        _free_pages_up_to(element)


def _parse_siteinfo(element: "etree._Element") -> WikiSite:
    root = element.getparent()
    language = None if root is None else root.get("{http://www.w3.org/XML/1998/namespace}lang")
    names = (child for child in element.iter() if _local_name(child) == "namespace")
    keys = {str(child.get("key")): child.text or "" for child in names}
    return WikiSite({int(key): name for key, name in keys.items() if key.lstrip("-").isdecimal()}, language)


def _page_namespace(fields: "dict[str, etree._Element]", site: WikiSite) -> int:
    stated = _child_text(fields, "ns")
    return int(stated) if stated.lstrip("-").isdecimal() else site.namespace_of(_child_text(fields, "title"))


def _iterate_elements(file: Readable) -> "Iterator[etree._Element]":
    try:
        from lxml import etree
    except ImportError as error:
        raise MissingExtra("lxml", "corpus") from error
    parser = etree.XMLPullParser(
        events=("start", "end"), resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False
    )
    since = done = 0
    try:
        for chunk in chunks(file):
            parser.feed(chunk)
            since += len(chunk)
            for element in _completed_elements(file, parser):
                yield element
                since, done = 0, done + 1
            if since > _LARGEST:
                hint = "dumps of current revisions have smaller ones: pages-articles"
                problem = f"a page of more than {_LARGEST >> 20} MiB"
                raise InputError(file, problem, place=f"after {done:,} pages", hint=hint)
        parser.close()
    except etree.XMLSyntaxError as error:
        raise InputError(file, f"ill-formed XML: {error.msg}", place=f"line {error.lineno:,}") from error


def _completed_elements(file: Readable, parser: "etree.XMLPullParser") -> "Iterator[etree._Element]":
    parse_events: Any = parser.read_events()
    for event, element in parse_events:
        if event == "start" and element.getparent() is None:
            if element.getroottree().docinfo.internalDTD is not None:
                hint = "dumps have none; XML bombs are made of its declarations"
                raise InputError(file, "it has a DOCTYPE", place="prologue", hint=hint)
            if _local_name(element) != "mediawiki":
                raise InputError(
                    file, f"not a MediaWiki dump: its root is {_local_name(element)}", place="prologue"
                )
        elif event == "end" and _local_name(element) in {"page", "siteinfo"}:
            yield element


def _local_name(element: "etree._Element") -> str:
    return str(element.tag).rpartition("}")[2]


def _child_text(fields: "dict[str, etree._Element]", name: str) -> str:
    return (fields[name].text or "").strip() if name in fields else ""


def _free_pages_up_to(page: "etree._Element") -> None:
    """Remove a page and the pages before it from the XML tree, to bound memory."""
    page.clear()
    parent = page.getparent()
    while parent is not None and page.getprevious() is not None:
        del parent[0]
