"""`pubmed-sections`: the section of its abstract that a sentence is from.

The sentence classification of Dernoncourt & Lee 2017 (PubMed 200k RCT, arXiv 1710.06071), made from the
structured abstracts of a corpus: the classes are NLM's categories of sections, the split is the corpus' own,
and documents that the corpus left out (copies, retracted and superseded records) are not used. There is one
sentence per abstract, which makes questions independent, and every class is equally frequent: chance is one
in five.
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
from meditron.tasks.balance import balanced
from meditron.tasks.prompt_template import PROMPT_TEMPLATES, SECTIONS
from meditron.tasks.question import Question
from meditron.tasks.sentences import sentences
from meditron.tasks.task import Questions, Split, Task

__all__ = ["NAME", "pubmed_sections"]

NAME = "pubmed-sections"
_CATEGORIES = ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")
# Characters of a sentence. Shorter ones are fragments (a design, a trial's number), longer ones lists or
# unsplit sentences; in a daily update file of PubMed they are 1.8 and 0.7 % of the sentences.
_MIN_LENGTH, _MAX_LENGTH = 40, 400
# A heading inside the sentence would give the answer away.
_HEADING = re.compile(
    r"\b(?:(?:background|introduction|objectives?|aims?|purpose|methods?|design|results?|findings?|"
    r"conclusions?|interpretation)\s*:|(?-i:BACKGROUND|OBJECTIVES?|AIMS?|METHODS?|RESULTS?|CONCLUSIONS?)\b)",
    re.IGNORECASE,
)
# Abstracts used, the first in the order of their ids' SHA-256: enough for any evaluation; all of PubMed has a
# hundred times as many.
_MAX_ABSTRACTS = 50_000
_SPLITS: dict[Split, Literal["train", "heldout"]] = {"train": "train", "test": "heldout"}


def pubmed_sections(corpus: Path) -> Task:
    """Return the task on the structured abstracts of a corpus artifact."""
    return Task(
        name=NAME,
        version=1,
        title="The section of its abstract in which a sentence stands",
        licence="the corpus' own: sentences of its abstracts",
        origin="Dernoncourt & Lee 2017, arXiv 1710.06071; abstracts and section categories: PubMed, NLM",
        template=PROMPT_TEMPLATES["sections"],
        read=partial(_questions, corpus),
        split=_SPLITS["test"],
    )


def _questions(corpus: Path, split: Split) -> Questions:
    """Return a split's questions, without training sentences that are also in the test."""
    excluded = (
        {normalize_text(question.text) for question in _rows(corpus, "test")} if split == "train" else set()
    )
    rows = _rows(corpus, split, excluded)
    if not rows:
        raise UsageError(
            f"{corpus}: no structured abstracts in its {_SPLITS[split]} documents",
            hint=f"{NAME} is made from PubMed citations whose sections have NLM's categories",
        )
    return Questions(rows=rows)


def _rows(corpus: Path, split: Split, excluded: Set[str] = frozenset()) -> tuple[Question, ...]:
    structured = (
        text
        for text in read_corpus(corpus, _SPLITS[split])
        if any(_has_category(section) for section in text.sections)
    )
    first = nsmallest(_MAX_ABSTRACTS, structured, key=lambda text: hash_order_key(text.id))
    usable = {text.id: (text, by_class) for text in first if (by_class := _sentence_by_class(text, excluded))}
    assigned = balanced((id_, frozenset(by_class)) for id_, (_, by_class) in usable.items())
    return tuple(_question(*usable[id_], gold) for id_, gold in assigned)


def _question(text: CorpusDocument, by_class: Mapping[int, str], gold: int) -> Question:
    return Question(
        id=text.id, text=by_class[gold], options=SECTIONS, gold=gold, document=text.content_sha256
    )


def _has_category(section: SectionSpan) -> bool:
    return section.category in _CATEGORIES


def _sentence_by_class(text: CorpusDocument, excluded: Set[str]) -> dict[int, str]:
    """Choose a sentence of each section; of several, one by the hash of the abstract's id."""
    by_class: dict[int, list[str]] = {}
    for section in filter(_has_category, text.sections):
        one_line = " ".join(text.text[section.start : section.end].split())
        usable = [s for s in sentences(one_line) if _is_usable(s) and normalize_text(s) not in excluded]
        by_class.setdefault(_CATEGORIES.index(section.category or ""), []).extend(usable)
    # One number for all sections: the choice must not depend on the class that is asked in the end.
    number = int.from_bytes(sha256(f"sentence of {text.id}".encode()).digest()[:8], "big")
    return {label: usable[number % len(usable)] for label, usable in by_class.items() if usable}


def _is_usable(sentence: str) -> bool:
    return _MIN_LENGTH <= len(sentence) <= _MAX_LENGTH and not _HEADING.search(sentence)
