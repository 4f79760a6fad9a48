"""MediaWiki dumps: prose without markup, nothing of it lost; damaged and hostile dumps are refused."""

import bz2
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.errors import InputError
from meditron.sources.document import Document, ReadLog
from meditron.sources.mediawiki import read, recognises
from meditron.sources.wikitext import WikiSite, parse_sections


def plain(wikitext: str) -> str:
    return "\n".join(section.text for section in parse_sections(wikitext))


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
        ("CO<sub>2</sub>", "CO₂"),
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
    parsed = list(parse_sections("'''lead\n== History ==\n[[File:a.jpg|thumb|''b]] old''\n== See ==\nmore"))
    assert [section.label for section in parsed] == [None, "History", "See"]


def test_headings_are_labels() -> None:
    parsed = list(
        parse_sections("lead\n== History ==\nold\n=== ''Early'' ===\n<ref>x</ref>\n== See ==\nmore")
    )
    assert [(section.label, section.text) for section in parsed] == [
        (None, "lead"),
        ("History", "old"),
        ("See", "more"),
    ]


def test_nested_headings_are_the_path_of_a_section() -> None:
    wikitext = (
        "lead\n== Signs ==\n=== ''Skin'' ===\nrash\n==== Face ====\nred\n=== Eye ===\npink\n"
        "== Care ==\nrest\n==== Drugs ====\nnone\n== ==\n=== Odd ===\nrare"
    )
    assert [(section.heading_path, section.label) for section in parse_sections(wikitext)] == [
        ((), None),
        (("Signs",), "Skin"),
        (("Signs", "Skin"), "Face"),
        (("Signs",), "Eye"),
        ((), "Care"),
        (("Care",), "Drugs"),
        ((), "Odd"),
    ]
    document = Document("wiki:1", "mediawiki", "T", tuple(parse_sections(wikitext)))
    first, second = document.to_json()["sections"][:2]
    assert first == {"text": "lead", "label": None, "category": None}
    assert second == {"text": "rash", "label": "Skin", "category": None, "path": ["Signs"]}


@settings(max_examples=80, deadline=None)
@given(st.text(alphabet="ab [{|}]='<>/!-*#:;&\n", max_size=200))
def test_any_text_is_valid_wikitext(wikitext: str) -> None:
    assert isinstance(plain(wikitext), str)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(alphabet="abcéß123(),%", min_size=1, max_size=12), min_size=1))
def test_prose_stays_unchanged(words: list[str]) -> None:
    assert plain(" ".join(words)) == " ".join(words)


def test_nested_and_unclosed_markup_takes_bounded_time() -> None:
    assert plain("{{" * 3_000) is not None
    assert plain("[[a|" * 3_000) is not None
    assert plain("<ref>" * 3_000) is not None


@pytest.mark.slow
def test_a_real_dump(wiki_dump: Path) -> None:
    log = ReadLog()
    documents = list(read(wiki_dump, log))
    assert len(documents) == 106
    assert log.skipped == {"redirect": 99, "other namespace": 1}
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


GERMAN = WikiSite({6: "Datei", 14: "Kategorie", 10: "Vorlage"}, "de")


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{convert|10|to|20|mg|gr}} daily", "10 to 20 mg daily"),
        ("{{convert|5|ft|6|in|m}} tall", "5 ft 6 in tall"),
        ("{{convert|1|-|2|km}}; {{cvt|3|x|4|x|5|m}}", "1–2 km; 3 × 4 × 5 m"),
        ("{{convert|10|km|mi|1}} {{convert|100|km|0}}", "10 km 100 km"),
        ("{{convert|100|km2|abbr=on}} {{convert|37|C|F}} {{convert|1+1/2|in}}", "100 km² 37 °C 1 1/2 in"),
        ("{{val|5.2|e=6|u=m}} {{val|1.23|0.05|e=-3|ul=kg}}", "5.2×10⁶ m (1.23±0.05)×10⁻³ kg"),
        ("{{val|50|u=%}} {{val|9.8|u=m/s2}} 2{{e|-5}} {{10^|6}}", "50% 9.8 m/s² 2×10⁻⁵ 10⁶"),
        ("3{{frac|1|2}} or {{frac|3|4}}, {{sfrac|2|1|3}}", "3 1/2 or 3/4, 2 1/3"),
        ("{{chem|H|2|O}} {{chem|SO|4|2-}} {{chem|14|C}}", "H₂O SO₄²⁻ ¹⁴C"),
        ("{{chem2|SO4(2-)}} {{chem2|NH4+}} {{chem2|2 H2 + O2 -> 2 H2O}}", "SO₄²⁻ NH₄⁺ 2 H₂ + O₂ → 2 H₂O"),
        ("x{{sup|2}}{{sub|max}} Q{{su|p=2|b=3}}", "x²_max Q₃²"),
        ("10<sup>9</sup>/L, 10<sup>−3</sup>, V<sub>max</sub>", "10⁹/L, 10⁻³, V_max"),
        ("x<sup>[[n|2<sub>3</sub>]]</sup>", "x^(2₃)"),
        ("{{Blockquote|text=It ''is''.|author=X}} {{quote|1=So.}}", "It is. So."),
        ("a{{nbsp}}b{{snd}}c {{lang|de|Wort}} {{formatnum:1234}}", "a b – c Wort 1234"),
        ("{{As of|2010|5}} {{circa|1200}} {{main|Foo}}{{US$|5}}", "As of May 2010 c. 1200 US$5"),
        ("__NOTOC__\ntext\n__TOC__\n[[fr:Anarchisme]] [[Wikt:word]]", "text\n\nword"),
        ("[[:fr:Foo]] [[:Category:Bar]] [[zh-min-nan:X]][[Re: Zero]]", "fr:Foo Category:Bar Re: Zero"),
        ("`__init__` and __proto__", "`__init__` and __proto__"),
        ("a <!-- [[ --> b <gallery>\nFile:a.jpg|cap\n</gallery>c", "a b c"),
        ("<nowiki>{{x}} &lt;</nowiki> <code>a [[b]]</code>", "{{x}} < a b"),
        ("a < b, <5 mg, x<y, [no link], {no template}", "a < b, <5 mg, x<y, [no link], {no template}"),
        ("smile &#55357;&#56832; &#x110000; &#3;end", "smile \ufffd\ufffd &#x110000; end"),
        (
            "an <b>unclosed tag, [[link, {{template and [http://x.org",
            "an unclosed tag, [[link, {{template and [http://x.org",
        ),
        ("{{x|[[a|b}} c]] d", "c]] d"),
    ],
)
def test_templates_and_links_become_visible_text(wikitext: str, text: str) -> None:
    assert plain(wikitext) == text


def test_names_of_namespaces_come_from_the_wiki() -> None:
    wikitext = (
        "Text [[Datei:Bild.jpg|mini|Eine [[Beschreibung]]]] weiter.\n\n[[Kategorie:Medizin]]\n[[en:Foo]]\n"
        "__INHALTSVERZEICHNIS__\n[[Bild:x.jpg]][[File:y.jpg|z]][[kategorie: M|x]][[:Datei:z.jpg]][[de:Herz]]"
    )
    assert (
        "".join(section.text for section in parse_sections(wikitext, GERMAN))
        == "Text weiter.\n\nDatei:z.jpgde:Herz"
    )


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{val|5|-|7|u=mg}} {{val|5|to|7}} {{±|2}} {{convert|2|sqkm}}", "5–7 mg 5 to 7 ±2 2 km²"),
        ("{{ce|H2O}} {{gaps|1|234}} {{nuclide|I|131}} {{sup sub|+|2}}", "H₂O 1234 ¹³¹I ⁺₂"),
        ("{{lang|fr|texte=mot}} {{quote box|quote=So.}} {{tq|x}}", "mot So. x"),
        ("10<sup>9 cells and H<sub>2 O", "10^9 cells and H_2 O"),
        ("{{unité|5|m|2}} {{unité|2|e=6|mg}} {{unité|10|à|20|mg|L|-1}}", "5 m² 2×10⁶ mg 10 à 20 mg·L⁻¹"),
        ("10{{exp|9}} CO{{ind|2}} {{nombre|12|mg}} {{unité|10|20|mg}}", "10⁹ CO₂ 12 mg 10–20 mg"),
        (
            "used in {{w|weapon|weapons}}, {{w|power}}; {{date de naissance-|17|mai|1973}}",
            "used in weapons, power; 17 mai 1973",
        ),
        ("{{formatnum:-10}} {{val|879.6|0.8|u=[[second|s]]}}", "-10 879.6±0.8 s"),
        ("{{Bruch|1|2}} {{дробь|3|4}} {{fchim|H|2|O}}", "1/2 3/4 H₂O"),
        ("[[Foo|]] and [[صورة:a.jpg|x]][[Vaizdas:b.svg|y]][[分類:c]][[Catégorie:d]]", "Foo and"),
        ("__KEIN_INHALTSVERZEICHNIS__ a __БЕЗ_ОГЛ__ b __無目錄__ __FILE__", "a b __FILE__"),
    ],
)
def test_templates_and_names_of_other_wikis(wikitext: str, text: str) -> None:
    assert plain(wikitext) == text


def test_the_first_of_several_scripts_is_read() -> None:
    wikitext = "-{H|zh-cn:x;zh-tw:y}-甲-{zh-hans:乙;zh-hant:丙}--{T|丁}--{戊}-"
    assert [section.text for section in parse_sections(wikitext, WikiSite({}, "zh"))] == ["甲乙戊"]
    assert plain("Fe-{x}-y") == "Fe-{x}-y"


SITE = """<siteinfo><namespaces><namespace key="0" /><namespace key="1">Diskussion</namespace>
<namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace></namespaces></siteinfo>"""
BARE = "<page><title>{}</title><id>{}</id><revision><text>{}</text></revision></page>"


def test_dumps_without_ns(tmp_path: Path) -> None:
    pages = (
        BARE.format("T", 1, "Text [[Datei:x.jpg|y]]."),
        BARE.format("Diskussion:T", 2, "Nein."),
        BARE.format("Talk:T", 3, "No."),
        BARE.format("User talk:T", 4, "No."),
        BARE.format("R", 5, "#WEITERLEITUNG [[T]]"),
        BARE.format("S", 6, "#REDIRECT [[T]] {{R from move}}"),
        BARE.format("Re: Zero", 7, "#1 [[T]] is first."),
    )
    log = ReadLog()
    documents = list(read(dump(tmp_path / "dump.xml", SITE, *pages), log))
    assert [document.title for document in documents] == ["T", "Re: Zero"]
    assert documents[0].sections[0].text == "Text ."
    assert log.skipped == {"other namespace": 3, "redirect": 2}


PATHOLOGICAL = [
    *(
        "[http://a ",
        "[[a|",
        "{{a|",
        "{{{a|",
        "{|\n|a\n",
        "<ref>",
        '<ref name="a',
        '<b c="',
        "<nowiki>",
        "<!--",
    ),
    *(
        "{{a|[[b|",
        "<ref>{{a|[http://a ",
        "[[File:a|[[b]]|",
        "{{a|b}}, ",
        "({{a}}",
        "[http://a {{b\n}}]",
        "</b>",
    ),
]


@pytest.mark.parametrize("piece", PATHOLOGICAL)
def test_a_page_takes_bounded_time(piece: str) -> None:
    started = time.perf_counter()
    assert plain(piece * 10_000) is not None
    assert time.perf_counter() - started < 30  # minutes to hours without a bound


@pytest.mark.parametrize(
    "wikitext", ["{{convert|" + "1" * 50_000 + "x}}", "{{convert|" + "1|-|" * 20_000 + "}}"]
)
def test_a_template_takes_bounded_time(wikitext: str) -> None:
    started = time.perf_counter()
    plain(wikitext)
    assert time.perf_counter() - started < 10


def test_a_page_with_too_much_markup_is_skipped_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meditron.sources.wiki_balance.MOST_MARKUP", 10)
    path = dump(tmp_path / "dump.xml", PAGE.format("[[a]] " * 11), PAGE.format("[[a]] " * 10))
    log = ReadLog()
    assert len(list(read(path, log))) == 1
    assert log.skipped == {"too much markup": 1}
    assert "the page 'T' (id 1) is left out" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr("meditron.sources.wiki_balance.LONGEST_PAGE", 50)
    assert not list(read(path))


def test_a_dump_of_one_huge_element_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dump(tmp_path / "dump.xml", PAGE.format("x" * 11_000_000))
    with pytest.raises(InputError, match="ill-formed XML"):
        list(read(path))
    monkeypatch.setattr("meditron.sources.mediawiki._LARGEST", 1 << 20)
    path = dump(
        tmp_path / "dump.xml",
        PAGE.format("fine"),
        PAGE.format("y" * 9),
        "<page>" + "<a/>" * 700_000 + "</page>",
    )
    with pytest.raises(InputError, match="after 2 pages"):
        list(read(path))
