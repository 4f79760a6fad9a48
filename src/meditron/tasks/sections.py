"""`pubmed-sections`: in which section of its abstract does a sentence stand?

The sentence classification of Dernoncourt & Lee 2017 (PubMed 200k RCT, arXiv 1710.06071), made from the
structured abstracts of a corpus: the classes are NLM's categories of their sections, the split is the corpus'
own, and what the corpus left out (copies, retracted and superseded records) is not asked. One sentence an
abstract, so that questions are independent; every class equally often, so that chance is one in five.
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
from meditron.store.identity import normalize
from meditron.tasks.balance import balanced
from meditron.tasks.prompt_template import PROMPT_TEMPLATES, SECTIONS
from meditron.tasks.question import Question, place
from meditron.tasks.sentences import sentences
from meditron.tasks.task import Questions, Split, Task

__all__ = ["NAME", "pubmed_sections"]

NAME = "pubmed-sections"
_CATEGORIES = ("BACKGROUND", "OBJECTIVE", "METHODS", "RESULTS", "CONCLUSIONS")
# Characters. Shorter are fragments that say nothing (a design, a trial's number), longer are lists or were
# not cut; of the sentences in a daily update file of PubMed they are 1.8 and 0.7 %.
_SHORTEST, _LONGEST = 40, 400
# A heading that was set within the text would be the answer.
_HEADING = re.compile(
    r"\b(?:(?:background|introduction|objectives?|aims?|purpose|methods?|design|results?|findings?|"
    r"conclusions?|interpretation)\s*:|(?-i:BACKGROUND|OBJECTIVES?|AIMS?|METHODS?|RESULTS?|CONCLUSIONS?)\b)",
    re.IGNORECASE,
)
# Abstracts looked at, the first in the order of their ids' SHA-256: enough for all the questions one asks,
# where all of PubMed has a hundred times as many.
_MOST = 50_000
_SPLITS: dict[Split, Literal["train", "heldout"]] = {"train": "train", "test": "heldout"}


def pubmed_sections(corpus: Path) -> Task:
    """The task on the structured abstracts of a corpus artifact."""
    return Task(
        NAME,
        1,
        "The section of its abstract in which a sentence stands",
        "the corpus' own: sentences of its abstracts",
        "Dernoncourt & Lee 2017, arXiv 1710.06071; abstracts and section categories: PubMed, NLM",
        PROMPT_TEMPLATES["sections"],
        partial(_questions, corpus),
        split=_SPLITS["test"],
    )


def _questions(corpus: Path, split: Split) -> Questions:
    """Return a split's questions; a training sentence that is also asked in the test is left out."""
    asked = {normalize(question.text) for question in _rows(corpus, "test")} if split == "train" else set()
    rows = _rows(corpus, split, asked)
    if not rows:
        raise UsageError(
            f"{corpus}: no structured abstracts in its {_SPLITS[split]} documents",
            hint=f"{NAME} is made from PubMed citations whose sections have NLM's categories",
        )
    return Questions(rows)


def _rows(corpus: Path, split: Split, left_out: Set[str] = frozenset()) -> tuple[Question, ...]:
    structured = (
        text for text in read_corpus(corpus, _SPLITS[split]) if any(_asked(part) for part in text.parts)
    )
    first = nsmallest(_MOST, structured, key=lambda text: place(text.id))
    found = {text.id: (text, of) for text in first if (of := _choices(text, left_out))}
    chosen = balanced((identity, frozenset(of)) for identity, (_, of) in found.items())
    return tuple(_question(*found[identity], gold) for identity, gold in chosen)


def _question(text: CorpusDocument, of: Mapping[int, str], gold: int) -> Question:
    return Question(text.id, of[gold], SECTIONS, gold, document=text.content_sha256)


def _asked(part: SectionSpan) -> bool:
    return part.category in _CATEGORIES


def _choices(text: CorpusDocument, left_out: Set[str]) -> dict[int, str]:
    """The sentence that may be asked of each section: of several, one by the hash of the abstract's id."""
    of: dict[int, list[str]] = {}
    for part in filter(_asked, text.parts):
        one_line = " ".join(text.text[part.start : part.end].split())
        candidates = [sentence for sentence in sentences(one_line) if _fit(sentence)]
        candidates = [sentence for sentence in candidates if normalize(sentence) not in left_out]
        of.setdefault(_CATEGORIES.index(part.category or ""), []).extend(candidates)
    number = int.from_bytes(sha256(f"sentence of {text.id}".encode()).digest()[:8], "big")
    return {section: candidates[number % len(candidates)] for section, candidates in of.items() if candidates}


def _fit(sentence: str) -> bool:
    return _SHORTEST <= len(sentence) <= _LONGEST and not _HEADING.search(sentence)
