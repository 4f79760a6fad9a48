"""MediaWiki: the XML dumps of Wikipedia and similar wikis, current revisions, main namespace.

A document's id is `wiki:` and the page's id. Its sections are the page's; a section's label is its heading,
its path the headings above (`wikitext`). Redirects, pages of other namespaces and pages with too much markup
are counted as skipped; the last get a warning with their title. The names of namespaces come from the dump's
`<siteinfo>`; without `<ns>`, as in dumps before 2010, a page's namespace is that of its title. `meta`:
`page`, `revision`, `timestamp`.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from meditron.core.console import warn
from meditron.core.errors import InputError, MissingExtra
from meditron.sources.document import Document, Readable, ReadLog
from meditron.sources.streams import chunks
from meditron.sources.wikitext import Site, TooMuchMarkup, sections

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["read", "recognises"]

_ROOT = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<mediawiki[\s>]", re.DOTALL)
_REDIRECT = re.compile(r"\s*#\s?[^\W\d_]+\s*:?\s*\[\[[^\]\n]+\]\]")
_LONGEST_REDIRECT = 1_000  # characters; a list may begin as a redirect does
# Bytes of a page, and of anything between two pages; libxml2 limits a page's text to 10 MB.
_LARGEST = 64 << 20


def recognises(start: bytes) -> bool:
    """Return true for a file that starts as a MediaWiki dump."""
    return _ROOT.match(start) is not None


def read(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the articles of a dump, plain or compressed, in its order, in bounded memory.

    Args:
        file: The dump.
        log: Counts the skipped pages.
        name: Unused: every page has an id.

    Raises:
        InputError: The dump is cut off, ill-formed, has a DOCTYPE, or an element is above the limits; the
            place is the line.
    """
    skipped = (log or ReadLog()).skipped
    site = Site({})
    for element in _elements(file):
        if _name(element) == "siteinfo":
            site = _site(element)
            continue
        fields = {_name(child): child for child in element}
        revision = {_name(child): child.text or "" for child in fields.get("revision", ())}
        title, text = _value(fields, "title"), revision.get("text", "")
        if _namespace(fields, site) != 0:
            skipped["other namespace"] += 1
        elif "redirect" in fields or (len(text) <= _LONGEST_REDIRECT and _REDIRECT.match(text)):
            skipped["redirect"] += 1
        else:
            number = _value(fields, "id")
            meta = {"page": number, "revision": revision.get("id"), "timestamp": revision.get("timestamp")}
            try:
                parts = tuple(sections(text, site))
            except TooMuchMarkup as error:
                skipped["too much markup"] += 1
                warn(f"{file.name}: the page '{title}' (id {number}) is left out: {error}")
            else:
                language = next(element.iterancestors()).get("{http://www.w3.org/XML/1998/namespace}lang")
                yield Document(f"wiki:{number}", "mediawiki", title, parts, language, meta=meta)
        _forget(element)


def _site(element: "etree._Element") -> Site:
    root = element.getparent()
    language = None if root is None else root.get("{http://www.w3.org/XML/1998/namespace}lang")
    names = (child for child in element.iter() if _name(child) == "namespace")
    keys = {str(child.get("key")): child.text or "" for child in names}
    return Site({int(key): name for key, name in keys.items() if key.lstrip("-").isdecimal()}, language)


def _namespace(fields: "dict[str, etree._Element]", site: Site) -> int:
    stated = _value(fields, "ns")
    return int(stated) if stated.lstrip("-").isdecimal() else site.namespace(_value(fields, "title"))


def _elements(file: Readable) -> "Iterator[etree._Element]":
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
            for element in _complete(file, parser):
                yield element
                since, done = 0, done + 1
            if since > _LARGEST:
                hint = "dumps of current revisions have smaller ones: pages-articles"
                problem = f"a page of more than {_LARGEST >> 20} MiB"
                raise InputError(file, problem, place=f"after {done:,} pages", hint=hint)
        parser.close()
    except etree.XMLSyntaxError as error:
        raise InputError(file, f"ill-formed XML: {error.msg}", place=f"line {error.lineno:,}") from error


def _complete(file: Readable, parser: "etree.XMLPullParser") -> "Iterator[etree._Element]":
    events: Any = parser.read_events()
    for event, element in events:
        if event == "start" and element.getparent() is None:
            if element.getroottree().docinfo.internalDTD is not None:
                hint = "dumps have none; XML bombs are made of its declarations"
                raise InputError(file, "it has a DOCTYPE", place="prologue", hint=hint)
            if _name(element) != "mediawiki":
                raise InputError(
                    file, f"not a MediaWiki dump: its root is {_name(element)}", place="prologue"
                )
        elif event == "end" and _name(element) in {"page", "siteinfo"}:
            yield element


def _name(element: "etree._Element") -> str:
    return str(element.tag).rpartition("}")[2]


def _value(fields: "dict[str, etree._Element]", name: str) -> str:
    return (fields[name].text or "").strip() if name in fields else ""


def _forget(page: "etree._Element") -> None:
    """Free the page's tree and those of the pages before it."""
    page.clear()
    parent = page.getparent()
    while parent is not None and page.getprevious() is not None:
        del parent[0]
