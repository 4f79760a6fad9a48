"""A question is found again in training data in every form in which copies of it are kept."""

from dataclasses import replace

import pytest

from meditron.store.identity import content_sha256, short_hash
from meditron.tasks.overlap import is_in_messages, lookup_hashes, message_passages, training_hashes
from meditron.tasks.question import Question

VIGNETTE = "A 54-year-old man comes to the emergency department with chest pain. Which drug is given first?"
OPTIONS = ("aspirin", "heparin", "morphine", "nitrate", "oxygen")
ASKED = Question(id="1", text=VIGNETTE, options=OPTIONS, gold=0)
READ = Question(
    id="2",
    text="Does it lower mortality?",
    options=("yes", "no", "maybe"),
    gold=0,
    context="Aspirin was given.",
)


def met(trained: Question, question: Question) -> bool:
    return bool(training_hashes(trained) & lookup_hashes(question))


@pytest.mark.parametrize(
    "copy",
    [
        replace(ASKED, id="x", text=f"  {VIGNETTE.upper()}\n"),
        replace(ASKED, options=OPTIONS[::-1], gold=4),
        replace(ASKED, options=OPTIONS[:4]),
        replace(ASKED, gold=2),
        replace(ASKED, options=tuple(f" {letter}) {o}" for letter, o in zip("abcde", OPTIONS, strict=True))),
        replace(ASKED, context="Read this."),
    ],
    ids=["white space", "order", "fewer options", "another key", "letters", "with a context"],
)
def test_a_copy_is_detected_in_both_directions(copy: Question) -> None:
    assert met(ASKED, copy)
    assert met(copy, ASKED)


def test_a_question_without_its_context_is_detected_but_not_with_another() -> None:
    bare = replace(READ, context="")
    assert met(READ, bare)
    assert met(bare, READ)
    assert met(READ, READ)
    assert not met(READ, replace(READ, context="Heparin was given."))


def test_short_texts_need_their_options() -> None:
    """ "Which is true?" with the answer "all" is of many questions."""
    generic = Question(id="1", text="Which of these is true?", options=("all of them", "a", "b"), gold=0)
    assert met(generic, generic)
    assert not met(generic, replace(generic, options=("all of them", "c", "d")))


@pytest.mark.parametrize(
    "message",
    [
        VIGNETTE,
        f"Question: {VIGNETTE}",
        f"Question 12: {VIGNETTE}\n(A) aspirin\n(B) heparin",
        f"Answer this question: {VIGNETTE} A. aspirin B. heparin",
        f"**{VIGNETTE}**",
        f"1) {VIGNETTE}",
        VIGNETTE.replace("emergency ", "emergency\n").replace("is given", "is\n  given"),
        "Think first.\n\n" + VIGNETTE.replace(". Which", ".\nWhich"),
    ],
)
def test_messages_that_contain_the_question(message: str) -> None:
    texts = {short_hash(content_sha256(text)) for text in message_passages(message)}
    assert is_in_messages(texts, VIGNETTE)
    assert is_in_messages(texts, f"7. {VIGNETTE}")
    assert not is_in_messages(texts, VIGNETTE.replace("54", "55"))
