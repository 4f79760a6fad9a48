"""MediaWiki: the XML dumps of Wikipedia and its kin, current revisions, main namespace.

A document's id is `wiki:` and the page's id; its sections are the page's, labelled with their headings.
Kept: prose, link texts, lists, formulas and code as their source, and what the templates in `_WITH_TEXT` say.
Left out: all other templates, tables, references, galleries, files, categories, comments. `skipped` counts
redirects and pages of other namespaces. `meta`: `page`, `revision`, `timestamp`.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meditron.ground.errors import InputError, MissingExtra
from meditron.sources.document import Document, Section
from meditron.sources.streams import chunks

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["read", "recognises", "sections"]

_ROOT = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<mediawiki[\s>]")
_SPACE = re.compile(r"[ \t]+")
_BLANK_LINES = re.compile(r" ?\n ?(?:\n ?)+")
# Italic, bold or both; an apostrophe more than that is one.
_QUOTES = re.compile("('*?)(?:'{5}|'{3}|'{2})(?!')")
# What a template without text leaves, so that a parenthesis around it can be set right.
_GONE = "\0"
_NOTHING = re.compile(rf" ?\((?:[ ,;]*{_GONE})+[ ,;]*\)")
_OPENING = re.compile(rf"\((?:[ ,;]*{_GONE})+[ ,;]*")
_CLOSING = re.compile(rf"(?:[ ,;]*{_GONE})+[ ,;]*\)")
_MEDIA = re.compile(r"\s*(?:file|image|media|category)\s*:", re.IGNORECASE)
_LEFT_OUT = frozenset(
    {"ref", "references", "gallery", "table", "timeline", "imagemap", "graph", "score", "templatedata"}
    | {"indicator", "noinclude", "mapframe", "section", "categorytree", "inputbox", "style"}
)
_VERBATIM = frozenset({"math", "chem", "ce", "code", "source", "syntaxhighlight", "nowiki", "pre"})
# Templates whose arguments are the text that the reader of the page sees: which positional ones, in order.
_WITH_TEXT = {
    "convert": ("1", "2"),
    "cvt": ("1", "2"),
    "lang": ("2",),
    "nowrap": ("1",),
    "nobr": ("1",),
    "small": ("1",),
    "smallcaps": ("1",),
    "abbr": ("1",),
    "sup": ("1",),
    "sub": ("1",),
    "chem": ("1", "2", "3", "4", "5", "6"),
    "em": ("1",),
    "quote": ("1",),
    "cquote": ("1",),
    "blockquote": ("1",),
}


def recognises(start: bytes) -> bool:
    """Whether a file that starts so is a MediaWiki dump."""
    return _ROOT.match(start) is not None


def read(path: Path, skipped: Counter[str] | None = None, name: str | None = None) -> Iterator[Document]:
    """The articles of a dump, plain or compressed, in its order, in bounded memory.

    Raises InputError where the file is cut off or ill-formed, naming the line, or has a DOCTYPE.
    """
    skipped = Counter() if skipped is None else skipped
    for page in _pages(path):
        fields = {_name(child): child for child in page}
        revision = {_name(child): child.text or "" for child in fields.get("revision", ())}
        if _value(fields, "ns") != "0":
            skipped["other namespace"] += 1
        elif "redirect" in fields:
            skipped["redirect"] += 1
        else:
            number = _value(fields, "id")
            meta = {"page": number, "revision": revision.get("id"), "timestamp": revision.get("timestamp")}
            parts = tuple(sections(revision.get("text", "")))
            language = next(page.iterancestors()).get("{http://www.w3.org/XML/1998/namespace}lang")
            yield Document(
                f"wiki:{number}", "mediawiki", _value(fields, "title"), parts, language, None, meta
            )
        _forget(page)


def sections(wikitext: str) -> Iterator[Section]:
    """Wikitext to its sections of plain text; those without text are left out."""
    try:
        import mwparserfromhell as parser
    except ImportError as error:
        raise MissingExtra("mwparserfromhell", "corpus") from error
    label: str | None = None
    begun: list[str] = []
    # Quotes that do not pair, or pair across other markup, would make plain text of all that they span.
    for node in [*parser.parse(wikitext, skip_style_tags=True).nodes, None]:
        if node is not None and not isinstance(node, parser.nodes.Heading):
            begun.append(_node(node))
            continue
        if text := _tidy("".join(begun)):
            yield Section(text, label)
        begun = []
        label = _tidy(_text(node.title)) or None if node is not None else None


def _text(code: Any) -> str:  # noqa: ANN401  # mwparserfromhell has no types
    return "" if code is None else "".join(_node(node) for node in code.nodes)


def _node(node: Any) -> str:  # noqa: ANN401
    match type(node).__name__:
        case "Text":
            return _QUOTES.sub(r"\1", str(node.value))
        case "HTMLEntity":
            return str(node.normalize())
        case "Wikilink":
            return _link(node)
        case "ExternalLink":
            return _text(node.title) if node.brackets else str(node.url)
        case "Template":
            return _template(node)
        case "Heading":
            return f"\n{_text(node.title)}\n"
        case "Tag":
            return _tag(node)
        case _:  # comments, and the arguments of templates
            return ""


def _link(node: Any) -> str:  # noqa: ANN401
    title = str(node.title)
    if _MEDIA.match(title):
        return ""
    return _text(node.title).lstrip(":") if node.text is None else _text(node.text)


def _template(node: Any) -> str:  # noqa: ANN401
    wanted = _WITH_TEXT.get(str(node.name).strip().lower(), ())
    return " ".join(_text(node.get(name).value).strip() for name in wanted if node.has(name)) or _GONE


def _tag(node: Any) -> str:  # noqa: ANN401
    name = str(node.tag).strip().lower()
    if name in _LEFT_OUT:
        return ""
    if name in {"br", "hr"}:
        return "\n"
    if name == "li" and node.wiki_markup:
        return "- "
    if name in _VERBATIM:
        return str(node.contents or "")
    return _text(node.contents)


def _tidy(text: str) -> str:
    if _GONE in text:
        text = _CLOSING.sub(")", _OPENING.sub("(", _NOTHING.sub("", text))).replace(_GONE, "")
    lines = (_SPACE.sub(" ", line).strip() for line in text.replace("\xa0", " ").split("\n"))
    kept = "\n".join("" if line.strip("-*• ") == "" else line for line in lines)
    return _BLANK_LINES.sub("\n\n", kept).strip()


def _pages(path: Path) -> "Iterator[etree._Element]":
    try:
        from lxml import etree
    except ImportError as error:
        raise MissingExtra("lxml", "corpus") from error
    parser = etree.XMLPullParser(
        events=("start", "end"), resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False
    )
    try:
        for chunk in chunks(path):
            parser.feed(chunk)
            yield from _whole(path, parser)
        parser.close()
    except etree.XMLSyntaxError as error:
        raise InputError(path, f"ill-formed XML: {error.msg}", place=f"line {error.lineno:,}") from error


def _whole(path: Path, parser: "etree.XMLPullParser") -> "Iterator[etree._Element]":
    events: Any = parser.read_events()
    for event, element in events:
        if event == "start" and element.getparent() is None:
            if element.getroottree().docinfo.internalDTD is not None:
                hint = "dumps have none; such declarations are how an XML bomb is made"
                raise InputError(path, "it has a DOCTYPE", place="prologue", hint=hint)
            if _name(element) != "mediawiki":
                raise InputError(path, f"no MediaWiki dump: its root is {_name(element)}", place="prologue")
        elif event == "end" and _name(element) == "page":
            yield element


def _name(element: "etree._Element") -> str:
    return str(element.tag).rpartition("}")[2]


def _value(fields: "dict[str, etree._Element]", name: str) -> str:
    return (fields[name].text or "").strip() if name in fields else ""


def _forget(page: "etree._Element") -> None:
    """Free the page and what stands before it."""
    page.clear()
    parent = page.getparent()
    while parent is not None and page.getprevious() is not None:
        del parent[0]
