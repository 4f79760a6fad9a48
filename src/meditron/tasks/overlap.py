"""Finding a question again in training data, whatever its id, file and form.

Training records hashes of the questions and messages that it reads (`training_hashes`, `passages`);
evaluation looks up those of the questions that it asks (`lookup_hashes`, `is_in_messages`).
"""

import re
from collections.abc import Collection, Iterable, Iterator

from meditron.store.identity import content_sha256, normalize, question_sha256, short
from meditron.tasks.choices import unlettered
from meditron.tasks.question import Question
from meditron.tasks.sentences import sentences

__all__ = ["is_in_messages", "lookup_hashes", "passages", "training_hashes"]

_LONG = 12
"""Words of a text that identify a question by its right option alone: copies differ in the wrong options
(MedQA has them by four and by five). Shorter texts ("Which is true?") are of many questions."""
_MIN_WORDS = 4
"""Words of a line or sentence that can identify a question in a message."""
_LABEL = re.compile(r"[:.)\]]\W*\s")
_LABEL_ENDS = 60
"""Characters within which a label before a question ends (`Question 3:`, `1.`, `Answer this question:`)."""
_MARKUP = "*_#> \t"


def training_hashes(question: Question) -> set[str]:
    """Return the short hashes under which a question that is trained on is found again."""
    texts = [_with_context(question)]
    if question.context:
        texts.append(_without_context(question))
    return _hashes(question, texts)


def lookup_hashes(question: Question) -> set[str]:
    """Return the short hashes of which training has recorded one if it read the question.

    Two questions of one text and different contexts are two; one of them without its context is either.
    """
    other = question.text if question.context else _without_context(question)
    return _hashes(question, (_with_context(question), other))


def _with_context(question: Question) -> str:
    return f"{question.context} {question.text}"


def _without_context(question: Question) -> str:
    return f"\0{question.text}"


def _hashes(question: Question, texts: Iterable[str]) -> set[str]:
    options = [
        str(option) for option in unlettered([normalize(option).upper() for option in question.options])
    ]
    found = set()
    for text in texts:
        found.add(short(question_sha256(text, options)))
        if len(text.split()) >= _LONG:
            found.add(short(question_sha256(text, (options[question.gold],))))
    return found


def passages(message: str) -> Iterator[str]:
    """Yield the stretches of a message that may be a question by themselves.

    These are the whole message, and each line and each sentence of at least four words, with and without a
    label or markup before it. A sentence may go over several lines.
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
    """Decide if messages whose passages have the short hashes `texts` held the text of a question.

    That is the whole text, or each of its sentences of at least four words.
    """
    by_line = [text for line in question.splitlines() for text in sentences(line)]
    whole_text = sentences(" ".join(question.split()))
    ways = [[question], *(list(filter(_identifies, way)) for way in (by_line, whole_text))]
    return any(way and all(_is_in(texts, text) for text in way) for way in ways)


def _is_in(texts: Collection[str], text: str) -> bool:
    parts = {text, *filter(_identifies, _unlabelled(text))}
    return any(short(content_sha256(part)) in texts for part in parts)
