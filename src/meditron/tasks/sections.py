"""The task `pubmed-sections`: given a sentence of an abstract, name the section that it is from.

This is the sentence classification of Dernoncourt & Lee 2017 (PubMed 200k RCT, arXiv 1710.06071), made from
the structured abstracts of a corpus. The classes are NLM's five section categories. The splits are those of
the corpus, without the documents that it drops (copies, retracted and superseded records). Each abstract
gives one sentence, so questions are independent, and all classes are equally frequent: random guessing scores
20 %.
"""

import re
from collections.abc import Mapping, Set
from functools import partial
from hashlib import sha256
from heapq import nsmallest
from pathlib import Path
from typing import Literal

from meditron.core.errors import UsageError
from meditron.store.corpus import CorpusDocument, SectionSpan, read_corpus
from meditron.store.identity import hash_order_key, normalize_text
from meditron.tasks.balance import balance_classes
from meditron.tasks.prompt_template import PROMPT_TEMPLATES, SECTIONS
from meditron.tasks.question import Question
from meditron.tasks.sentences import split_sentences
from meditron.tasks.task import Split, SplitQuestions, Task

__all__ = ["NAME", "pubmed_sections"]

NAME = "pubmed-sections"
_CATEGORIES = ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")
# Length of a sentence in characters. Shorter ones are fragments (a study design, a trial number), longer ones
# are lists or unsplit sentences: 1.8 % and 0.7 % of the sentences in a daily update file of PubMed.
_MIN_LENGTH, _MAX_LENGTH = 40, 400
# Sentences that contain a section heading are not used: the heading would give the answer away.
_HEADING = re.compile(
    r"\b(?:(?:background|introduction|objectives?|aims?|purpose|methods?|design|results?|findings?|"
    r"conclusions?|interpretation)\s*:|(?-i:BACKGROUND|OBJECTIVES?|AIMS?|METHODS?|RESULTS?|CONCLUSIONS?)\b)",
    re.IGNORECASE,
)
# Maximum number of abstracts, the first in the order of their ids' SHA-256. That is enough for any
# evaluation; all of PubMed has a hundred times as many.
_MAX_ABSTRACTS = 50_000
_SPLITS: dict[Split, Literal["train", "heldout"]] = {"train": "train", "test": "heldout"}


def pubmed_sections(corpus: Path) -> Task:
    """Return the task made from the structured abstracts of a corpus."""
    return Task(
        name=NAME,
        version=1,
        title="The section of its abstract in which a sentence stands",
        licence="the corpus' own: sentences of its abstracts",
        origin="Dernoncourt & Lee 2017, arXiv 1710.06071; abstracts and section categories: PubMed, NLM",
        template=PROMPT_TEMPLATES["sections"],
        read_split=partial(_read_split, corpus),
        test_split_name=_SPLITS["test"],
    )


def _read_split(corpus: Path, split: Split) -> SplitQuestions:
    """Return the questions of a split, without training sentences that also occur in the test split."""
    excluded = (
        {normalize_text(question.text) for question in _make_questions(corpus, "test")}
        if split == "train"
        else set()
    )
    rows = _make_questions(corpus, split, excluded)
    if not rows:
        raise UsageError(
            f"{corpus}: no structured abstracts in its {_SPLITS[split]} documents",
            hint=f"{NAME} is made from PubMed citations whose sections have NLM's categories",
        )
    return SplitQuestions(rows=rows)


def _make_questions(corpus: Path, split: Split, excluded: Set[str] = frozenset()) -> tuple[Question, ...]:
    structured = (
        text
        for text in read_corpus(corpus, _SPLITS[split])
        if any(_has_category(section) for section in text.sections)
    )
    first = nsmallest(_MAX_ABSTRACTS, structured, key=lambda text: hash_order_key(text.id))
    usable = {text.id: (text, by_class) for text in first if (by_class := _sentence_by_class(text, excluded))}
    assigned = balance_classes((id_, frozenset(by_class)) for id_, (_, by_class) in usable.items())
    return tuple(_make_question(*usable[id_], gold) for id_, gold in assigned)


def _make_question(text: CorpusDocument, by_class: Mapping[int, str], gold: int) -> Question:
    return Question(
        id=text.id, text=by_class[gold], options=SECTIONS, gold=gold, document_sha256=text.content_sha256
    )


def _has_category(section: SectionSpan) -> bool:
    return section.category in _CATEGORIES


def _sentence_by_class(text: CorpusDocument, excluded: Set[str]) -> dict[int, str]:
    """Choose one sentence of each section category, by a hash of the abstract's id.

    Returns:
        Index of the category → sentence.
    """
    by_class: dict[int, list[str]] = {}
    for section in filter(_has_category, text.sections):
        one_line = " ".join(text.text[section.start : section.end].split())
        usable = [s for s in split_sentences(one_line) if _is_usable(s) and normalize_text(s) not in excluded]
        by_class.setdefault(_CATEGORIES.index(section.category or ""), []).extend(usable)
    # The same number for all sections, so that the chosen sentences do not depend on the class that is used.
    number = int.from_bytes(sha256(f"sentence of {text.id}".encode()).digest()[:8], "big")
    return {label: usable[number % len(usable)] for label, usable in by_class.items() if usable}


def _is_usable(sentence: str) -> bool:
    return _MIN_LENGTH <= len(sentence) <= _MAX_LENGTH and not _HEADING.search(sentence)
