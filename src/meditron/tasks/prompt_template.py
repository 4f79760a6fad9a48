"""Prompt templates: a question as a prompt, and its options as the continuations to score.

A prompt ends without a blank and each continuation begins with one, because most tokenizers join a blank to
the word after it: prompt and continuation are then whole tokens. Solved examples before the question have the
same form, with an empty line between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from meditron.core.errors import UsageError
from meditron.tasks.question import Question

__all__ = ["PROMPT_TEMPLATES", "SECTIONS", "PromptTemplate", "Rendered", "find_prompt_template"]

# With its blank each is one token of SmolLM2's and of Llama-2's vocabulary, in which " Objective" is two.
SECTIONS = ("background", "objective", "methods", "results", "conclusion")
"""Names of an abstract's sections, in their order in the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A question as a model sees it."""

    prompt: str
    continuations: tuple[str, ...]
    """One for each option, in the options' order."""
    unconditional: str
    """The prompt without the question. An option's probability after it calibrates its score (Holtzman et al.
    2021, arXiv 2104.08315)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """A form of prompts."""

    name: str
    version: int
    """Raised whenever a question gives another prompt or other continuations."""
    body: Callable[[Question], str]
    """The question's text, up to the line of the cue."""
    cue: str
    """Text that asks for the answer: `Answer:`."""
    answers: Callable[[Question], tuple[str, ...]]
    """The options as an answer names them."""
    options: tuple[str, ...] | None = None
    """The only options that questions of this template can have; None if any are possible."""
    head: str = ""
    """Text before all questions."""

    def render(self, question: Question, shots: Sequence[Question] = ()) -> Rendered:
        """Render a question.

        Args:
            question: The question.
            shots: Solved examples to put before it.

        Raises:
            UsageError: the template has fixed options, and a question has others.
        """
        before = self.head + "".join(f"{self._solved(shot)}\n\n" for shot in shots)
        return Rendered(
            prompt=before + self._unsolved(question),
            continuations=self._continuations(question),
            unconditional=before + self.cue,
        )

    def _unsolved(self, question: Question) -> str:
        if self.options is not None and question.options != self.options:
            raise UsageError(
                f"question {question.id} has other options than the template '{self.name}', which asks for "
                f"{', '.join(self.options)}",
                hint=f"templates: {', '.join(PROMPT_TEMPLATES)}",
            )
        return f"{self.body(question)}\n{self.cue}"

    def _solved(self, question: Question) -> str:
        return self._unsolved(question) + self._continuations(question)[question.gold]

    def _continuations(self, question: Question) -> tuple[str, ...]:
        return tuple(f" {answer}" for answer in self.answers(question))


def find_prompt_template(name: str) -> PromptTemplate:
    """Return the template of this name; UsageError if there is none."""
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


def _with_context(question: Question) -> str:
    return f"{question.context}\n\n{question.text}" if question.context else question.text


_YES_NO_MAYBE = ("yes", "no", "maybe")
_ALL = (
    PromptTemplate(
        name="sections",
        version=1,
        body=lambda q: f"Sentence: {q.text}",
        cue="Section:",
        answers=_texts,
        options=SECTIONS,
        # Of eight templates tried, SmolLM2-135M-Instruct is right most often with this one, before training.
        head="Background, objective, methods, results or conclusion?\n",
    ),
    PromptTemplate(
        name="letters",
        version=1,
        body=lambda q: f"{_with_context(q)}\n{_lettered(q)}",
        cue="Answer:",
        answers=_letters,
    ),
    PromptTemplate(name="texts", version=1, body=_with_context, cue="Answer:", answers=_texts),
    PromptTemplate(
        name="yes-no-maybe",
        version=1,
        body=_with_context,
        cue="Answer (yes, no or maybe):",
        answers=_texts,
        options=_YES_NO_MAYBE,
    ),
    # The prompts of lm-eval 0.4.13's tasks `medqa_4options` and `pubmedqa`, to the character.
    PromptTemplate(
        name="lm-eval-medqa",
        version=1,
        body=lambda q: f"Question: {q.text}\n{_lettered(q)}",
        cue="Answer:",
        answers=_letters,
    ),
    PromptTemplate(
        name="lm-eval-pubmedqa",
        version=1,
        body=lambda q: f"Abstract: {q.context}\nQuestion: {q.text}",
        cue="Answer:",
        answers=_texts,
        options=_YES_NO_MAYBE,
    ),
)
PROMPT_TEMPLATES: dict[str, PromptTemplate] = {template.name: template for template in _ALL}
"""Name → template."""
