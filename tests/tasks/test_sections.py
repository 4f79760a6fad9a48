"""`pubmed-sections`: questions from a corpus' structured abstracts, balanced, split as the corpus is."""

import gzip
import hashlib
import random
import re
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import UsageError
from meditron.corpus.build import run
from meditron.corpus.clean import render_document
from meditron.corpus.config import CorpusConfig
from meditron.corpus.split import is_heldout
from meditron.sources.document import Document, Section
from meditron.sources.registry import open_source
from meditron.store.corpus import read_corpus
from meditron.store.files import make_folder
from meditron.store.identity import content_sha256
from meditron.store.jsonl import JsonlWriter
from meditron.store.manifest import Artifact
from meditron.tasks.prompt_template import SECTIONS
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task

CATEGORIES = ["BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS"]


def row(number: int, *categories: str | None, form: str = "The {} sentence of {} stands here.") -> Any:
    """A line of a corpus: an abstract of these sections, three sentences each."""
    sections = tuple(
        Section(" ".join(form.format(place, f"section {kind or 'X'} {number}".lower())
                         for place in ("first", "second", "third")), (kind or "Note").title(), kind)
        for kind in categories
    )  # fmt: skip
    text, parts = render_document(Document(f"pubmed:{number}", "pubmed", "A title.", sections))
    spans = [list(astuple(part)) for part in parts]
    return {"id": f"pubmed:{number}", "source": "pubmed", "text": text, "parts": spans, "meta": {}}


def corpus(folder: Path, rows: list[Any], split: str = "heldout", shards: int = 1) -> Path:
    make_folder(folder / split / "pubmed")
    for shard in range(shards):
        with JsonlWriter(folder / split / f"pubmed/{shard:05d}.jsonl.zst") as writer:
            for item in rows[shard::shards]:
                writer.write(item)
    return folder


def task(folder: Path) -> Task:
    return open_task("pubmed-sections", corpus=folder)


def test_the_order_of_files_and_rows_does_not_matter(tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = [row(n, *(item for item in CATEGORIES if draw.random() < 0.7)) for n in range(80)]
    item = task(corpus(tmp_path / "one", rows)).rows("test")
    assert task(corpus(tmp_path / "two", rows[::-1], shards=3)).rows("test") == item
    assert Counter(question.gold for question in item) == dict.fromkeys(range(5), len(item) // 5)
    assert len(item) >= 75
    places = [hashlib.sha256(question.id.encode()).digest() for question in item if question.gold == 0]
    assert places == sorted(places)


def test_a_question_is_a_sentence_of_the_section_of_its_category(tmp_path: Path) -> None:
    rows = [row(n, *CATEGORIES) for n in range(25)]
    questions = task(corpus(tmp_path, rows)).rows("test")
    by_id = {item["id"]: item for item in rows}
    for question in questions:
        assert question.options == SECTIONS
        text = by_id[question.id]["text"]
        start, end, _, _ = by_id[question.id]["parts"][question.gold]
        assert question.text in text[start:end]
        assert question.text.endswith("stands here.")
    # Not always the first of its section, which would be told by its form.
    assert {question.text.split()[1] for question in questions} == {"first", "second", "third"}


def test_unusable_sentences_are_left_out(tmp_path: Path) -> None:
    rows = [
        row(1, "METHODS", None, "UNASSIGNED"),
        row(2, "RESULTS", form="The {} of {} short."),
        row(3, "RESULTS", form="The {} sentence of {} is too long," + " and longer" * 40),
        row(4, "RESULTS", form="The {} sentence of {} has a heading in it, RESULTS they stand here."),
        row(5, "RESULTS", form="The {} sentence has one in small letters, main results: of {} it is."),
        row(6, None),
        row(7, "CONCLUSIONS"),
    ]
    questions = task(corpus(tmp_path, rows)).rows("test")
    assert {question.id: question.options[question.gold] for question in questions} == {
        "pubmed:1": "methods",
        "pubmed:7": "conclusion",
    }


def test_a_sentence_of_two_abstracts_is_not_in_both_splits(tmp_path: Path) -> None:
    message = "Further research  is needed to confirm what was found here."
    rows = [row(n, "CONCLUSIONS", form=message) for n in range(4)]
    rows[1]["text"] = rows[1]["text"].upper()
    corpus(tmp_path, rows[:1])
    corpus(tmp_path, [*rows[1:], row(9, "CONCLUSIONS")], "train")
    sections = task(tmp_path)
    assert [question.id for question in sections.rows("test")] == ["pubmed:0"]
    assert [question.id for question in sections.rows("train")] == ["pubmed:9"]


def test_a_corpus_without_structured_abstracts(tmp_path: Path) -> None:
    both = corpus(tmp_path, [row(1, "METHODS")], "train")
    assert len(task(both).rows("train")) == 1
    with pytest.raises(UsageError, match="no structured abstracts in its heldout documents"):
        task(both).rows("test")


@pytest.fixture(scope="module")
def quickstart(pubmed_xml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus of the structured citations of the quickstart's file: all held out, 1,500 of the others.

    The rest, which takes most of the time, holds no question, or more of those to train on.
    """
    folder = tmp_path_factory.mktemp("corpus")
    with gzip.open(pubmed_xml) as file:
        head, *citations = file.read().split(b"<PubmedArticle>")
    structured = [
        b"<PubmedArticle>" + citation.rpartition(b"</PubmedArticle>")[0] + b"</PubmedArticle>"
        for citation in citations
        if b"NlmCategory" in citation
    ]
    source = folder / "structured.xml"
    source.write_bytes(head + b"".join(structured) + b"</PubmedArticleSet>")
    chosen: dict[bool, list[bytes]] = {True: [], False: []}
    for citation, document in zip(structured, open_source(source), strict=True):
        chosen[is_heldout(content_sha256(render_document(document)[0]), 0.12)].append(citation)
    source.write_bytes(head + b"".join(chosen[True] + chosen[False][:1_500]) + b"</PubmedArticleSet>")
    config = CorpusConfig.model_validate({"sources": {"pubmed": {"from": str(source)}}})
    run(config, {"pubmed": Artifact("pubmed", source, "0" * 64)}, folder / "out")
    return folder / "out"


@pytest.mark.slow
def test_on_the_quickstarts_file(quickstart: Path) -> None:
    sections = task(quickstart)
    test, train = sections.rows("test"), sections.rows("train")
    assert min(Counter(question.gold for question in test).values()) >= 110
    assert len(test) >= 550
    assert len(train) >= 1_000
    assert all(len(set(Counter(q.gold for q in rows).values())) == 1 for rows in (test, train))
    assert Counter(question.gold for question in sections.rows("train", 640)) == dict.fromkeys(range(5), 128)
    ids = {split: {question.id for question in rows} for split, rows in (("test", test), ("train", train))}
    assert len(ids["test"]) == len(test)
    assert not ids["test"] & ids["train"]
    assert ids["test"] <= {text.id for text in read_corpus(quickstart, "heldout")}
    assert ids["train"] <= {text.id for text in read_corpus(quickstart, "train")}
    assert all(40 <= len(question.text) <= 400 for question in test + train)
    assert not [question for question in test + train if re.match(r"[A-Z ]{5,}:", question.text)]
    ends = [question.text for question in test + train if not re.search(r"[.!?\"”)\]]$", question.text)]
    assert len(ends) < 0.02 * len(test + train)
