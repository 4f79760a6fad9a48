"""Plain text of a MEDLINE element, from bytes that match the grammar or from lxml's tree.

White space is collapsed to single blanks. Sub- and superscripts and MathML become plain text (see `scripts`
and `mathml`); all other markup is removed.
"""

import re
from codecs import utf_8_decode
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from stringzilla import find, find_first_of

from meditron.core.errors import MissingExtra
from meditron.sources.mathml import math_text
from meditron.sources.scripts import END, SUB, SUP, render_sup_and_sub_marks

try:
    from lxml import etree
except ImportError as missing:
    raise MissingExtra("lxml", "corpus") from missing

__all__ = [
    "NeedsLxml",
    "cache_short_inputs",
    "cached_text_of",
    "element_text",
    "is_legal_xml",
    "text_of",
    "texts_of",
    "unescape_references",
    "xml_parser",
]

_REFERENCE = re.compile(rb"&(?:#([0-9]{1,7})|#x([0-9A-Fa-f]{1,6})|(amp|lt|gt|quot|apos));|&")
_NAMED = (b"lt;", b"gt;", b"amp;", b"quot;", b"apos;")
_ENTITIES = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_SPECIAL = b"\t\n\r&<"
_BLANKS = bytes.maketrans(b"\t\n\r", b"   ")
_CONTROL = bytes(range(0x20)).translate(None, b"\t\n\r")
_SUSPICIOUS = _CONTROL + b"\xef"  # 0xEF is the first byte of U+FFFE and U+FFFF
_WIDE_SPACE = re.compile(rb"\xe2(?:\x80[\x80-\x8a\xa8\xa9\xaf]|\x81\x9f)")  # U+2000 to U+205F
_RARE_SPACE_STARTS = b"\xe1\xe3"  # first bytes of U+1680 and U+3000, but also of many letters
_TAG = re.compile(rb"(</?(?:[biu]|su[bp])>)")
_END_TAGS = {b"<%s>" % name: b"</%s>" % name for name in (b"i", b"b", b"u", b"sup", b"sub")}
_SCRIPT_MARKS = {b"<sup>": SUP, b"<sub>": SUB}
_MAX_PIECES = 400  # more text and tags than this are left to lxml, which limits nesting to 256 levels
_MAX_CACHED = 1000  # maximum bytes of a cached input
_SEPARATOR = b"\x04"  # separates joined texts; it is illegal in XML, so no text contains it
_NOT_ASCII = bytes(range(0x80, 0x100))
_PIECE = 8 << 10


_Result = TypeVar("_Result")


class NeedsLxml(Exception):
    """A citation that only lxml can read."""


def xml_parser() -> etree.XMLParser:
    """Return an lxml parser that expands no entities, opens no files or URLs, and refuses huge nodes."""
    return etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


def is_legal_xml(data: bytes, start: int, end: int) -> bool:
    """Return True if data[start:end] has only characters and references that XML allows, and no `]]>`."""
    if find_first_of(data, _SUSPICIOUS, start, end) >= 0 and (
        find_first_of(data, _CONTROL, start, end) >= 0
        or find(data, b"\xef\xbf\xbe", start, end) >= 0  # U+FFFE
        or find(data, b"\xef\xbf\xbf", start, end) >= 0
    ):
        return False
    if find(data, b"]]>", start, end) >= 0:
        return False
    view = memoryview(data)
    at = start
    try:
        while (at := find_first_of(data, _NOT_ASCII, at, end)) >= 0:  # in pieces that fit in the CPU cache
            at += utf_8_decode(view[at : min(at + _PIECE, end)], "strict", at + _PIECE >= end)[1]
    except UnicodeDecodeError:
        return False
    at = find(data, b"&", start, end)
    while at >= 0:
        if not data.startswith(_NAMED, at + 1):
            reference = _REFERENCE.match(data, at, end)
            if reference is None or _referenced_character(reference) is None:
                return False
        at = find(data, b"&", at + 1, end)
    return True


def text_of(raw: bytes) -> str:
    """Return the plain text of an element, given its bytes, which match `medline_grammar`.

    Raises:
        NeedsLxml: The markup does not nest.
    """
    return texts_of([raw])[0]


def texts_of(raws: list[bytes]) -> list[str]:
    """Return the plain text of several elements, faster than with one call of `text_of` per element."""
    raw = _SEPARATOR.join(raws)
    if find_first_of(raw, _SPECIAL) >= 0:
        if find(raw, b"<") >= 0:
            pieces = _TAG.split(raw)  # text, tag, text, tag, …, text
            if find(raw, b"&#") >= 0 or not _resolve_tag_pairs(pieces):
                return list(map(_text_with_nested_tags, raws))
            raw = b"".join(pieces)
        if find(raw, b"&") >= 0:
            raw = unescape_references(raw)
        if find_first_of(raw, b"\t\n\r") >= 0:
            raw = raw.translate(_BLANKS)
    if not raw.isascii():
        raw = _replace_wide_spaces(raw)
    texts = raw.decode().split(_SEPARATOR.decode())
    if find(raw, b"  ") >= 0:
        return [" ".join(text.split()) for text in texts]
    return [text.strip(" ") for text in texts]


def cache_short_inputs(function: Callable[[bytes], _Result]) -> Callable[[bytes], _Result]:
    """Cache a function's results for short inputs, which repeat often; long ones would fill the memory."""
    known = lru_cache(maxsize=1 << 13)(function)
    return lambda raw: known(raw) if len(raw) <= _MAX_CACHED else function(raw)


cached_text_of = cache_short_inputs(text_of)


def _resolve_tag_pairs(pieces: list[bytes]) -> bool:
    """Convert superscripts and subscripts to plain text and remove other tags, in place.

    Args:
        pieces: Text, tag, text, tag, …, text.

    Returns:
        False if a start tag is not directly followed by its end tag; some pieces may be converted then.
    """
    for at in range(1, len(pieces), 4):
        start = pieces[at]
        if at + 2 >= len(pieces) or _END_TAGS.get(start) != pieces[at + 2]:
            return False
        inner = pieces[at + 1]
        if find(inner, _SEPARATOR) >= 0:
            return False
        pieces[at] = pieces[at + 2] = b""
        if start in _SCRIPT_MARKS:
            script = _render_sup_or_sub if len(inner) <= _MAX_CACHED else _render_sup_or_sub.__wrapped__
            pieces[at + 1] = script(_SCRIPT_MARKS[start], inner, _is_followed_by_word(pieces, at + 3))
    return True


def _is_followed_by_word(pieces: list[bytes], at: int) -> bool:
    """Return True if the pieces from `at` on begin with a letter, a digit, a superscript or subscript."""
    while not (text := pieces[at]):
        if at + 1 == len(pieces):
            return False
        if pieces[at + 1] in _SCRIPT_MARKS:
            return True
        at += 2
    return text[:4].decode(errors="ignore")[:1].isalnum()


def _text_with_nested_tags(raw: bytes) -> str:
    """Return the plain text of an element with nested markup."""
    open_tags: list[bytes] = []
    pieces = _TAG.split(raw)
    for at in range(1, len(pieces), 2):
        tag = pieces[at]
        if tag in _END_TAGS:
            open_tags.append(tag)
            pieces[at] = _SCRIPT_MARKS.get(tag, "").encode()
        elif open_tags and _END_TAGS[start := open_tags.pop()] == tag:
            pieces[at] = END.encode() if start in _SCRIPT_MARKS else b""
        else:
            raise NeedsLxml
    if open_tags or len(pieces) > _MAX_PIECES:
        raise NeedsLxml
    return " ".join(render_sup_and_sub_marks(unescape_references(b"".join(pieces)).decode()).split())


@lru_cache(maxsize=1 << 12)
def _render_sup_or_sub(mark: str, raw: bytes, touching: bool) -> bytes:
    following = "x" if touching else ""
    text = render_sup_and_sub_marks(
        f"{mark}{unescape_references(raw).decode()}{END}{following}"
    ).removesuffix(following)
    return text.replace("&", "&amp;").encode()  # escaped, because the surrounding text is unescaped later


def unescape_references(raw: bytes) -> bytes:
    """Replace the character and entity references in a text or attribute value by their characters."""
    first, *others = raw.split(b"&")
    pieces = [first]
    for other in others:
        name, _, after = other.partition(b";")
        if name not in _ENTITIES:
            return _REFERENCE.sub(_replace_reference, raw)
        pieces += [_ENTITIES[name], after]
    return b"".join(pieces)


def _replace_reference(match: re.Match[bytes]) -> bytes:
    character = _referenced_character(match)
    if character is None:
        raise NeedsLxml
    return character


def _referenced_character(match: re.Match[bytes]) -> bytes | None:
    decimal, hexadecimal, name = match.groups()
    if name:
        return _ENTITIES[name]
    code = int(decimal) if decimal else int(hexadecimal, 16) if hexadecimal else 0
    allowed = (
        code in (9, 10, 13) or 32 <= code < 0xD800 or 0xE000 <= code < 0xFFFE or 0xFFFF < code < 0x110000
    )
    return chr(code).encode() if allowed else None


def _replace_wide_spaces(raw: bytes) -> bytes:
    """Replace each white space character that is not ASCII by a blank."""
    if find_first_of(raw, _RARE_SPACE_STARTS) >= 0 or find(raw, b"\xc2\x85") >= 0:
        return " ".join(raw.decode().split()).encode()
    if find(raw, b"\xe2") >= 0:
        raw = _WIDE_SPACE.sub(b" ", raw)
    return raw.replace(b"\xc2\xa0", b" ") if find(raw, b"\xc2\xa0") >= 0 else raw


def element_text(element: etree._Element) -> str:
    """Return the plain text of an element of lxml's tree, with all elements inside it."""
    if not len(element):
        return " ".join((element.text or "").split())
    pieces = [element.text or ""]
    walk = etree.iterwalk(element, events=("start", "end"))
    for event, node in walk:
        if node is element:
            continue
        name = etree.QName(node).localname
        if name == "math":
            if event == "start":
                walk.skip_subtree()
                added = math_text(node)
            else:
                added = node.tail or ""
            last = next((piece[-1] for piece in reversed(pieces) if piece), "")
            pieces.append(f" {added}" if last.isdigit() and added[:1].isdigit() else added)
        elif event == "start":
            pieces += [SUP if name == "sup" else SUB if name == "sub" else "", node.text or ""]
        else:
            pieces += [END if name in {"sup", "sub"} else "", node.tail or ""]
    return " ".join(render_sup_and_sub_marks("".join(pieces)).split())
