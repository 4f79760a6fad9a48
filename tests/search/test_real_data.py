"""The real benchmarks against real literature, whose texts contain none of the questions."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from meditron.corpus.clean import render_document
from meditron.search.question_index import IndexedQuestion, QuestionIndex
from meditron.search.verify import find_questions
from meditron.sources.registry import open_source
from meditron.tasks.file_task import open_file_task
from meditron.tasks.question import Question

pytestmark = [pytest.mark.shared, pytest.mark.slow]
Benchmark = tuple[list[Question], QuestionIndex]


@pytest.fixture(scope="module")
def benchmark(shared: Path) -> Benchmark:
    data = shared / "data"
    files = [
        data / "medqa-usmle/test_4options.first1000.jsonl.gz",
        data / "medmcqa/dev.first3683.json.gz",
        data / "pubmedqa/ori_pqal.less100.json.gz",
        *sorted((data / "mmlu/test").glob("*.csv")),
    ]
    questions = [question for file in files for question in open_file_task(file).rows("test")]
    index = QuestionIndex.build([IndexedQuestion.from_question("all", each) for each in questions])
    return questions, index


@pytest.fixture(scope="module")
def abstracts(shared: Path) -> list[str]:
    file = shared / "data/pubmed-medline-xml/pubmed20n0014.part1of3.xml.gz"
    return [render_document(document)[0] for document in open_source(file)]


def recall(
    benchmark: Benchmark,
    abstracts: list[str],
    chosen: Callable[[Question], bool],
    plant: Callable[[Question], str],
) -> float:
    questions, index = benchmark
    chance = random.Random(5)
    long = [text for text in abstracts if len(text) > 600]
    planted = [question for question in questions if chosen(question)][::4]
    hits = 0
    for question in planted:
        document = f"{chance.choice(long)}\n{plant(question)}\n{chance.choice(long)}"
        hits += question.content_sha256 in {hit.question_sha256 for hit in find_questions(index, document)}
    return hits / len(planted)


def with_options(question: Question) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJ", question.options, strict=False)]
    return "\n".join([question.text, *lines])


def is_long(question: Question) -> bool:
    return len(IndexedQuestion.from_question("", question).text) >= 13


def test_of_clean_abstracts_at_most_one_in_a_thousand_is_a_hit(
    benchmark: Benchmark, abstracts: list[str]
) -> None:
    assert len(abstracts) == 12_000
    assert sum(bool(find_questions(benchmark[1], text)) for text in abstracts) <= 12


def test_verbatim_questions_are_all_found(benchmark: Benchmark, abstracts: list[str]) -> None:
    assert recall(benchmark, abstracts, is_long, lambda question: question.text) == 1
    assert recall(benchmark, abstracts, lambda question: not question.context, with_options) == 1


def test_contexts_are_all_found_even_without_the_questions(
    benchmark: Benchmark, abstracts: list[str]
) -> None:
    assert recall(benchmark, abstracts, lambda question: bool(question.context), lambda q: q.context) == 1


def test_edited_questions_are_nearly_all_found(benchmark: Benchmark, abstracts: list[str]) -> None:
    chance = random.Random(6)
    vocabulary = [word for text in abstracts[:300] for word in text.split()]

    def edit(question: Question) -> str:
        words = question.text.split()
        for place in chance.sample(range(len(words)), len(words) // 10):
            words[place] = chance.choice(vocabulary)
        return " ".join(words)

    assert recall(benchmark, abstracts, is_long, edit) > 0.98


def test_other_questions_of_the_same_examination_are_not_hits(shared: Path, benchmark: Benchmark) -> None:
    # They share their phrases with the benchmark: "A 23-year-old woman comes to the physician because of …".
    others = open_file_task(shared / "data/medqa-usmle/dev_5options.json.gz").rows("test")
    hits = [question.id for question in others if find_questions(benchmark[1], with_options(question))]
    assert len(hits) <= 0.01 * len(others)
