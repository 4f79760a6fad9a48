"""Errata: found by content in any file, with their source; and the score without them."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from meditron.store.identity import short_hash
from meditron.tasks.errata import find_errata, known_errata
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task

KINDS = {
    *("wrong answer key", "unclear question", "unclear options"),
    *("no correct answer", "several correct answers", "missing information"),
}


def test_the_data_are_well_formed() -> None:
    errata = known_errata()
    papers = ("arXiv 2406.04127", "arXiv 2404.18416")
    sources = [paper for erratum in errata.values() for paper in papers if paper in erratum.source]
    assert Counter(sources) == {papers[0]: 73, papers[1]: 34}
    assert {erratum.kind for erratum in errata.values()} == KINDS
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in errata)


@pytest.mark.shared
def test_errata_of_mmlu_are_found_in_its_files_whatever_the_ids(shared: Path, tmp_path: Path) -> None:
    path = shared / "data/mmlu/test/virology_test.csv"
    questions = open_task(str(path)).rows("test")
    found = find_errata(questions)
    assert Counter(erratum.kind for erratum in found.values())["wrong answer key"] > 20
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    copy = tmp_path / "copy.csv"
    with copy.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(reversed(lines))
    again = open_task(str(copy)).rows("test")
    assert len(find_errata(again)) == len(found)


@pytest.mark.shared
def test_errata_of_medqa_are_found_in_its_published_file(shared: Path) -> None:
    questions = open_task(str(shared / "data/medqa-usmle/test_4options.first1000.jsonl.gz")).rows("test")
    found = find_errata(questions)
    by_kind = Counter(erratum.kind for erratum in found.values())
    assert by_kind == {"missing information": 23, "wrong answer key": 5}
    # Most of them refer to a picture that the file does not have.
    assert sum("shown" in question.text for question in questions if question.id in found) == 20


def test_a_question_with_other_words_has_no_erratum(monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question(id="q", text="Which virus?", options=("A", "B"), gold=0)
    known = {short_hash(question.content_sha256): next(iter(known_errata().values()))}
    monkeypatch.setattr("meditron.tasks.errata.known_errata", lambda: known)
    assert list(find_errata([question, replace(question, id="r", options=("B", "A"))])) == ["q", "r"]
    assert find_errata([replace(question, text="Which viruses?")]) == {}
