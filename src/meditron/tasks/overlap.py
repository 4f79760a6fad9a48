"""Search for evaluation questions in training data, independent of ids, files and formats.

Training records hashes of the questions and of the messages that it reads (`training_hashes`,
`message_passages`). Evaluation looks up the hashes of its own questions (`lookup_hashes`, `is_in_messages`).
"""

import re
from collections.abc import Collection, Iterable, Iterator

from meditron.store.identity import content_sha256, normalize_text, question_sha256, short_hash
from meditron.tasks.choices import remove_option_letters
from meditron.tasks.question import Question
from meditron.tasks.sentences import split_sentences

__all__ = ["is_in_messages", "lookup_hashes", "message_passages", "training_hashes"]

_LONG = 12
"""Minimum number of words for identifying a question by its text and right option alone, because copies may
have other wrong options (MedQA has versions with four and with five). Shorter texts ("Which is true?") occur
in many questions."""
_MIN_WORDS = 4
"""Minimum number of words for identifying a question in a message by a line or sentence."""
_LABEL = re.compile(r"[:.)\]]\W*\s")
_LABEL_ENDS = 60
"""Maximum number of characters of a label before a question (`Question 3:`, `Answer this question:`)."""
_MARKUP = "*_#> \t"


def training_hashes(question: Question) -> set[str]:
    """Return the short hashes that training records for a question."""
    texts = [_text_with_context(question)]
    if question.context:
        texts.append(_text_without_context(question))
    return _question_hashes(question, texts)


def lookup_hashes(question: Question) -> set[str]:
    """Return the short hashes to look up for a question. If a training read it, one of them is recorded.

    Questions with the same text and different contexts do not match each other. A question without a context
    matches all questions with its text.
    """
    # Some datasets are also published without contexts, so a question with one must match its text alone.
    other = question.text if question.context else _text_without_context(question)
    return _question_hashes(question, (_text_with_context(question), other))


def _text_with_context(question: Question) -> str:
    return f"{question.context} {question.text}"


def _text_without_context(question: Question) -> str:
    # The NUL, which no text contains, keeps this hash apart from that of a question with an empty context.
    return f"\0{question.text}"


def _question_hashes(question: Question, texts: Iterable[str]) -> set[str]:
    options = [
        str(option)
        for option in remove_option_letters([normalize_text(option).upper() for option in question.options])
    ]
    hashes = set()
    for text in texts:
        hashes.add(short_hash(question_sha256(text, options)))
        if len(text.split()) >= _LONG:
            hashes.add(short_hash(question_sha256(text, (options[question.gold],))))
    return hashes


def message_passages(message: str) -> Iterator[str]:
    """Yield the parts of a message that may be a question.

    These are the whole message, and each line and each sentence of at least four words, with and without
    labels and markup before it. A sentence may span several lines.
    """
    yield message
    for line in {*message.splitlines(), " ".join(message.split())}:
        for text in {line, *split_sentences(line)}:
            yield from filter(_is_long_enough, _without_labels(text))


def _is_long_enough(text: str) -> bool:
    return len(text.split()) >= _MIN_WORDS


def _without_labels(text: str) -> set[str]:
    # Every possible end of a label is tried, because there may be two labels, as in `1) Question 2:`.
    labels = _LABEL.finditer(text[:_LABEL_ENDS])
    return {part.strip(_MARKUP) for part in (text, *(text[label.end() :] for label in labels))}


def is_in_messages(texts: Collection[str], question: str) -> bool:
    """Return True if the text of a question occurs in training messages.

    That is the case if the whole text, or each of its sentences of at least four words, is a recorded
    passage.

    Args:
        texts: Short hashes of the messages' passages (`message_passages`).
        question: The question's text.
    """
    by_line = [text for line in question.splitlines() for text in split_sentences(line)]
    whole_text = split_sentences(" ".join(question.split()))
    splits = [[question], *(list(filter(_is_long_enough, split)) for split in (by_line, whole_text))]
    return any(split and all(_is_recorded(texts, text) for text in split) for split in splits)


def _is_recorded(texts: Collection[str], text: str) -> bool:
    parts = {text, *filter(_is_long_enough, _without_labels(text))}
    return any(short_hash(content_sha256(part)) in texts for part in parts)
