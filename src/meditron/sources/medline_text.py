"""The text of a MEDLINE element from its bytes: references, inline markup, white space; lxml where unsure."""

import re
from functools import lru_cache

from stringzilla import find, find_first_of

from meditron.ground.errors import MissingExtra

try:
    from lxml import etree
except ImportError as missing:
    raise MissingExtra("lxml", "corpus") from missing

__all__ = [
    "SPECIAL",
    "Unusual",
    "decoded",
    "flat_text",
    "name_of",
    "plain_text",
    "text_of",
    "xml_parser",
]

_REFERENCE = re.compile(rb"&(?:#([0-9]{1,7})|#x([0-9A-Fa-f]{1,6})|(amp|lt|gt|quot|apos));|&")
_ENTITIES = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_MARKED = re.compile(rb"<(sub|sup|i|b|u)>([^<>]*+)</\1>")
_CONTROL = bytes(range(0x20))
SPECIAL = _CONTROL + b"&<>"  # what a text without any of these needs no look at
_ILLEGAL = _CONTROL.translate(None, b"\t\n\r")
_BLANKS = bytes.maketrans(b"\t\n\r", b"   ")
_WIDE_SPACE = re.compile(rb"\xe2(?:\x80[\x80-\x8a\xa8\xa9\xaf]|\x81\x9f)")  # U+2000 to U+205F
_RARE = b"\xe1\xe3"  # U+1680 and U+3000 begin so, and much that is no white space


class Unusual(Exception):
    """The scan met something that it leaves to lxml."""


def xml_parser() -> etree.XMLParser:
    """A parser that expands no entity, opens no file, reaches no network and refuses absurd sizes."""
    return etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


_FRAGMENTS = xml_parser()


def text_of(raw: bytes) -> str:
    """All text in the element in its order, nothing in the place of markup, white space collapsed."""
    return plain_text(_bare(raw) if find_first_of(raw, SPECIAL) >= 0 else raw)


def plain_text(raw: bytes) -> str:
    """`text_of` where no byte is SPECIAL."""
    if not raw.isascii():
        raw = _narrowed(raw)
    text = decoded(raw)
    return " ".join(text.split()) if find(raw, b"  ") >= 0 else text.strip(" ")


name_of = lru_cache(maxsize=1 << 14)(text_of)  # for journals and descriptors, which come again and again


def _bare(raw: bytes) -> bytes:
    """The text without its markup, references resolved, ASCII's white space as blanks.

    Tags are taken out here if they are the usual five, in pairs without nesting; others are lxml's.
    """
    texts = _MARKED.split(raw)
    del texts[1::3]  # the tags' names
    bare = b"".join(texts)
    if find_first_of(bare, b"<>") >= 0:
        return _marked_up(raw).encode()
    if b"&" in bare:  # within each piece: a tag inside of a reference does not make it whole
        bare = b"".join([_REFERENCE.sub(_character, text) if b"&" in text else text for text in texts])
    if find_first_of(bare, _CONTROL) < 0:
        return bare
    if find_first_of(bare, _ILLEGAL) >= 0:
        raise Unusual
    return bare.translate(_BLANKS)


def _marked_up(raw: bytes) -> str:
    try:
        return flat_text(etree.fromstring(b"<x>" + raw + b"</x>", _FRAGMENTS))
    except etree.XMLSyntaxError as error:
        raise Unusual from error


def _character(match: re.Match[bytes]) -> bytes:
    decimal, hexadecimal, name = match.groups()
    if name:
        return _ENTITIES[name]
    code = int(decimal) if decimal else int(hexadecimal, 16) if hexadecimal else 0
    if code < 32 or 0xD7FF < code < 0xE000 or 0xFFFD < code < 0x10000 or code > 0x10FFFF:
        raise Unusual
    return chr(code).encode()


def _narrowed(raw: bytes) -> bytes:
    """Text beyond ASCII with a blank for each white space beyond ASCII."""
    if find(raw, b"\xef\xbf") >= 0:  # U+FFFE and U+FFFF, which XML forbids, begin so
        raise Unusual
    if find_first_of(raw, _RARE) >= 0 or find(raw, b"\xc2\x85") >= 0:
        return " ".join(decoded(raw).split()).encode()
    if b"\xe2" in raw:
        raw = _WIDE_SPACE.sub(b" ", raw)
    return raw.replace(b"\xc2\xa0", b" ") if find(raw, b"\xc2\xa0") >= 0 else raw


def decoded(raw: bytes) -> str:
    """UTF-8 as text; Unusual where it is none."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Unusual from error


def flat_text(element: etree._Element) -> str:
    """All text within an element of lxml's tree, white space collapsed."""
    return " ".join("".join(map(str, element.itertext())).split())
