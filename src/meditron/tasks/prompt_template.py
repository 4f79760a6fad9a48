"""Layouts: how a question becomes a prompt, and its options the texts that may follow.

A prompt ends without a blank and each continuation begins with its own, so that a tokenizer which joins a
blank to the word after it cuts prompt and continuation where they meet. Solved questions before the asked one
are laid out alike, an empty line between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from meditron.core.errors import UsageError
from meditron.tasks.question import Question

__all__ = ["PROMPT_TEMPLATES", "SECTIONS", "PromptTemplate", "Rendered", "find_prompt_template"]

# Each with its blank one token of SmolLM2's and of Llama-2's vocabulary, in which " Objective" is two.
SECTIONS = ("background", "objective", "methods", "results", "conclusion")
"""What the sections of an abstract are called, in the order in which they stand."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A question as a model sees it."""

    prompt: str
    continuations: tuple[str, ...]
    """One for each option, in the options' order."""
    unconditional: str
    """The prompt without the question: what an option's probability is calibrated by (Holtzman et al. 2021,
    arXiv 2104.08315)."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A way to lay out questions."""

    name: str
    version: int
    """Raised whenever a question gives another prompt or other continuations."""
    body: Callable[[Question], str]
    """All of the question, up to the cue's line."""
    cue: str
    """What asks for the answer: `Answer:`."""
    answers: Callable[[Question], tuple[str, ...]]
    """The options as the answer names them."""
    options: tuple[str, ...] | None = None
    """The only options that questions laid out so can have, where there are such."""
    head: str = ""
    """What stands once before all questions."""

    def render(self, question: Question, shots: Sequence[Question] = ()) -> Rendered:
        """The question's prompt, after the solved `shots`, and its continuations.

        UsageError where a question's options are not those that the template asks for.
        """
        before = self.head + "".join(f"{self._solved(shot)}\n\n" for shot in shots)
        return Rendered(before + self._asked(question), self._continuations(question), before + self.cue)

    def _asked(self, question: Question) -> str:
        if self.options is not None and question.options != self.options:
            raise UsageError(
                f"template '{self.name}' asks for {', '.join(self.options)}; question {question.id} does not",
                hint=f"templates: {', '.join(PROMPT_TEMPLATES)}",
            )
        return f"{self.body(question)}\n{self.cue}"

    def _solved(self, question: Question) -> str:
        return self._asked(question) + self._continuations(question)[question.gold]

    def _continuations(self, question: Question) -> tuple[str, ...]:
        return tuple(f" {answer}" for answer in self.answers(question))


def find_prompt_template(name: str) -> PromptTemplate:
    """The template of this name; UsageError where there is none."""
    if name not in PROMPT_TEMPLATES:
        raise UsageError(f"no template '{name}'", hint=f"templates: {', '.join(PROMPT_TEMPLATES)}")
    return PROMPT_TEMPLATES[name]


def _letters(question: Question) -> tuple[str, ...]:
    return tuple(ascii_uppercase[: len(question.options)])


def _texts(question: Question) -> tuple[str, ...]:
    return question.options


def _lettered(question: Question) -> str:
    pairs = zip(_letters(question), question.options, strict=True)
    return "\n".join(f"{letter}. {option}" for letter, option in pairs)


def _read_first(question: Question) -> str:
    return f"{question.context}\n\n{question.text}" if question.context else question.text


_YES_NO_MAYBE = ("yes", "no", "maybe")
_ALL = (
    PromptTemplate(
        "sections",
        1,
        lambda q: f"Sentence: {q.text}",
        "Section:",
        _texts,
        SECTIONS,
        # Of eight templates tried, SmolLM2-135M-Instruct is right most often with this one, before training.
        "Background, objective, methods, results or conclusion?\n",
    ),
    PromptTemplate("letters", 1, lambda q: f"{_read_first(q)}\n{_lettered(q)}", "Answer:", _letters),
    PromptTemplate("texts", 1, _read_first, "Answer:", _texts),
    PromptTemplate(
        "yes-no-maybe",
        1,
        _read_first,
        "Answer (yes, no or maybe):",
        _texts,
        _YES_NO_MAYBE,
    ),
    # The prompts of lm-eval 0.4.13's tasks `medqa_4options` and `pubmedqa`, to the character.
    PromptTemplate("lm-eval-medqa", 1, lambda q: f"Question: {q.text}\n{_lettered(q)}", "Answer:", _letters),
    PromptTemplate(
        "lm-eval-pubmedqa",
        1,
        lambda q: f"Abstract: {q.context}\nQuestion: {q.text}",
        "Answer:",
        _texts,
        _YES_NO_MAYBE,
    ),
)
PROMPT_TEMPLATES: dict[str, PromptTemplate] = {template.name: template for template in _ALL}
"""By name."""
