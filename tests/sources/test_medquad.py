"""MedQuAD: the published documents, against a second reader, and damaged ones."""

import tarfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from meditron.core.errors import InputError
from meditron.sources.medquad import NO_ANSWER, read_medquad

PAIR = '<QAPair pid="1"><Question qid="1-1">What is (are) Gout ?</Question><Answer>{}</Answer></QAPair>'
DOCUMENT = '<?xml version="1.0"?>\n<Document id="1">\n<QAPairs>\n{}\n</QAPairs></Document>'


def test_the_published_pairs_are_those_of_a_second_reader(shared: Path) -> None:
    archive = shared / "data/medquad/medquad.first80pct.tar.gz"
    skipped: Counter[str] = Counter()
    pairs = list(read_medquad(archive, skipped))
    expected: dict[str, tuple[list[str], list[str]]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                continue
            root = ElementTree.parse(file).getroot()  # noqa: S314  # a trusted file
            for pair in root.findall("QAPairs/QAPair") + root.findall("qaPairs/pair"):
                question, answer = list(pair)
                asked = " ".join((question.text or "").split()).replace(" ?", "?")
                key = f"{member.name}#{question.attrib['qid']}"
                expected[key] = asked.split(), (answer.text or "").split()
    assert len(pairs) + skipped[NO_ANSWER] == len(expected) == 13_143
    for pair in pairs:
        question, answer = expected[pair.id]
        assert pair.question.split() == question
        assert pair.answer.split() == answer
        assert "  " not in pair.answer
        assert "\n\n\n" not in pair.answer


def test_a_folder_is_read_in_the_order_of_its_files_and_pairs_without_an_answer_are_counted(
    tmp_path: Path,
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.xml").write_text(
        DOCUMENT.format(PAIR.format("A disease\n   of joints. \n\n\n It hurts."))
    )
    (tmp_path / "a.xml").write_text(DOCUMENT.format(PAIR.format(" \n ").replace("1-1", "2-1")))
    skipped: Counter[str] = Counter()
    [pair] = read_medquad(tmp_path, skipped)
    assert (pair.question, pair.answer) == ("What is (are) Gout?", "A disease\nof joints.\n\nIt hurts.")
    assert pair.place == "b/1.xml, line 4"
    assert skipped == {NO_ANSWER: 1}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (DOCUMENT.format("<QAPair>"), r"bad\.xml, line 5\): ill-formed XML"),
        ("<article/>", r"bad\.xml, line 1\): no document of MedQuAD: article"),
        (
            DOCUMENT.format(PAIR.format("x").replace(' qid="1-1"', "")),
            r"bad\.xml, line 4\): a QAPair without",
        ),
        (DOCUMENT.format("<QAPair><Answer>x</Answer></QAPair>"), r"bad\.xml, line 4\): a QAPair without"),
    ],
)
def test_a_damaged_document_is_named_with_its_line(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "bad.xml").write_text(text)
    with pytest.raises(InputError, match=problem):
        list(read_medquad(tmp_path, Counter()))


def test_external_entities_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    text = DOCUMENT.format(PAIR.format("&file;")).replace(
        "<Document", f'<!DOCTYPE d [<!ENTITY file SYSTEM "{tmp_path}/secret">]><Document'
    )
    (tmp_path / "a.xml").write_text(text)
    assert not any("secret" in pair.answer for pair in read_medquad(tmp_path, Counter()))
