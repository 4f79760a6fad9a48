"""Search for questions in training data, whatever their id, file and form.

Training records hashes of the questions and messages that it reads (`training_hashes`, `passages`);
evaluation looks up those of its own questions (`lookup_hashes`, `is_in_messages`).
"""

import re
from collections.abc import Collection, Iterable, Iterator

from meditron.store.identity import content_sha256, normalize_text, question_sha256, short_hash
from meditron.tasks.choices import unlettered
from meditron.tasks.question import Question
from meditron.tasks.sentences import sentences

__all__ = ["is_in_messages", "lookup_hashes", "passages", "training_hashes"]

_LONG = 12
"""Words from which a text identifies a question by its right option alone: copies differ in the wrong options
(MedQA has versions with four and with five). Shorter texts ("Which is true?") occur in many questions."""
_MIN_WORDS = 4
"""Words from which a line or sentence can identify a question in a message."""
_LABEL = re.compile(r"[:.)\]]\W*\s")
_LABEL_ENDS = 60
"""Maximum characters of a label before a question (`Question 3:`, `1.`, `Answer this question:`)."""
_MARKUP = "*_#> \t"


def training_hashes(question: Question) -> set[str]:
    """Return the short hashes that training records for a question."""
    texts = [_with_context(question)]
    if question.context:
        texts.append(_without_context(question))
    return _hashes(question, texts)


def lookup_hashes(question: Question) -> set[str]:
    """Return the short hashes to look up for a question: training that read it has recorded one of them.

    Two questions with one text and different contexts differ; one of them without its context matches both.
    """
    # A set may be published without its contexts: the text alone must match, but not as another context.
    other = question.text if question.context else _without_context(question)
    return _hashes(question, (_with_context(question), other))


def _with_context(question: Question) -> str:
    return f"{question.context} {question.text}"


def _without_context(question: Question) -> str:
    return f"\0{question.text}"


def _hashes(question: Question, texts: Iterable[str]) -> set[str]:
    options = [
        str(option) for option in unlettered([normalize_text(option).upper() for option in question.options])
    ]
    hashes = set()
    for text in texts:
        hashes.add(short_hash(question_sha256(text, options)))
        if len(text.split()) >= _LONG:
            hashes.add(short_hash(question_sha256(text, (options[question.gold],))))
    return hashes


def passages(message: str) -> Iterator[str]:
    """Yield the passages of a message that may be a question.

    These are the whole message, and each line and each sentence of at least four words, with and without a
    label or markup before it. A sentence may span several lines.
    """
    yield message
    for line in {*message.splitlines(), " ".join(message.split())}:
        for text in {line, *sentences(line)}:
            yield from filter(_identifies, _unlabelled(text))


def _identifies(text: str) -> bool:
    return len(text.split()) >= _MIN_WORDS


def _unlabelled(text: str) -> set[str]:
    labels = _LABEL.finditer(text[:_LABEL_ENDS])
    return {part.strip(_MARKUP) for part in (text, *(text[label.end() :] for label in labels))}


def is_in_messages(texts: Collection[str], question: str) -> bool:
    """Return True if messages contained the text of a question.

    Args:
        texts: Short hashes of the messages' passages.
        question: The question's text. All of it, or each of its sentences of at least four words, must be
            among the passages.
    """
    by_line = [text for line in question.splitlines() for text in sentences(line)]
    whole_text = sentences(" ".join(question.split()))
    splits = [[question], *(list(filter(_identifies, split)) for split in (by_line, whole_text))]
    return any(split and all(_is_in(texts, text) for text in split) for split in splits)


def _is_in(texts: Collection[str], text: str) -> bool:
    parts = {text, *filter(_identifies, _unlabelled(text))}
    return any(short_hash(content_sha256(part)) in texts for part in parts)
