"""Semantic Scholar's records: both forms of S2ORC's papers, abstracts, and damaged annotations."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import InputError
from meditron.sources.document import Document, ReadLog
from meditron.sources.registry import find_source_format, format_name, open_source
from meditron.sources.s2orc import read
from meditron.sources.s2orc_annotated import annotated_sections
from meditron.sources.s2orc_spans import Span, parse_spans, replace_spans


class Annotated:
    """A text with annotations, in the form of the datasets API."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: dict[str, list[dict[str, Any]]] = {}

    def add(self, text: str, *names: str, after: str = "\n", **attributes: str) -> None:
        self.mark(len(self.text), len(self.text) + len(text), *names, **attributes)
        self.text += text + after

    def mark(self, start: int, end: int, *names: str, **attributes: str) -> None:
        span: dict[str, Any] = {"start": start, "end": end} | (
            {"attributes": attributes} if attributes else {}
        )
        for name in names:
            self.spans.setdefault(name, []).append(span)

    def mark_text(self, text: str, *names: str, **attributes: str) -> None:
        start = self.text.rindex(text)
        self.mark(start, start + len(text), *names, **attributes)

    def content(self) -> dict[str, Any]:
        strings = {name: json.dumps(spans) for name, spans in self.spans.items()}
        return {"text": self.text, "annotations": {"venue": None, "table": None} | strings}


def paper() -> Annotated:
    it = Annotated()
    it.add("Fluids in sepsis", "title")
    it.add("Ann Example", "author")
    it.add("University of Somewhere", "authoraffiliation")
    it.add("We compared two fluids (n = 1,203).", "abstract")
    it.add("Introduction", "sectionheader", n="1")
    it.add("Sepsis kills [1]. See Figure 1 for β-lactams.", "paragraph")
    it.mark_text("[1]", "bibref", ref_id="b0")
    it.mark_text("Figure 1", "figureref", ref_id="fig_0")
    it.add("Methods", "sectionheader", n="2")
    it.add("Patients", "sectionheader", n="2.1")
    it.add("Adults with lactate ≥ 2 mmol/L (Table 1).", "paragraph")
    it.mark_text("Table 1", "tableref", ref_id="tab_0")
    it.add("SOFA = a + b", "formula")
    it.add("They got 30 mL/kg.", "paragraph")
    it.add("Funding by the state.", "paragraph")
    it.add("Fig. 1. Survival of the patients, by fluid: all of them.", "figure", after="\n", id="fig_0")
    it.mark_text("Survival of the patients, by fluid: all of them.", "figurecaption")
    it.add("Tab. 1. Baseline values.", "figure", id="tab_0")
    it.mark_text("Tab. 1. Baseline values.", "table")
    it.mark_text("Baseline values.", "figurecaption")
    it.add(
        "Rivers E. Early goal-directed therapy in the treatment of severe sepsis and septic shock. 2001",
        "bibentry",
        id="b0",
    )
    it.mark_text("Early goal-directed therapy in the treatment of severe sepsis and septic shock", "bibtitle")
    it.mark_text("Rivers", "bibauthorlastname")
    return it


ACCESS = {"license": "CCBY", "openaccessurl": "https://x.org/a", "status": "GOLD"}
RECORD = {
    "corpusid": 254640939,
    "externalids": {"pubmed": "36589072", "pubmedcentral": "9798118", "doi": "10.1/x", "mag": None},
    "content": {"source": {"pdfurls": None, "oainfo": ACCESS}} | paper().content(),
}


def parse(folder: Path, *rows: Any, log: ReadLog | None = None, **options: Any) -> list[Document]:
    path = folder / "part.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert format_name(find_source_format(path)) == "s2orc"
    return list(open_source(path, log=log, options=options))


def outline(document: Document) -> list[tuple[str | None, tuple[str, ...], str]]:
    return [(section.label, section.heading_path, section.text) for section in document.sections]


def test_the_form_of_the_datasets_api(tmp_path: Path) -> None:
    (document,) = parse(tmp_path, RECORD)
    assert (document.id, document.title) == ("s2orc:254640939", "Fluids in sepsis")
    assert document.meta == {
        "pmid": "36589072",
        "pmc": "9798118",
        "doi": "10.1/x",
        "licence": "CCBY",
        "url": "https://x.org/a",
    }
    assert outline(document) == [
        ("Abstract", (), "We compared two fluids (n = 1,203)."),
        ("Introduction", (), "Sepsis kills [1]. See Figure 1 for β-lactams."),
        (
            "Patients",
            ("Methods",),
            "Adults with lactate ≥ 2 mmol/L (Table 1).\n\nSOFA = a + b\n\nThey got 30 mL/kg.\n\n"
            "Funding by the state.",
        ),
        ("Figures and tables", (), "Survival of the patients, by fluid: all of them.\n\nBaseline values."),
    ]


def test_the_second_version_has_its_bibliography_apart(tmp_path: Path) -> None:
    it, entries = paper(), Annotated()
    for name in ("bibentry", "bibtitle", "bibauthorlastname"):
        del it.spans[name]
    entries.add("Rivers E. Early therapy. 2001", "bib_entry", id="b0")
    entries.mark_text("Early therapy", "bib_title")
    entries.mark_text("Rivers", "bib_author_last_name")
    access = {"externalids": {"PubMed": "1"}, "license": "CCBYNC", "url": "https://x.org", "status": "BRONZE"}
    row = {"corpusid": 5, "title": "Stated title", "openaccessinfo": access, "body": it.content()}
    (document,) = parse(tmp_path, row | {"bibliography": entries.content()}, reference_tokens=True)
    assert document.title == "Stated title"
    assert document.meta == {"pmid": "1", "licence": "CCBYNC", "url": "https://x.org"}
    assert "[bib_ref] Early therapy, Rivers [/bib_ref]" in document.sections[1].text


def test_reference_tokens(tmp_path: Path) -> None:
    (document,) = parse(tmp_path, RECORD, reference_tokens=True)
    _, introduction, patients, captions = document.sections
    assert introduction.text == (
        "Sepsis kills [bib_ref] Early goal-directed therapy in the treatment of severe sepsis and septic "
        "shock, Rivers [/bib_ref] . See [fig_ref] Figure 1: Survival of the patients, by fluid [/fig_ref] "
        "for β-lactams."
    )
    assert "[formula] SOFA = a + b [/formula]" in patients.text
    assert "( [fig_ref] Table 1: Baseline values. [/fig_ref] )" in patients.text
    assert captions.text.split("\n\n") == [
        "[fig] Survival of the patients, by fluid: all of them. [/fig]",
        "[table] Baseline values. [/table]",
    ]


def test_a_text_without_annotated_paragraphs(tmp_path: Path) -> None:
    it = paper()
    del it.spans["paragraph"]
    (document,) = parse(tmp_path, RECORD | {"content": it.content()})
    assert outline(document)[1] == ("Introduction", (), "Sepsis kills [1]. See Figure 1 for β-lactams.")
    words = " ".join(section.text for section in document.sections)
    assert "University" not in words
    assert "Rivers" not in words
    assert "They got 30 mL/kg." in words


def paragraph(text: str, section: str = "", **spans: Any) -> dict[str, Any]:
    return {"text": text, "section": section, "cite_spans": [], "ref_spans": []} | spans


OLD: dict[str, Any] = {
    "paper_id": "18980380",
    "_pdf_hash": "d34d",
    "abstract": [paragraph("We compared two fluids.", "Abstract")],
    "body_text": [
        paragraph(
            "Dogs are happier [13]. See Figure 3 for x EQ.",
            "Introduction",
            cite_spans=[{"start": 17, "end": 21, "text": "[13]", "ref_id": "BIBREF1"}],
            ref_spans=[{"start": 27, "end": 35, "text": "Figure 3", "ref_id": "FIGREF2"}],
            eq_spans=[{"start": 42, "end": 44, "ref_id": "EQ1"}],
        ),
        paragraph("A second paragraph.", "Introduction"),
        paragraph("Doses.", "Methods", sec_num="2"),
        paragraph("5 mg.", "Adults", sec_num="2.1"),
    ],
    "bib_entries": {"BIBREF1": {"title": "Do dogs dream?", "authors": [{"first": "L", "last": "Wang"}]}},
    "ref_entries": {
        "FIGREF2": {"text": "Figure 3. A pretty figure.", "type": "figure"},
        "TABREF4": {"text": "Table 5. Doses.", "type": "table"},
    },
}


def test_the_older_form(tmp_path: Path) -> None:
    (document,) = parse(tmp_path, OLD)
    assert document.id == "s2orc:18980380"
    assert outline(document) == [
        ("Abstract", (), "We compared two fluids."),
        ("Introduction", (), "Dogs are happier [13]. See Figure 3 for x EQ.\n\nA second paragraph."),
        ("Methods", (), "Doses."),
        ("Adults", ("Methods",), "5 mg."),
        ("Figures and tables", (), "Figure 3. A pretty figure.\n\nTable 5. Doses."),
    ]
    (marked,) = parse(tmp_path, OLD, reference_tokens=True)
    assert marked.sections[1].text.startswith(
        "Dogs are happier [bib_ref] Do dogs dream?, Wang [/bib_ref] . See [fig_ref] Figure 3: Figure 3. A"
    )
    assert "[formula] EQ [/formula]" in marked.sections[1].text


def test_files_of_doc2json_are_indented(tmp_path: Path) -> None:
    head = {"paper_id": "a", "header": {}, "title": "T", "year": "2019", "abstract": "One. ::: Two."}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(head | {"pdf_parse": OLD | {"abstract": []}}, indent=4))
    (document,) = open_source(path)
    assert (document.title, document.year) == ("T", 2019)
    assert outline(document)[0] == ("Abstract", (), "One. \n Two.")
    assert outline(document)[4][2] == "Figure 3. A pretty figure.\n\nTable 5. Doses."


def test_abstracts_and_records_without_text(tmp_path: Path) -> None:
    log = ReadLog()
    access = {"externalids": {"PubMedCentral": "5"}, "license": None, "url": None, "status": None}
    rows = [
        {"corpusid": 1, "openaccessinfo": access, "abstract": "Aspirin helps."},
        {"corpusid": 2, "openaccessinfo": access, "abstract": None},
        {
            "paper_id": "3",
            "_pdf_hash": "x",
            "abstract": [],
            "body_text": [],
            "bib_entries": {},
            "ref_entries": {},
        },
    ]
    (document,) = parse(tmp_path, *rows, log=log)
    assert (document.id, outline(document)) == ("s2orc:1", [("Abstract", (), "Aspirin helps.")])
    assert log.skipped == Counter({"paper without text": 2})


def test_json_lines_of_other_kinds_are_not_recognised(tmp_path: Path) -> None:
    for row in (
        {"corpusid": 1, "model": "tldr", "text": "x"},
        {"paper_id": "1", "text": "x"},
        {"content": "x"},
    ):
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(row) + "\n")
        assert format_name(find_source_format(path)) == "jsonl"


@pytest.mark.parametrize(
    "row", [["x"], {}, {"corpusid": None}, {"corpusid": True, "content": {}}, {"paper_id": {}}]
)
def test_lines_without_an_id_are_refused(tmp_path: Path, row: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{json.dumps(RECORD)}\n{json.dumps(row)}\n")
    with pytest.raises(InputError, match=re.escape("a.jsonl (line 2): no record with a")):
        list(read(path))


SPANS = st.lists(
    st.one_of(
        st.builds(
            lambda start, length, name: {"start": start, "end": start + length, "attributes": name},
            st.integers(-5, 70),
            st.integers(-3, 40),
            st.sampled_from([None, {"ref_id": "b0"}, {"id": "b0"}, {"n": "2.1"}, {"ref_id": 5}]),
        ),
        st.sampled_from(
            [None, [], {"start": "1", "end": "9"}, {"start": 1.5, "end": 2}, {"start": True, "end": 3}, "x"]
        ),
    ),
    max_size=8,
)
NAMES = ("title", "abstract", "paragraph", "sectionheader", "bibref", "figureref", "bibentry", "bibtitle",
         "figure", "figurecaption", "table", "formula")  # fmt: skip
TEXT = "Sepsis β 30 mL/kg (n = 5).\nA second line; IL-6 < 5.2 & 95% CI 1–2.\n"


@given(st.dictionaries(st.sampled_from(NAMES), SPANS), st.booleans(), st.booleans())
def test_any_spans_give_parts_of_the_text(
    annotations: dict[str, list[Any]], mark: bool, as_strings: bool
) -> None:
    values = {name: json.dumps(spans) if as_strings else spans for name, spans in annotations.items()}
    title, sections, invalid = annotated_sections({"text": TEXT, "annotations": values}, {}, mark)
    valid = {name: parse_spans(spans, len(TEXT))[0] for name, spans in annotations.items()}
    assert invalid == sum(map(len, annotations.values())) - sum(map(len, valid.values()))
    assert title in " ".join(TEXT.split())
    if not mark:
        flat = " ".join(TEXT.split())
        for section in sections:
            for part in re.split(r"\n+", section.text):
                assert " ".join(part.split()) in flat
    for spans in valid.values():
        assert all(0 <= span.start < span.end <= len(TEXT) for span in spans)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=10))
def test_replacing_keeps_all_other_characters(places: list[tuple[int, int]]) -> None:
    spans = [Span(min(place), max(place)) for place in places if place[0] != place[1]]
    replaced = replace_spans(TEXT, 0, 40, [(span, "\0") for span in spans])
    covered = {i for span in spans for i in range(span.start, span.end)}
    outside = "".join(TEXT[i] for i in range(40) if i not in covered)
    kept = iter(replaced.replace("\0", ""))
    assert all(character in kept for character in outside)


@pytest.mark.parametrize("value", ["not JSON", "[" * 5_000, '{"start": 1}', 5, "5", [[1]]])
def test_annotations_that_are_no_lists_are_counted(value: Any) -> None:
    assert parse_spans(value, 100) == ([], 1)


def test_invalid_spans_are_reported(tmp_path: Path) -> None:
    it = paper()
    it.mark(5, 100_000, "paragraph")
    it.mark(9, 3, "bibref")
    (document,) = parse(tmp_path, RECORD | {"content": it.content()})
    assert document.meta["invalid_spans"] == 2
    assert len(document.sections) == 4
