"""Guidelines: the hub's JSON lines, and NGC's XML compared with a walk of lxml over all shared summaries."""

import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from lxml import etree
from lxml import html as lxml_html

from meditron.core.errors import InputError
from meditron.sources.document import ReadLog
from meditron.sources.guidelines import markdown_sections
from meditron.sources.ngc import OMITTED_FIELDS
from meditron.sources.registry import find_source_format, format_name, open_source

ROW = {
    "id": "a1b2",
    "source": "who",
    "title": "Malaria",
    "clean_text": "# Malaria\n\nGive artesunate.\n\n## Dose\n\n- 2.4 mg/kg\n- # not a heading\n\n"
    "### Children\n3 mg/kg if < 20 kg\n",
    "raw_text": "…",
    "url": "https://example.org",
    "overview": None,
}


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("# Dose", "Dose"),
        ("   ## Dose in children ## \r", "Dose in children"),
        ("# C#", "C"),
        ("## ### ###", "###"),
        ("## ###", "#"),
        ("# #1 dose\t", "#1 dose"),
    ],
)
def test_marks_of_a_heading_are_removed(line: str, label: str) -> None:
    (section,) = markdown_sections(f"{line}\nGive artesunate.")
    assert section.label == label


@pytest.mark.parametrize("line", ["#Dose", "    # Dose", "####### Dose", "# ", "#"])
def test_other_lines_are_no_headings(line: str) -> None:
    (section,) = markdown_sections(f"{line}\nGive artesunate.")
    assert (section.label, section.text) == (None, f"{line.rstrip()}\nGive artesunate.")


def test_a_heading_of_blanks_is_read_in_linear_time() -> None:
    # A pattern that tries every division of the blanks takes hours.
    (section,) = markdown_sections("# a" + " " * 50_000 + "#" * 50_000 + " b\nGive artesunate.")
    assert section.text == "Give artesunate."


def test_headings_of_the_hubs_guidelines_are_sections(tmp_path: Path) -> None:
    path = tmp_path / "open_guidelines.jsonl"
    empty = ROW | {"id": "c", "clean_text": ""}
    path.write_text(f"{json.dumps(ROW)}\n{json.dumps(empty)}\n")
    assert format_name(find_source_format(path)) == "guidelines"
    log = ReadLog()
    (document,) = open_source(path, log=log)
    assert (document.id, document.title, document.language) == ("guideline:a1b2", "Malaria", "en")
    assert document.meta == {"publisher": "who", "url": "https://example.org"}
    assert [(section.label, section.heading_path, section.text) for section in document.sections] == [
        ("Malaria", (), "Give artesunate."),
        ("Dose", ("Malaria",), "- 2.4 mg/kg\n- # not a heading"),
        ("Children", ("Malaria", "Dose"), "3 mg/kg if < 20 kg"),
    ]
    assert log.skipped == Counter({"guideline without text": 1})


def test_rows_that_are_no_guidelines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for row, problem in (
        (["x"], '(line 2): no guideline: an object with "id" and "clean_text"'),
        (ROW | {"clean_text": 5}, '(line 2): "clean_text" is a int'),
    ):
        path.write_text(f"{json.dumps(ROW)}\n{json.dumps(row)}\n")
        with pytest.raises(InputError, match=re.escape(problem)):
            list(open_source(path))


def test_marks_within_words_are_no_headings() -> None:
    (section,) = markdown_sections("#5 of the list\nC# and a#b\n    # code")
    assert section.label is None
    assert section.text == "#5 of the list\nC# and a#b\n    # code"


NGC = """<Version><xmlSource>NGC</xmlSource>
<Section SecID="390" Name="General"><Field FieldID="161" Name="Guideline Title">
<FieldValue Value="&lt;div&gt;Title&lt;/div&gt;"/></Field></Section>
<Section SecID="420" Name="Recommendations"><Field Name="Major Recommendations">
<FieldValue Value="&lt;p&gt;Give &amp;lt; 5 mg.&lt;/p&gt;
&lt;table&gt;&lt;tr&gt;&lt;td&gt;A&lt;td&gt;B&lt;/table&gt;"/></Field></Section>
<Section SecID="1" Name="Identifying"><Field Name="Date Released">
<FieldValue Value="{date}"/></Field></Section></Version>"""


@pytest.mark.parametrize(
    ("date", "iso"),
    [("1996 (revised 2013 Nov 5)", "2013-11-05"), ("2006 Feb", "2006-02"), ("1989", "1989"),
     ("Unknown", None), ("2002 (reaffirmed 2009)", "2002"),
     ("1999 Sep (revised 2002 Jan; revised 2010 Mar 2)", "2010-03-02")],
)  # fmt: skip
def test_summaries_of_the_clearinghouse(tmp_path: Path, date: str, iso: str | None) -> None:
    path = tmp_path / "ngc-10746.xml"
    path.write_text(NGC.format(date=date))
    (document,) = open_source(path)
    assert (document.id, document.title, document.meta.get("date")) == ("ngc:10746", "Title", iso)
    assert document.year == (int(iso[:4]) if iso else None)
    (section,) = document.sections
    assert (section.label, section.heading_path) == ("Major Recommendations", ("Recommendations",))
    assert section.text == "Give < 5 mg.\n| A | B |"


def test_hostile_summaries(tmp_path: Path) -> None:
    path = tmp_path / "ngc-1.xml"
    path.write_text(NGC[:300])
    with pytest.raises(InputError, match=r"ngc-1\.xml \(line \d+\): ill-formed XML"):
        list(open_source(path))
    path.write_text('<!DOCTYPE Version [<!ENTITY a "x">]>' + NGC)
    with pytest.raises(InputError, match="DOCTYPE"):
        list(open_source(path, "ngc"))
    path.write_text("<article/>")
    with pytest.raises(InputError, match="its root is article"):
        list(open_source(path, "ngc"))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def lxml_words(value: str) -> Counter[str]:
    """Return the words of a value by lxml's HTML parser: blanks at blocks, none at inline elements.

    The items of ordered lists are preceded by their numbers, which are not in the text.
    """
    tree = lxml_html.fromstring(f"<div>{value}</div>")
    inline = {"a", "em", "strong", "span", "sup", "sub"}
    pieces = []
    for event, element in etree.iterwalk(tree, events=("start", "end")):
        pieces.append("" if element.tag in inline else " ")
        if event == "start" and element.tag == "li" and element.getparent().tag == "ol":
            number = int(element.getparent().get("start", "1")) + len(
                [*element.itersiblings("li", preceding=True)]
            )
            pieces.append(
                f"{marker(number, element.getparent().get('type', '1'))} "
                if element.text_content().strip()
                else ""
            )
        pieces.append((element.text if event == "start" else element.tail) or "")
    return Counter(words(re.sub("[_^]", "", "".join(pieces).translate(RAISED))))


def marker(number: int, style: str) -> str:
    return chr(ord(style) + number - 1) if style in "aA" else str(number)


RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁱⁿᵐ₀₁₂₃₄₅₆₇₈₉", "0123456789+-inm0123456789")


@pytest.mark.shared
def test_words_of_all_shared_summaries_are_those_of_lxml(shared: Path, tmp_path: Path) -> None:
    archive = shared / "data/guidelines-ngc/summaries.first94.tar.gz"
    documents = {document.id: document for document in open_source(archive)}
    assert len(documents) == 94
    compared = 0
    with tarfile.open(archive) as members:
        for member in members:
            if not member.isfile():
                continue
            root = etree.parse(members.extractfile(member)).getroot()
            document = documents["ngc:" + re.search(r"ngc-(\d+)", member.name)[1]]
            texts = {(section.heading_path, section.label): section.text for section in document.sections}
            for field in root.iterfind("Section/Field"):
                label = field.get("Name")
                if label in OMITTED_FIELDS | {"Guideline Title", "Date Released", "Copyright Statement"} | {
                    "Guideline Developer(s)",
                    "Bibliographic Source(s)",
                }:
                    continue
                values = [value.get("Value") or "" for value in field.iterfind("FieldValue")]
                expected = sum(map(lxml_words, values), Counter())
                text = texts.get(((field.getparent().get("Name"),), label), "")
                text = re.sub(
                    r"[\^_]\(([^()]*)\)", r"\1", text.translate(RAISED)
                )  # `^(a)` of `<sup>a</sup>B`
                found = Counter(words(re.sub("[_^]", "", text)))
                assert found == expected, (member.name, label, found - expected, expected - found)
                compared += sum(expected.values())
    assert compared > 500_000
