"""The task `pubmedqa-artificial`: does the abstract confirm what its own title states?

These are the artificial questions (PQA-A) of PubMedQA (Jin et al. 2019, arXiv 1909.06146, section 3), made
from the structured abstracts of a corpus that have a section of conclusions and a title that is a statement:

- The title becomes a question: a copula, auxiliary or modal verb moves to the front (`Aspirin is effective in
  fever.` → `Is aspirin effective in fever?`), and another verb gets `does` (`Aspirin reduces fever.` → `Does
  aspirin reduce fever?`). A negation is left out of the question.
- The answer is `no` if the verb is negated (`Aspirin does not reduce fever.`), else `yes`; never `maybe`.
- The context is the abstract without the conclusions, which are the explanation of the answer.

Titles that are questions themselves are left out: their answer is not in the title, and the authors had
experts label them (PQA-L). The authors find the verb with a part-of-speech tagger; here it is one of a list
of verbs that are common in such titles, and not part of a noun phrase by the words around it. Titles of which
that is not certain are left out. The splits are those of the corpus.
"""

import re
from collections.abc import Mapping
from functools import partial
from heapq import nsmallest
from pathlib import Path
from typing import Literal

from meditron.core.errors import UsageError
from meditron.store.corpus import CorpusDocument, read_corpus
from meditron.store.identity import hash_order_key
from meditron.tasks.prompt_template import PROMPT_TEMPLATES
from meditron.tasks.question import Question
from meditron.tasks.task import Split, SplitQuestions, Task

__all__ = ["ARTIFICIAL", "pubmedqa_artificial", "statement_question"]

ARTIFICIAL = "pubmedqa-artificial"
_ANSWERS = ("yes", "no", "maybe")
_SPLITS: dict[Split, Literal["train", "heldout"]] = {"train": "train", "test": "heldout"}
# The published finetune read 200,000 (Chen et al. 2023, arXiv 2311.16079, table 3). The first in the order of
# their ids' SHA-256 are an unbiased sample.
_MAX_QUESTIONS = 200_000
_FRONTED = (
    *("is", "are", "was", "were", "has", "have", "had", "can", "cannot", "could", "may", "might", "must"),
    *("should", "will", "does", "do", "did"),
)
"""Verbs that move to the front of the question."""
_VERBS = (
    *("accelerate", "activate", "affect", "alleviate", "alter", "attenuate", "augment", "block", "cause"),
    *(
        "correlate",
        "decrease",
        "delay",
        "determine",
        "differ",
        "disrupt",
        "enhance",
        "exacerbate",
        "facilitate",
    ),
    *("impair", "improve", "increase", "induce", "influence", "inhibit", "lead", "limit", "lower", "mediate"),
    *("modulate", "predict", "prevent", "prolong", "promote", "protect", "provide", "reduce", "regulate"),
    *("remain", "require", "result", "reverse", "shorten", "stimulate", "suppress", "worsen"),
)
# `has` is an auxiliary verb before a participle, else it gets `does`: `Does gout have a cause?`.
_HAVE: Mapping[str, str] = {"has": "does", "have": "do", "had": "did"}
_PARTICIPLE = re.compile(r" (?:been|\w+ed)\b")
_SINGULAR: Mapping[str, str] = {f"{verb}s": verb for verb in _VERBS}
_VERB = re.compile(rf"\b(?:{'|'.join((*_FRONTED, *_SINGULAR))})\b(?! (?:of|and|or)\b)")
_WORDS_BEFORE = re.compile(r"(?:^|\s)(\S+)\s$")
# Words after which a verb form is a noun or an infinitive.
_NO_SUBJECT = frozenset(
    [
        "the",
        "a",
        "an",
        "of",
        "in",
        "on",
        "for",
        "with",
        "and",
        "or",
        "to",
        "by",
        "from",
        "at",
        "as",
        "its",
        "their",
        "these",
        "those",
        "this",
        "between",
        "during",
        "after",
        "before",
        "no",
        "dose",
        "further",
        "marked",
        "significant",
    ]
)
_SUBORDINATE = re.compile(
    r"\b(?:that|which|who|whose|whether|how|what|when|where|why|if|you)\b", re.IGNORECASE
)
_NEGATION = re.compile(r" (?:not|never|no longer)\b")
# In a title, what follows a colon names the design of the study; a question is made of what precedes it.
_DESIGN = re.compile(r": .*$")
_SENTENCE = re.compile(r"[.?!;]\s")
_MIN_WORDS, _MAX_WORDS = 4, 40


def pubmedqa_artificial(corpus: Path) -> Task:
    """Return the task made from the titles and structured abstracts of a corpus."""
    return Task(
        name=ARTIFICIAL,
        version=1,
        title="PubMedQA's artificial questions: does the abstract confirm the statement of its title",
        licence="the corpus' own: titles and texts of its abstracts",
        origin="Jin et al. 2019, arXiv 1909.06146, PQA-A",
        template=PROMPT_TEMPLATES["yes-no-maybe"],
        read_split=partial(_read_split, corpus),
        test_split_name=_SPLITS["test"],
    )


def _read_split(corpus: Path, split: Split) -> SplitQuestions:
    questions = filter(None, map(_question, read_corpus(corpus, _SPLITS[split])))
    rows = tuple(nsmallest(_MAX_QUESTIONS, questions, key=lambda question: hash_order_key(question.id)))
    if not rows:
        raise UsageError(
            f"{corpus}: no title of its {_SPLITS[split]} documents is a statement with conclusions below it",
            hint=f"{ARTIFICIAL} is made from PubMed citations whose sections have NLM's categories",
        )
    return SplitQuestions(rows=rows)


def _question(document: CorpusDocument) -> Question | None:
    """Return a document's question; None without conclusions, context, or a statement as the title."""
    texts: dict[bool, list[str]] = {True: [], False: []}
    for section in document.sections:
        concludes = section.category == "CONCLUSIONS"
        texts[concludes].append(" ".join(document.text[section.start : section.end].split()))
    conclusions, context = " ".join(texts[True]), "\n".join(texts[False])
    found = statement_question(document.text.partition("\n")[0]) if conclusions and context else None
    if found is None:
        return None
    text, answer = found
    return Question(
        id=document.id,
        text=text,
        options=_ANSWERS,
        gold=_ANSWERS.index(answer),
        context=context,
        explanation=conclusions,
        document_sha256=document.content_sha256,
    )


def statement_question(title: str) -> tuple[str, Literal["yes", "no"]] | None:
    """Turn a title that is a statement into a question and its answer; None for any other title."""
    statement = _DESIGN.sub("", title.strip()).removesuffix(".")
    words = statement.split()
    if "?" in title or title.startswith("[") or not _MIN_WORDS <= len(words) <= _MAX_WORDS:
        return None
    found = next((m for m in _VERB.finditer(statement) if _has_subject(statement[: m.start()])), None)
    if found is None:
        return None
    verb, subject, rest = found.group(), statement[: found.start()].strip(), statement[found.end() :]
    # A second verb begins another clause, of which the first one's negation says nothing. After `that`, the
    # verb is not the title's: `Evidence that aspirin is effective`.
    if not rest.strip() or _VERB.search(rest) or _SENTENCE.search(statement) or _SUBORDINATE.search(subject):
        return None
    negated = verb == "cannot" or _NEGATION.match(rest) is not None
    rest = _NEGATION.sub("", rest, count=1) if verb != "cannot" and negated else rest
    # "has no effect" is neither a plain statement nor the negation of its verb.
    if rest.startswith(" no "):
        return None
    if verb in _SINGULAR:
        verb, rest = "does", f" {_SINGULAR[verb]}{rest}"
    elif verb in _HAVE and not _PARTICIPLE.match(rest):
        verb, rest = _HAVE[verb], f" have{rest}"
    front = "can" if verb == "cannot" else verb
    return f"{front.capitalize()} {_lower_first(subject)}{rest}?", "no" if negated else "yes"


def _has_subject(before: str) -> bool:
    match = _WORDS_BEFORE.search(before)
    return (
        match is not None and match[1].lower() not in _NO_SUBJECT and not match[1].endswith((",", ":", "-"))
    )


def _lower_first(subject: str) -> str:
    """Return a subject in the middle of a sentence; abbreviations and single letters keep their capital."""
    first = subject.partition(" ")[0]
    is_word = first == "A" or (len(first) > 1 and first[1:].islower())
    return subject[:1].lower() + subject[1:] if is_word else subject
