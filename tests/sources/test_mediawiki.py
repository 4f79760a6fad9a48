"""MediaWiki dumps: prose without markup, nothing of it lost; damaged and hostile dumps are refused."""

import bz2
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.ground.errors import InputError
from meditron.sources.mediawiki import read, recognises, sections


def plain(wikitext: str) -> str:
    return "\n".join(section.text for section in sections(wikitext))


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        (
            "'''Anarchism''' is a [[political philosophy|philosophy]] of [[state]]s.",
            "Anarchism is a philosophy of states.",
        ),
        ("a<ref name=x>gone</ref> b<ref name=x/> c", "a b c"),
        ("a {{citation needed|date=May}}b", "a b"),
        ("{{convert|12|km|mi}} long", "12 km long"),
        ("[[File:x.jpg|thumb|a [[b]] c]]text[[Category:Y]]", "text"),
        ("[http://x.org the site] and http://y.org", "the site and http://y.org"),
        ("<math>x < \\frac{1}{2}</math>", "x < \\frac{1}{2}"),
        ("a<!-- gone -->b", "ab"),
        ("{| class=wikitable\n|-\n| cell\n|}\nafter", "after"),
        ("* one\n* two", "- one\n- two"),
        ("5 &lt; 6 &nbsp;&amp; 7", "5 < 6 & 7"),
        ("CO<sub>2</sub>", "CO2"),
        ("<nowiki>[[x]]</nowiki>", "[[x]]"),
        ("'''Lincoln''''s '''''law''''' and ''O'Neil''", "Lincoln's law and O'Neil"),
        ("[[File:x.svg|thumb|'''a''<br />b]]text", "text"),
        ("{|\n! '''a\n|-\n| b''\n|}\nafter", "after"),
        ("'''Albedo''' ({{IPAc-en|x}}) or ({{IPA|x}}; born 1947)", "Albedo or (born 1947)"),
        ("A ({{IPA|x}}; {{lang-grc|y}}, ''Akhilleus'', {{IPA|z}}) f(), g( )", "A (Akhilleus) f(), g( )"),
    ],
)
def test_wikitext(wikitext: str, text: str) -> None:
    assert plain(wikitext) == text


def test_quotes_that_do_not_pair_swallow_no_heading() -> None:
    found = list(sections("'''lead\n== History ==\n[[File:a.jpg|thumb|''b]] old''\n== See ==\nmore"))
    assert [section.label for section in found] == [None, "History", "See"]


def test_headings_are_labels() -> None:
    found = list(sections("lead\n== History ==\nold\n=== ''Early'' ===\n<ref>x</ref>\n== See ==\nmore"))
    assert [(section.label, section.text) for section in found] == [
        (None, "lead"),
        ("History", "old"),
        ("See", "more"),
    ]


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="ab [{|}]='<>/!-*#:;&\n", max_size=200))
def test_any_wikitext_is_read(wikitext: str) -> None:
    assert isinstance(plain(wikitext), str)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(alphabet="abcéß123(),%", min_size=1, max_size=12), min_size=1))
def test_prose_stays_as_it_is(words: list[str]) -> None:
    assert plain(" ".join(words)) == " ".join(words)


def test_nested_and_unclosed_markup_takes_no_time() -> None:
    assert plain("{{" * 3_000) is not None
    assert plain("[[a|" * 3_000) is not None
    assert plain("<ref>" * 3_000) is not None


@pytest.mark.slow
def test_a_real_dump(wiki_dump: Path) -> None:
    skipped: Counter[str] = Counter()
    documents = list(read(wiki_dump, skipped))
    assert len(documents) == 106
    assert skipped == {"redirect": 99, "other namespace": 1}
    first = documents[0]
    assert (first.id, first.title, first.language) == ("wiki:12", "Anarchism", "en")
    assert first.sections[0].text.startswith(
        "Anarchism is a political philosophy that advocates self-governed"
    )
    assert "Etymology and terminology" in {section.label for section in first.sections}
    text = "\n".join(section.text for document in documents for section in document.sections)
    left = sum(text.count(mark) for mark in ("[[", "'''", "<ref"))
    assert not left
    assert not re.search(r"\(\s*[,;]", text)


PAGE = "<page><title>T</title><ns>0</ns><id>1</id><revision><id>2</id><text>{}</text></revision></page>"


def dump(path: Path, *pages: str, head: str = "") -> Path:
    path.write_text(f'{head}<mediawiki xml:lang="en">{"".join(pages)}</mediawiki>', encoding="utf-8")
    return path


def test_damaged_dumps_are_refused(tmp_path: Path) -> None:
    path = dump(tmp_path / "dump.xml", PAGE.format("text"))
    assert [document.id for document in read(path)] == ["wiki:1"]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"dump\.xml \(line 1\): ill-formed"):
        list(read(path))
    packed = bz2.compress(b"<mediawiki>" + PAGE.format("text").encode() * 100)
    path.write_bytes(packed[:-30])
    with pytest.raises(InputError, match="cut off"):
        list(read(path))


def test_a_dump_with_a_doctype_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "haha"><!ENTITY b "&a;&a;&a;">]>'
    with pytest.raises(InputError, match="DOCTYPE"):
        list(read(dump(tmp_path / "dump.xml", PAGE.format("&b;"), head=bomb)))


def test_recognition() -> None:
    assert recognises(b'<mediawiki xmlns="http://x">')
    assert not recognises(b"<PubmedArticleSet>")
