"""JATS: every word of real articles once and in order, each construct, odd and hostile files."""

import gzip
import io
import re
import tarfile
import zipfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meditron.core.errors import InputError, SourceError
from meditron.sources.document import Document, ReadLog
from meditron.sources.jats import read, recognises
from meditron.sources.registry import open_source

from .jats_reference import article_text, document_text, parse, words

HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal '
    'Archiving and Interchange DTD v1.2 20190208//EN" "JATS-archivearticle1.dtd">\n'
)
NAMESPACES = (
    'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:mml="http://www.w3.org/1998/Math/MathML" '
    'xmlns:ali="http://www.niso.org/schemas/ali/1.0/"'
)
Article = Callable[..., Path]

# Sections with one heading and no other text before another section of the same heading: the path cannot
# tell them apart.
SAME_HEADINGS = {"PMC4234384.nxml"}


def article_xml(
    body: str = "", *, meta: str = "", back: str = "", attributes: str = 'article-type="research-article"'
) -> str:
    """An article as PMC spells it."""
    return (
        f"{HEAD}<article {NAMESPACES} {attributes}><front><journal-meta><journal-title-group><journal-title>"
        "A Journal</journal-title></journal-title-group></journal-meta><article-meta>"
        '<article-id pub-id-type="pmc">123</article-id><title-group><article-title>A title'
        f"</article-title></title-group>{meta}</article-meta></front><body>{body}</body>{back}</article>"
    )


@pytest.fixture
def article(tmp_path: Path) -> Article:
    """Write an article to a file."""

    def write(body: str = "", name: str = "article.nxml", **parts: str) -> Path:
        path = tmp_path / name
        path.write_text(article_xml(body, **parts), encoding="utf-8")
        return path

    return write


def only(path: Path, tokens: bool = False) -> Document:
    (document,) = read(path, reference_tokens=tokens)
    return document


def text_of(path: Path, tokens: bool = False) -> str:
    """The text of an article whose body has no headings."""
    (section,) = only(path, tokens).sections
    return section.text


@pytest.mark.shared
@pytest.mark.parametrize("archive", ["craft", "evidence", "parser", "plos"])
def test_the_words_of_real_articles_are_there_once_and_in_order(shared: Path, archive: str) -> None:
    seen = 0
    for path in sorted((shared / "data/pmc-jats").glob(f"{archive}*.tar.gz")):
        log = ReadLog()
        documents = open_source(path, log=log)
        with tarfile.open(path) as members:
            for member in filter(tarfile.TarInfo.isfile, members):
                data = members.extractfile(member)
                assert data is not None
                document = next(documents)
                if Path(member.name).name not in SAME_HEADINGS:
                    theirs = words(article_text(parse(data.read())))
                    assert words(document_text(document)) == theirs, member.name
                assert document.title
                assert document.year
                assert document.meta["licence"]
                assert document.id.startswith(("pmc:PMC", "doi:10.", "pmid:"))
                seen += 1
        assert next(documents, None) is None
        assert set(log.skipped) <= {"translation of an article"}
    assert seen == {"craft": 77, "evidence": 1600, "parser": 18, "plos": 97}[archive]


CASES = {
    "inline": ("<p>H<sub>2</sub>O, <italic>p</italic>-value, 10<sup>-3</sup></p>", "H₂O, p-value, 10⁻³"),
    "white space": ("<p>a\n\t b <bold> c</bold>\u2009d\u00a0e</p>", "a b c d e"),
    "comment": ("<p>or<!-- no -->al<?pi?> dose</p>", "oral dose"),
    "cdata": ("<p><![CDATA[<5 & >10 &alpha;]]></p>", "<5 & >10 &alpha;"),
    "paragraphs": ("<p>a</p><p>b</p>", "a\n\nb"),
    "break": ("<p>a<break/>b</p>", "a b"),
    "citation": ('<p>as in [<xref ref-type="bibr" rid="B1">12</xref>].</p>', "as in [12]."),
    "raised citation": (
        '<p>trial.<xref ref-type="bibr">12</xref>,<xref ref-type="bibr">13</xref> A</p>',
        "trial.¹²,¹³ A",
    ),
    "after a comma": ('<p>in general,<xref ref-type="bibr">24</xref> but</p>', "in general,²⁴ but"),
    "in a list": (
        '<p>seen [<xref ref-type="bibr">1</xref>,<xref ref-type="bibr">2'
        '</xref>–<xref ref-type="bibr">4</xref>]</p>',
        "seen [1,2–4]",
    ),
    "author and year": ('<p>(<xref ref-type="bibr">Smith, 2010</xref>)</p>', "(Smith, 2010)"),
    "superscript": (
        '<p>a<sup><xref ref-type="bibr">1</xref>,<xref ref-type="bibr">2</xref></sup></p>',
        "a¹,²",
    ),
    "empty references": (
        '<p>a (<xref ref-type="bibr"/>, <xref ref-type="fig"/>) b [<inline-graphic/>], c</p>',
        "a b, c",
    ),
    "empty superscript": ('<p>a<sup><xref ref-type="bibr"/></sup> b</p>', "a b"),
    "figure reference": ('<p>see <xref ref-type="fig">Figure 1</xref>A</p>', "see Figure 1A"),
    "bullets": (
        "<p>x<list list-type='bullet'><list-item><p>a</p>"
        "</list-item><list-item><p>b</p></list-item></list>y</p>",
        "x\n\n- a\n- b\n\ny",
    ),
    "numbers": (
        "<list list-type='order'><list-item><p>a</p></list-item><list-item><p>b</p></list-item></list>",
        "1. a\n2. b",
    ),
    "letters": (
        "<list list-type='alpha-upper'><list-item><p>a</p></list-item><list-item><p>b</p></list-item></list>",
        "A. a\nB. b",
    ),
    "numerals": (
        f"<list list-type='roman-lower'>{'<list-item><p>a</p></list-item>' * 4}</list>",
        "i. a\nii. a\niii. a\niv. a",
    ),
    "labels": ("<list><title>T</title><list-item><label>(1)</label><p>a</p></list-item></list>", "T\n(1) a"),
    "simple list": ("<list list-type='simple'><list-item><p>a</p></list-item></list>", "a"),
    "nested list": (
        "<list><list-item><p>a</p><list><list-item><p>b</p></list-item></list></list-item></list>",
        "- a\n- b",
    ),
    "definitions": (
        "<def-list><def-item><term>CI</term><def><p>interval</p></def></def-item>"
        "<def-item><term>OR:</term><def><p>ratio</p></def></def-item></def-list>",
        "CI: interval\nOR: ratio",
    ),
    "figure": (
        "<fig id='f'><label>Figure 1</label><caption><title>T.</title><p>C."
        "</p></caption><graphic><alt-text>no</alt-text></graphic></fig>",
        "Figure 1. T.\nC.",
    ),
    "figure in a paragraph": (
        "<p>a<fig><label>Fig. 2.</label><caption><p>c</p></caption></fig>b</p>",
        "a\n\nFig. 2. c\n\nb",
    ),
    "quote": ("<disp-quote><p>q</p><attrib>Osler</attrib></disp-quote>", "q\n\nOsler"),
    "verse": ("<verse-group><verse-line>a</verse-line><verse-line>b</verse-line></verse-group>", "a\nb"),
    "preformatted": ("<preformat>a  b\nc</preformat>", "a b\nc"),
    "box": (
        "<boxed-text><caption><title>Key</title></caption><sec><title>S</title><p>a</p></sec></boxed-text>",
        "Key\n\nS\n\na",
    ),
    "statement": ("<p><statement><label>Rule 1</label><p>a</p></statement></p>", "Rule 1. a"),
    "note": ("<fn-group><fn><label>*</label><p>a</p></fn></fn-group>", "* a"),
    "note in a text": ("<p>one<fn><label>1</label><p>note</p></fn> two</p>", "one (note) two"),
    "no supplement": (
        "<p>a<supplementary-material><media><caption><p>File"
        "</p></caption></media></supplementary-material>b</p>",
        "ab",
    ),
    "TeX": (
        r"<p>x <inline-formula><tex-math>\documentclass{m}\begin{document}$$\alpha$$\end{document}"
        r"</tex-math></inline-formula></p>",
        r"x \alpha",
    ),
    "MathML": (
        "<p>is <mml:math><mml:msup><mml:mi>R</mml:mi><mml:mn>2</mml:mn></mml:msup></mml:math>.</p>",
        "is R².",
    ),
    "one form": (
        r"<p><inline-formula><alternatives><tex-math>$R^2$</tex-math><mml:math><mml:mi>R"
        r"</mml:mi></mml:math><inline-graphic/></alternatives></inline-formula></p>",
        "R",
    ),
    "TeX if MathML is empty": (
        r"<p>a<inline-formula><alternatives><inline-graphic/><mml:math/>"
        r"<tex-math>$R^2$</tex-math></alternatives></inline-formula></p>",
        "aR^2",
    ),
    "display formula": (
        "<p>a<disp-formula><label>(1)</label><italic>E</italic> = "
        "<italic>mc</italic><sup>2</sup></disp-formula>b</p>",
        "a\n\nE = mc² (1)\n\nb",
    ),
    "numbers beside a formula": ("<p>2<mml:math><mml:mn>3</mml:mn></mml:math>4</p>", "2 3 4"),
    "block in a superscript": ("<p>a<sup>b<p>c</p></sup>d</p>", "a^(b c)d"),
    "names": ("<p><name><surname>Roe</surname><given-names>A</given-names></name>.</p>", "Roe A ."),
}


@pytest.mark.parametrize(("xml", "text"), CASES.values(), ids=CASES)
def test_constructs(article: Article, xml: str, text: str) -> None:
    assert text_of(article(xml)) == text


TABLE = """<table-wrap id="t1"><label>Table 1</label><caption><p>Doses</p></caption><alternatives><graphic/>
<table><thead><tr><th rowspan="2">Drug</th><th colspan="2">Dose</th></tr><tr><th>mg</th><th>ml</th></tr>
    </thead>
<tbody><tr><td><hr/></td><td/><td/></tr><tr><td>A<xref ref-type="table-fn">a</xref></td><td>5<break/>(2)</td>
<td><list><list-item><p>x</p></list-item></list></td></tr></tbody></table></alternatives><table-wrap-foot><fn>
<label>a</label><p>oral</p></fn></table-wrap-foot></table-wrap>"""
TABLE_LINES = [
    *("Table 1. Doses", "| Drug | Dose | |", "| | mg | ml |", "| A^a | 5 (2) | - x |", "a oral"),
]


def test_tables_have_aligned_rows_with_caption_and_notes(article: Article) -> None:
    assert text_of(article(TABLE)).split("\n") == TABLE_LINES
    floats = only(article("<p>a</p>", back=f"<floats-group>{TABLE}</floats-group>"))
    assert floats.sections[-1].text.split("\n") == TABLE_LINES


def test_tables_of_oasis(article: Article) -> None:
    xml = """<table-wrap>
    <oasis:table xmlns:oasis="http://www.niso.org/standards/z39-96/ns/oasis-exchange/table">
    <oasis:tgroup cols="3"><oasis:colspec colname="a"/><oasis:colspec colname="b"/>
    <oasis:colspec colname="c"/>
    <oasis:tbody><oasis:row><oasis:entry morerows="1">x</oasis:entry><oasis:entry namest="b" nameend="c">y
    </oasis:entry></oasis:row><oasis:row><oasis:entry>1</oasis:entry><oasis:entry>2</oasis:entry></oasis:row>
    </oasis:tbody></oasis:tgroup></oasis:table></table-wrap>"""
    assert text_of(article(xml)) == "| x | y | |\n| | 1 | 2 |"


def test_spans_of_hostile_tables_are_bounded(article: Article) -> None:
    cell = "<td colspan='99999' rowspan='99999'>a</td>"
    text = text_of(
        article(f"<table><tr>{cell}</tr><tr>{cell}</tr><tr><td rowspan='-1' colspan='x'>b</td></tr></table>")
    )
    assert len(text) < 1_000
    assert words(text) == ["a", "a", "b"]


def test_headings_are_labels_and_paths(article: Article) -> None:
    body = """<p>Before.</p><sec sec-type="methods"><label>2.</label><title>Methods</title><sec><title>
    Design</title>
    <p>a</p></sec><sec sec-type="materials|methods"><title>Drugs</title><p>b</p><sec><p>c</p></sec></sec>
    </sec>
    <sec><title>Alone</title></sec><sec><title>Files</title><supplementary-material/></sec>"""
    sections = only(article(body)).sections
    assert [(s.heading_path, s.label, s.category, s.text) for s in sections] == [
        ((), None, None, "Before."),
        (("2. Methods",), "Design", None, "a"),
        (("2. Methods",), "Drugs", "METHODS", "b"),
        (("2. Methods", "Drugs"), None, "METHODS", "c"),
        ((), None, None, "Alone"),
    ]


def test_front_and_back_matter(article: Article) -> None:
    meta = """<contrib-group><aff>Univ</aff></contrib-group><abstract><p>Plain.</p></abstract>
    <abstract abstract-type="toc"><p>Teaser.</p></abstract><trans-abstract xml:lang="es"><title>
    Resumen</title>
    <sec><title>Fondo</title><p>Texto.</p></sec></trans-abstract><funding-group><funding-statement>
    F</funding-statement>
    </funding-group><kwd-group><kwd>dose</kwd><kwd><italic>E. coli</italic></kwd></kwd-group>"""
    back = """<back><ack><p>We thank.</p></ack><sec><title>Funding sources</title><p>NIH</p></sec>
    <notes notes-type="funding-information"><title>Money</title><p>NIH</p></notes>
    <fn-group><fn fn-type="supported-by"><p>NIH</p></fn><fn fn-type="conflict"><p>None.</p></fn></fn-group>
    <app-group><app><title>Appendix A</title><p>More.</p></app></app-group><glossary><title>Terms</title>
    <def-list><def-item><term>CI</term><def><p>interval</p></def></def-item></def-list></glossary>
    <ref-list><title>References</title><ref><mixed-citation>Roe</mixed-citation></ref></ref-list></back>"""
    document = only(article("<p>Body.</p>", meta=meta, back=back))
    assert [(s.label, s.text) for s in document.sections] == [
        ("Abstract", "Plain."),
        ("Summary", "Teaser."),
        (None, "Body."),
        ("Acknowledgements", "We thank."),
        (None, "None."),
        ("Appendix A", "More."),
        ("Terms", "CI: interval"),
    ]
    assert document.meta["keywords"] == ["dose", "E. coli"]
    assert document.meta["other_abstracts"] == [
        {
            "language": "es",
            "type": None,
            "sections": [{"text": "Texto.", "label": "Fondo", "category": None, "path": ("Resumen",)}],
        }
    ]


def test_responses_follow_and_translations_are_counted(article: Article) -> None:
    back = """<sub-article article-type="reply"><front-stub><title-group><article-title>Reply</article-title>
    </title-group></front-stub><body><p>We agree.</p></body></sub-article>
    <sub-article article-type="translation"
    xml:lang="pt"><front-stub/><body><p>Texto.</p></body></sub-article><response><body><p>No title.</p>
    </body></response>"""
    log = ReadLog()
    (document,) = read(article("<p>Body.</p>", back=back), log)
    assert [(s.label, s.text) for s in document.sections] == [
        (None, "Body."),
        ("Reply", "We agree."),
        (None, "No title."),
    ]
    assert log.skipped == {"translation of an article": 1}


def test_fields(article: Article) -> None:
    meta = """<article-id pub-id-type="pmid">7</article-id><article-id pub-id-type="doi">10.1/x</article-id>
    <article-id pub-id-type="pmcid-ver">PMC123.2</article-id><article-categories><subj-group><subject>Review
    </subject></subj-group></article-categories><pub-date pub-type="collection"><year>2019</year></pub-date>
    <pub-date pub-type="epub"><day>3</day><month>Feb</month><year>2019</year></pub-date><pub-date
    pub-type="pmc-release"><year>2018</year></pub-date><permissions><license><license-p>Under
    <ext-link xlink:href="https://creativecommons.org/licenses/by/4.0/">CC BY</ext-link></license-p></license>
    </permissions><abstract><p>a</p></abstract>"""
    document = only(article("<p>b</p>", meta=meta, attributes='article-type="review-article" xml:lang="EN"'))
    assert (document.id, document.title, document.language) == ("pmc:PMC123", "A title", "en")
    assert (document.year, document.version, document.retracted) == (2019, 2, False)
    assert document.meta == {
        **{"pmid": "7", "doi": "10.1/x", "journal": "A Journal", "date": "2019-02-03"},
        **{"licence": "https://creativecommons.org/licenses/by/4.0/", "article_type": "review-article"},
        **{"publication_types": ["Review"], "subjects": ["Review"], "keywords": [], "other_abstracts": []},
    }


@pytest.mark.parametrize(
    ("dates", "date"),
    [
        ("<pub-date><year>2019</year></pub-date>", "2019"),
        ("<pub-date><month>11</month><year>2019</year></pub-date>", "2019-11"),
        ("<pub-date><season>Fall</season><year>2019</year></pub-date>", "2019"),
        ("<pub-date><day>40</day><month>11</month><year>2019</year></pub-date>", "2019-11"),
        ("<pub-date iso-8601-date='2019-05-31'><year>2019</year></pub-date>", "2019-05-31"),
        ("<pub-date><year>2020</year></pub-date><pub-date><year>2019</year></pub-date>", "2019"),
        ("<pub-date date-type='retracted'><year>2019</year></pub-date>", None),
        ("<pub-date><year>n.d.</year></pub-date>", None),
    ],
)
def test_dates(article: Article, dates: str, date: str | None) -> None:
    document = only(article("<p>a</p>", meta=dates))
    assert document.meta["date"] == date
    assert document.year == (int(date[:4]) if date else None)


CC = "creativecommons.org/licenses"


@pytest.mark.parametrize(
    ("xml", "licence"),
    [
        (f'<license xlink:href="http://{CC}/by/2.0"/>', f"http://{CC}/by/2.0"),
        (
            f"<license><ali:license_ref>http://{CC}/by/4.0/</ali:license_ref></license>",
            f"http://{CC}/by/4.0/",
        ),
        (f"<license><p>See http://{CC}/by-nc/3.0/.</p></license>", f"https://{CC}/by-nc/3.0/"),
        # The text is stricter than the link, or names the licence that a publisher's terms contain.
        (
            f'<license xlink:href="http://{CC}/by/3.0"><p>CC BY-NC 3.0 Unported</p></license>',
            "CC BY-NC 3.0 Unported",
        ),
        (
            '<license xlink:href="http://example.org/terms"><p>Under <ext-link xlink:href='
            f'"http://{CC}/by/3.0">Creative Commons Attribution</ext-link>.</p></license>',
            f"http://{CC}/by/3.0",
        ),
        ("<license><p>Free for <italic>all</italic> uses.</p></license>", "Free for all uses."),
        (
            "<copyright-statement>© Roe, all rights reserved</copyright-statement>",
            "© Roe, all rights reserved",
        ),
        ("", None),
    ],
)
def test_licences(article: Article, xml: str, licence: str | None) -> None:
    assert only(article("<p>a</p>", meta=f"<permissions>{xml}</permissions>")).meta["licence"] == licence


def test_retractions(article: Article) -> None:
    related = '<related-article related-article-type="retraction-forward"/>'
    assert only(article("<p>a</p>", meta=related)).retracted
    assert only(article("<p>a</p>", attributes='article-type="retraction"')).retracted
    path = article("<p>a</p>")
    path.write_text(path.read_text().replace("A title", "RETRACTED: A title"))
    assert only(path).retracted
    assert not only(article("<p>a</p>", meta='<related-article related-article-type="companion"/>')).retracted


def test_ids_of_articles_outside_of_pmc(article: Article) -> None:
    path = article("<p>a</p>")
    pmc = '<article-id pub-id-type="pmc">123</article-id>'
    for other, identity in (
        ('<article-id pub-id-type="pmcid">PMC9</article-id>', "pmc:PMC9"),
        ('<article-id pub-id-type="doi">10.1/x</article-id>', "doi:10.1/x"),
        ('<article-id pub-id-type="pmid">5</article-id>', "pmid:5"),
        ("", "jats:article.nxml"),
    ):
        path.write_text(article_xml("<p>a</p>").replace(pmc, other))
        assert only(path).id == identity


def test_title_without_the_marks_of_notes(article: Article) -> None:
    path = article("<p>a</p>")
    title = 'Of H<sub>2</sub>O<xref ref-type="fn">*</xref></article-title><subtitle>A trial</subtitle>'
    path.write_text(path.read_text().replace("A title</article-title>", title))
    assert only(path).title == "Of H₂O: A trial"


REFERENCES = """<back><ref-list><ref id="B1"><mixed-citation><person-group><name><surname>Roe</surname></name>
<name><surname>Poe</surname></name></person-group><article-title>
    One two three four five six seven eight nine ten
eleven twelve thirteen</article-title></mixed-citation></ref><ref id="B2"><element-citation><collab>
    WHO</collab>
<article-title>CO<sub>2</sub> report.</article-title></element-citation></ref></ref-list></back>"""
ONE = "[bib_ref] One two three four five six seven eight nine ten eleven twelve…, Roe [/bib_ref]"
TWO = "[bib_ref] CO₂ report, WHO [/bib_ref]"


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        (
            'as in [<xref ref-type="bibr" rid="B1">1</xref>, <xref ref-type="bibr" rid="B2">2</xref>].',
            f"as in {ONE} {TWO} .",
        ),
        ('as<sup>(<xref ref-type="bibr" rid="B1 B2">1,2</xref>)</sup> in', f"as {ONE} {TWO} in"),
        ('as (see <xref ref-type="bibr" rid="B2">2</xref>)', f"as (see {TWO} )"),
        ('as <xref ref-type="bibr" rid="none">[3]</xref>', "as [bib_ref] 3 [/bib_ref]"),
        ('in (<xref ref-type="table" rid="t1">Table 1</xref>)', "in [fig_ref] Table 1: Doses [/fig_ref]"),
        ('in <xref ref-type="sec" rid="s">Methods</xref>', "in Methods"),
    ],
)
def test_reference_tokens(article: Article, xml: str, text: str) -> None:
    body = f"<p>{xml}</p>"
    floats = f"<floats-group>{TABLE}</floats-group>"
    assert only(article(body, back=REFERENCES + floats), tokens=True).sections[0].text == text


def test_tokens_of_figures_tables_and_formulas(article: Article) -> None:
    figure = "<fig><label>Figure 1</label><caption><p>c</p></caption></fig>"
    body = f"<p>a</p>{figure}<disp-formula>x</disp-formula>{TABLE}"
    text = text_of(article(body), tokens=True)
    assert "[fig] Figure 1. c [/fig]\n\n[formula] x [/formula]\n\n[table] Table 1. Doses\n| Drug" in text
    assert text.endswith("\na oral [/table]")


def test_reference_tokens_are_an_option_of_sources(article: Article) -> None:
    path = article('<p>[<xref ref-type="bibr" rid="B2">2</xref>]</p>', back=REFERENCES)
    (document,) = open_source(path, options={"reference_tokens": True})
    assert document.sections[0].text == TWO
    with pytest.raises(SourceError, match="'jsonl' has no reference tokens"):
        open_source(path, "jsonl", options={"reference_tokens": True})


def test_entities_of_the_dtd_do_not_vanish(article: Article) -> None:
    path = article("<p>&alpha;-blocker &lt; 5&thinsp;mg &ndash; <italic>&Beta;</italic>&nosuch;</p>")
    assert text_of(path) == "α-blocker < 5 mg – Β&nosuch;"


def test_archives_compression_and_encodings(article: Article, tmp_path: Path) -> None:
    plain = article("<p>naïve</p>")
    data = plain.read_bytes()
    (tmp_path / "a.nxml.gz").write_bytes(gzip.compress(data))
    text = data.decode()
    (tmp_path / "utf16.nxml").write_text(text.replace("UTF-8", "UTF-16"), encoding="utf-16")
    (tmp_path / "latin1.nxml").write_bytes(text.replace("UTF-8", "ISO-8859-1").encode("latin-1"))
    for name in ("a.nxml.gz", "utf16.nxml", "latin1.nxml"):
        assert [document.to_json() for document in open_source(tmp_path / name)] == [only(plain).to_json()]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("PMC1/PMC1.nxml", data)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as folder:
        member = tarfile.TarInfo("PMC1/PMC1.nxml")
        member.size = len(data)
        folder.addfile(member, io.BytesIO(data))
    for name in ("a.zip", "a.tar.gz"):
        assert [document.id for document in open_source(tmp_path / name)] == ["pmc:PMC123"]


def test_sets_and_namespaces(article: Article, tmp_path: Path) -> None:
    one = article_xml("<p>a</p>").removeprefix(HEAD)
    path = tmp_path / "set.xml"
    path.write_text(f"<pmc-articleset>{one}{one.replace('>123<', '>124<')}</pmc-articleset>")
    assert [document.id for document in open_source(path)] == ["pmc:PMC123", "pmc:PMC124"]
    path.write_text(one.replace("<article ", '<article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/" '))
    assert [document.sections[0].text for document in open_source(path)] == ["a"]


def test_recognition() -> None:
    assert recognises(article_xml().encode())
    assert recognises(b"\xef\xbb\xbf<article><!-- x --><front>")
    assert recognises(b"<pmc-articleset><article")
    assert not recognises(
        b'<!DOCTYPE article PUBLIC "-//OASIS//DTD DocBook XML V4.5//EN" "x"><article><title>'
    )
    assert not recognises(b"<PubmedArticleSet>")
    assert not recognises(b"an <article>")


def test_articles_without_text_are_counted(article: Article) -> None:
    log = ReadLog()
    assert list(read(article(""), log)) == []
    assert log.skipped == {"no abstract or body": 1}


BOMB = '<!DOCTYPE article [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;">]><article><p>&b;</p></article>'
HOSTILE = {
    "truncated": (article_xml("<p>a</p>")[:-60], "x.nxml (line 3): ill-formed XML"),
    "ill-formed": (article_xml("<p>\n\na</b>"), "x.nxml (line 5): ill-formed XML: Opening"),
    "deep": (article_xml("<italic>" * 10_000), "ill-formed XML: Excessive depth"),
    "bomb": (BOMB, "DOCTYPE declares entities"),
    "large bomb": (
        "<!DOCTYPE article [<!ENTITY a0 'lol'>"
        + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
        + "]><article x='&a9;'/>",
        "amplification",
    ),
    "file": (
        '<!DOCTYPE article [<!ENTITY a SYSTEM "/etc/hostname">]>'
        "<article><front/><body><p>&a;</p></body></article>",
        None,
    ),
    "no article": ("<book><p>a</p></book>", "no JATS article: its root is book"),
    "unknown entity": (
        "<article><body><p>&nosuch;</p></body></article>",
        "x.nxml (line 1): ill-formed XML: Entity",
    ),
}


@pytest.mark.parametrize(("xml", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path: Path, xml: str, problem: str | None) -> None:
    path = tmp_path / "x.nxml"
    path.write_text(xml)
    if problem is None:
        assert text_of(path) == "&a;"
        return
    with pytest.raises(InputError, match=re.escape(problem)) as raised:
        list(read(path))
    assert str(path) in str(raised.value)
    assert "\n" not in raised.value.message


def test_wrong_encoding_and_damaged_compression(tmp_path: Path) -> None:
    path = tmp_path / "x.nxml"
    path.write_bytes(article_xml("<p>\xe9</p>").encode("latin-1"))
    with pytest.raises(InputError, match="line 3"):
        list(read(path))
    path.write_bytes(gzip.compress(article_xml("<p>a</p>").encode())[:-20])
    with pytest.raises(InputError, match="cut off"):
        list(read(path))


def test_the_deepest_markup_that_is_read(article: Article) -> None:
    for tag, inner in (
        ("sup", "x"),
        ("list", "<p>x</p>"),
        ("boxed-text", "x"),
        ("mml:msup", "x"),
        ("fn", "x"),
    ):
        opening = f"<{tag}>" if tag != "list" else "<list><list-item>"
        closing = f"</{tag}>" if tag != "list" else "</list-item></list>"
        levels = 100 if tag == "list" else 200
        body = f"<p>{opening * levels}{inner}{closing * levels}</p>"
        try:
            assert "x" in text_of(article(body if ":" not in tag else f"<mml:math>{body}</mml:math>"))
        except InputError as error:
            assert "nested too deeply" in str(error)  # noqa: PT017


def test_files_beyond_the_limit_are_refused(article: Article, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meditron.sources.jats.LARGEST_FILE", 1 << 20)
    with pytest.raises(InputError, match="longer than 1 MiB"):
        list(read(article(f"<p>{'word ' * (1 << 18)}</p>")))


# Words with a letter that occur once each, so that a lost, repeated or moved one is seen.
WORD = st.from_regex(r"[a-z]{1,3}[A-Z][a-z0-9]{0,4}", fullmatch=True)
SPACED = st.builds("{} {} ".format, WORD, WORD) | st.just("\n  ") | st.just("")
INLINE = st.recursive(
    st.builds("{}{}".format, WORD, SPACED),
    lambda inner: (
        st.builds(
            lambda tag, text, tail: f"<{tag}>{text}</{tag}>{tail}",
            st.sampled_from(["italic", "bold", "sc", "xref", "ext-link", "named-content"]),
            inner,
            SPACED,
        )
        | st.builds("{}{}".format, inner, inner)
    ),
    max_leaves=6,
)


def element(tag: str, *parts: st.SearchStrategy[str], attributes: str = "") -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(lambda texts: f"<{tag}{attributes}>{''.join(texts)}</{tag}>")


def many(part: st.SearchStrategy[str], most: int = 3) -> st.SearchStrategy[str]:
    return st.lists(part, max_size=most).map("".join)


PARAGRAPH = element("p", INLINE)
CAPTION = element("caption", many(element("title", INLINE), 1), PARAGRAPH)
CELL = element("td", many(PARAGRAPH, 2) | INLINE, attributes=' rowspan="2"') | element("td", INLINE)
BLOCK = st.recursive(
    PARAGRAPH
    | element("fig", element("label", WORD), CAPTION)
    | element("disp-formula", element("label", WORD), INLINE)
    | element("table-wrap", CAPTION, element("table", many(element("tr", many(CELL)))))
    | element("supplementary-material", CAPTION),
    lambda inner: (
        element("list", many(element("list-item", inner)), attributes=' list-type="bullet"')
        | element("p", INLINE, inner, INLINE)
        | element("disp-quote", inner)
        | element("boxed-text", CAPTION, many(inner))
        | element("def-list", many(element("def-item", element("term", WORD), element("def", inner))))
    ),
    max_leaves=4,
)
SECTIONS = st.recursive(
    element("sec", element("title", INLINE), many(BLOCK)),
    lambda inner: element("sec", element("title", INLINE), many(BLOCK, 2), many(inner, 2)),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(many(BLOCK, 2), many(SECTIONS), st.booleans())
def test_any_article(article: Article, before: str, sections: str, as_abstract: bool) -> None:
    abstract = f"<abstract>{before}</abstract>" if as_abstract else ""
    # Numbered, because a path cannot tell two successive sections of one heading apart.
    numbers = count()
    sections = re.sub("<title>", lambda _: f"<title>{next(numbers)}. ", sections)
    path = article(sections if as_abstract else before + sections, meta=abstract)
    (document,) = list(read(path)) or [Document("", "", "A title", ())]
    assert words(document_text(document)) == words(article_text(parse(path.read_bytes())))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(many(BLOCK, 2), st.integers(0, 2000))
def test_a_truncated_article_is_refused(article: Article, body: str, kept: int) -> None:
    path = article(body)
    data = path.read_bytes()
    path.write_bytes(data[: min(kept, len(data) - 1)])
    with pytest.raises(InputError):
        list(read(path))
