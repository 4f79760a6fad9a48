"""The text of a MEDLINE element from its bytes: references, inline markup, white space; lxml where unsure."""

import re
from functools import lru_cache

from meditron.ground.errors import MissingExtra

try:
    from lxml import etree
except ImportError as missing:
    raise MissingExtra("lxml", "corpus") from missing

__all__ = ["Unusual", "decoded", "flat_text", "name_of", "text_of", "xml_parser"]

_LONG_NAME = 1 << 8  # bytes; a cache of longer ones could grow large
_REFERENCE = re.compile(rb"&(?:#([0-9]{1,7})|#x([0-9A-Fa-f]{1,6})|(amp|lt|gt|quot|apos));|&")
_ENTITIES = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_TAG = re.compile(rb"(<[^<>]*+>)")
_PAIRS = {b"<%s>" % name: b"</%s>" % name for name in (b"i", b"b", b"u", b"sub", b"sup")}
_CONTROL = bytes(range(0x20))
_SPECIAL = _CONTROL + b"&<>"  # what a text without any of these needs no look at
_ILLEGAL = _CONTROL.translate(None, b"\t\n\r")
_BLANKS = bytes.maketrans(b"\t\n\r", b"   ")
# U+2000 to U+205F; the other wide ones begin with E1 or E3.
_WIDE_SPACE = re.compile(rb"\xe2(?:\x80[\x80-\x8a\xa8\xa9\xaf]|\x81\x9f)")


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
    if len(raw.translate(None, _SPECIAL)) < len(raw):
        raw = _bare(raw)
    text = raw.decode() if raw.isascii() else _narrowed(raw)
    return " ".join(text.split()) if "  " in text else text.strip(" ")


_again = lru_cache(maxsize=1 << 14)(text_of)


def name_of(raw: bytes) -> str:
    """`text_of` for journals, types and descriptors, which come again and again."""
    return _again(raw) if len(raw) < _LONG_NAME else text_of(raw)


def _bare(raw: bytes) -> bytes:
    """The text without its markup, references resolved, ASCII's white space as blanks.

    Tags are taken out here if they are the usual five, in pairs without nesting; others are lxml's.
    """
    pieces = _TAG.split(raw)
    texts, tags = pieces[::2], pieces[1::2]
    bare = b"".join(texts)
    if [_PAIRS.get(tag) for tag in tags[::2]] != tags[1::2] or b"<" in bare or b">" in bare:
        return _marked_up(raw).encode()
    if b"&" in bare:  # within each piece: a tag inside of a reference does not make it whole
        bare = b"".join([_REFERENCE.sub(_character, text) if b"&" in text else text for text in texts])
    if len(bare.translate(None, _CONTROL)) == len(bare):
        return bare
    if len(bare.translate(None, _ILLEGAL)) < len(bare):
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


def _narrowed(raw: bytes) -> str:
    """Text beyond ASCII with a blank for each white space beyond ASCII."""
    if b"\xef" in raw and b"\xef\xbf" in raw:  # U+FFFE and U+FFFF, which XML forbids, begin so
        raise Unusual
    text = decoded(_WIDE_SPACE.sub(b" ", raw)).replace("\xa0", " ")
    if "\x85" in text or b"\xe1" in raw or b"\xe3" in raw:
        return " ".join(text.split())
    return text


def decoded(raw: bytes) -> str:
    """UTF-8 as text; Unusual where it is none."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Unusual from error


def flat_text(element: etree._Element) -> str:
    """All text within an element of lxml's tree, white space collapsed."""
    return " ".join("".join(map(str, element.itertext())).split())
