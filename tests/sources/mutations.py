"""Random damage to real citations, and two readings of the result: meditron's, and lxml's alone."""

import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from lxml import etree

from meditron.core.errors import InputError
from meditron.sources.medline import read
from meditron.sources.scripts import render_sup_and_sub_marks

from .conftest import HEAD, fields, flat

Reading = list[dict[str, Any]] | None
"""The documents, or None where the file is refused."""

_INSERTED = [
    *[
        b"&lt;",
        b"&#60;",
        b"&#x3c;",
        b"&#55357;",
        b"&#0;",
        b"&#xD800;",
        b"&alpha;",
        b"&",
        b"&amp",
        b"&#1114112;",
    ],
    *[
        b"&#65534;",
        b"&#13;",
        b"&#9;",
        b"&#xA0;",
        b"&#8195;",
        b"&#xFFFFFFFFFFFF;",
        b"&l<i></i>t;",
        b"&#x;",
        b"&;",
    ],
    *[
        b"\0",
        b"\x01",
        b"\x03",
        b"\x0b",
        b"\x0c",
        b"\x1c",
        b"\x1f",
        b"\x7f",
        b"\x85",
        b"\xff",
        b"\xc0\x80",
        b"\xed\xa0\x80",
    ],
    *[
        b"\xef\xbf\xbf",
        b"\xef\xbf\xbe",
        b"\xef\xbf\xbd",
        b"\xf0\x9f",
        b"\xf4\x90\x80\x80",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
    ],
    *[
        b"\xef\xbb\xbf",
        b"\xe3\x80\x80",
        b"\xc2\xa0",
        b"\xf0\x9f\x98\x80",
        b"\r",
        b"\r\n",
        b"\t",
        b"\n\n",
        b"  ",
    ],
    *[
        b"]]>",
        b"]]",
        b">",
        b"<",
        b'"',
        b"'",
        b"/",
        b"/>",
        b"</",
        b"<>",
        b"</>",
        b"< i>",
        b"<i",
        b"<1>",
        b"=",
        b'a="b"',
    ],
    *[
        b"<![CDATA[",
        b"<![CDATA[<5 & </Title>]]>",
        b"<![CDATA[</PubmedArticle>]]>",
        b"<![CDATA[]]>",
        b"<!DOCTYPE x>",
    ],
    *[
        b"<!-- x -->",
        b"<!---->",
        b"<!-- a -- b -->",
        b"<!--",
        b"-->",
        b"<!-- </PubmedArticle> -->",
        b"<!-->",
        b"<!x>",
    ],
    *[
        b"<!-- <AbstractText>no</AbstractText> -->",
        b"<?pi?>",
        b"<?pmcsd ?>",
        b"<?nihms x ?>",
        b"<?xml version='1.0'?>",
    ],
    *[b"<?pi </PubmedArticle> ?>", b"<?pi", b"?>", b"<?XML a?>", b"<? pi?>", b"<?pmcsd ? ?>", b"<?pmcsd>"],
    *[
        b"<i>",
        b"</i>",
        b"<i>x</i>",
        b"<b><i>x</b></i>",
        b"<sub><i>x</i></sub>",
        b"<sup>2</sup>",
        b"<sub>max</sub>",
    ],
    *[
        b"<sup>a<sub>b</sub></sup>",
        b"<sup/>",
        b"<sup >3</sup >",
        b"<sup x='1'>3</sup>",
        b"<SUP>2</SUP>",
        b"<u>",
    ],
    *[
        b"<i>" * 300 + b"</i>" * 300,
        b"<i>" * 120 + b"</i>" * 120,
        b"<p>x</p>",
        b"<Year>1999</Year>",
        b"<Title>",
    ],
    *[
        b"<mml:math>x</mml:math>",
        b'<mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:mfrac><mml:mn>1</mml:mn>',
    ],
    b'<mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:mfrac><mml:mn>1</mml:mn><mml:mn>2</mml:mn>'
    b"</mml:mfrac></mml:math>",
    *[
        b"<PubmedArticle>",
        b"</PubmedArticle>",
        b"<PMID>5</PMID>",
        b"</PubmedArticleSet>",
        b"<PubmedArticle/>",
    ],
    *[
        b"<Language>fre</Language>",
        b"<ArticleTitle/>",
        b"<AbstractText/>",
        b'<AbstractText Label="A"/>',
        b"<ForeName",
    ],
    b'<OtherAbstract Type="Publisher" Language="ger"><AbstractText>Text</AbstractText></OtherAbstract>',
    b'<CommentsCorrections RefType="RetractionIn"><RefSource>x</RefSource></CommentsCorrections>',
]
_ATTRIBUTES = [
    *[
        b" a='>'",
        b' a=">"',
        b' a="<"',
        b" a='\"'",
        b" a",
        b' a=""',
        b' a="1" a="2"',
        b' Label="x" Label="y"',
        b"\n",
        b" ",
    ],
    *[
        b' xmlns="http://x"',
        b' xmlns:mml="http://x"',
        b' xml:lang="de"',
        b' mml:a="1"',
        b' a="&amp;"',
        b' a="&x;"',
        b"/",
    ],
    *[
        b' a="1"b="2"',
        b' a = "1"',
        b" IdType='doi'",
        b' IdType="doi"',
        b' EIdType="doi"',
        b' Version="x"',
        b' Version="2"',
    ],
    *[
        b' Label="a\tb"',
        b' Label="a&#10;b"',
        b' a="\x01"',
        b' a="\xff"',
        b' RefType="RetractionIn"',
        b'"',
        b' NlmCategory=""',
    ],
]


def mutated(citations: list[bytes], random: Random) -> bytes:
    """A set of the citations, damaged or spelled otherwise in one to three places."""
    body = b"\n".join(citations)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        body = random.choice(_CHANGES)(body, random)
    data = HEAD + b"<PubmedArticleSet>\n" + body + b"\n</PubmedArticleSet>\n"
    if random.random() < 0.04:
        data = random.choice(_ENDS)(data, random)
    return data


def _delete(body: bytes, random: Random) -> bytes:
    size = random.choice((1, 1, 2, 5, 30, 300, 3000))
    at = random.randrange(len(body))
    return body[:at] + body[at + size :]


def _insert(body: bytes, random: Random) -> bytes:
    at = _place(body, random)
    return body[:at] + random.choice(_INSERTED) + body[at:]


def _flip(body: bytes, random: Random) -> bytes:
    at = random.randrange(len(body))
    return body[:at] + bytes([random.randrange(256)]) + body[at + 1 :]


def _end_tag(body: bytes, random: Random) -> bytes:
    spelling = random.choice(
        (rb"</\1 >", b"</\\1\n>", rb"</ \1>", rb"</\1 x>", rb"</\1x>", rb"<\1>", b"", rb"</\1></\1>")
    )
    return _once(rb"</([A-Za-z:]+)>", spelling, body, random)


def _start_tag(body: bytes, random: Random) -> bytes:
    attribute = random.choice(_ATTRIBUTES)
    return _once(rb"<[A-Za-z:]+[^<>]*(?=>)", lambda match: match[0] + attribute, body, random)


def _quotes(body: bytes, random: Random) -> bytes:
    return _once(
        rb'="([^"]*)"', random.choice((rb"='\1'", rb"=\1", rb'= "\1"', rb'="\1', rb'="\1" ')), body, random
    )


def _rename(body: bytes, random: Random) -> bytes:
    names = (
        b"mml:sup",
        b"x",
        b"ArticleTitle",
        b"AbstractText",
        b"Abstract",
        b"Language",
        b"PMID",
        b"Article",
        b"sup",
        b"Year",
    )
    name = random.choice(names)
    element = random.choice(re.findall(rb"<([A-Za-z:]+)[ >]", body) or [b"b"])
    only_start = random.random() < 0.3
    body = _once(b"<" + element + rb"(?=[ >])", b"<" + name, body, random)
    return body if only_start else _once(b"</" + element + b">", b"</" + name + b">", body, random)


def _element(body: bytes, random: Random) -> tuple[int, int]:
    """The span of an element without children of its own name."""
    start = random.choice([match.start() for match in re.finditer(rb"<[A-Za-z]", body)] or [0])
    name = re.match(rb"<([A-Za-z:]+)", body[start : start + 60])
    end = body.find(b"</" + name[1] + b">", start) if name else -1
    return start, start if end < 0 else end + len(name[1]) + 3


def _duplicate(body: bytes, random: Random) -> bytes:
    start, end = _element(body, random)
    return body[:end] + body[start:end] + body[end:]


def _remove(body: bytes, random: Random) -> bytes:
    start, end = _element(body, random)
    return body[:start] + body[end:]


def _move(body: bytes, random: Random) -> bytes:
    start, end = _element(body, random)
    rest = body[:start] + body[end:]
    at = _place(rest, random) if random.random() < 0.3 else _element(rest, random)[random.randrange(2)]
    return rest[:at] + body[start:end] + rest[at:]


def _nest(body: bytes, random: Random) -> bytes:
    start, end = _element(body, random)
    inner = body[start:end]
    at = inner.find(b">") + 1
    return body[:start] + inner[:at] + inner + inner[at:] + body[end:]


def _empty(body: bytes, random: Random) -> bytes:
    return _once(
        rb"<([A-Za-z]+)([^<>]*)>[^<]*</\1>",
        random.choice((rb"<\1\2/>", rb"<\1\2></\1>", rb"<\1\2 />")),
        body,
        random,
    )


def _wrap(body: bytes, random: Random) -> bytes:
    around = random.choice(
        (rb"><![CDATA[\1]]><", rb"><!--\1--><", rb"><i>\1</i><", rb"><x>\1</x><", rb">\1<?p \1?><")
    )
    return _once(rb">([^<>]+)<", around, body, random)


def _hole(body: bytes, random: Random) -> bytes:
    """From within one citation into another."""
    first, second = sorted((_place(body, random), _place(body, random)))
    return body[:first] + body[second:]


def _line_ends(body: bytes, random: Random) -> bytes:
    return body.replace(b"\n", random.choice((b"\r\n", b"\r", b"", b"\n\t", b"\x0c", b"\n  ", b"\xc2\x85")))


def _place(body: bytes, random: Random) -> int:
    """A position, as often as not within or beside a text that is read."""
    if random.random() < 0.5:
        names = b"ArticleTitle|AbstractText|Language|PMID|Year|Title|ELocationID|ArticleId|PublicationType"
        inside = rb"<(?:%s)[^<>]*>[^<]*" % names
        if matches := list(re.finditer(inside, body)):
            match = random.choice(matches)
            return random.randint(*match.span())
    return random.randrange(len(body))


def _once(
    pattern: bytes, new: bytes | Callable[[re.Match[bytes]], bytes], body: bytes, random: Random
) -> bytes:
    matches = list(re.finditer(pattern, body))
    if not matches:
        return body
    match = random.choice(matches)
    return (
        body[: match.start()]
        + (match.expand(new) if isinstance(new, bytes) else new(match))
        + body[match.end() :]
    )


def _truncate(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data))]


def _append(data: bytes, random: Random) -> bytes:
    more = (
        b"x",
        b"<x/>",
        b"<!-- x -->",
        b"\n\n",
        b"<?pi?>",
        b"\0",
        b"</PubmedArticleSet>",
        b"\xef\xbb\xbf",
        b"<!--",
        b"&amp;",
    )
    return data + random.choice(more)


_CHANGES = [
    *[
        _delete,
        _insert,
        _insert,
        _insert,
        _flip,
        _end_tag,
        _start_tag,
        _start_tag,
        _quotes,
        _rename,
        _duplicate,
    ],
    *[_remove, _move, _move, _nest, _empty, _wrap, _hole, _line_ends],
]
_ENDS = [_truncate, _append]


def ours(path: Path) -> Reading:
    """The documents that meditron reads; None if it refuses the file, naming it and a place."""
    try:
        return [document.to_json() for document in read(path)]
    except InputError as error:
        if error.path != path or not error.place:
            raise
        return None


def theirs(data: bytes) -> Reading:
    """The documents of lxml's tree of the whole file; None if it is ill-formed, or is no set of citations.

    Without the DOCTYPE: NLM's DTD declares no entity, so one that XML does not know is an error, which a
    parser that does not read the DTD cannot say of a document that names one.
    """
    data = re.sub(rb"<!DOCTYPE[^>]*>", b"", data, count=1)
    parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError:
        return None
    between = [root.text, *(child.tail for child in root)]
    if root.tag != "PubmedArticleSet" or any((text or "").strip(" \t\r\n") for text in between):
        return None
    return [fields(child) for child in root] if all(map(_is_citation, root)) else None


def _is_citation(element: Any) -> bool:
    citation = element.find("MedlineCitation")
    if element.tag != "PubmedArticle" or citation is None or citation.find("Article") is None:
        return False
    pmid = citation.find("PMID")
    if pmid is None:
        return False
    numbers = [" ".join(render_sup_and_sub_marks(flat(pmid)).split()), pmid.get("Version", "1")]
    return all(re.fullmatch("[0-9]{1,12}", number) for number in numbers)
