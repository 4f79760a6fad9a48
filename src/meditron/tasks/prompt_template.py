"""Prompt templates: rendering of a question as a prompt, and of its options as the continuations to score.

A prompt ends without a blank and each continuation begins with one, because most tokenizers join a blank to
the following word: no token then spans the boundary. Solved examples before the question are rendered in the
same form and separated by empty lines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from meditron.core.errors import UsageError
from meditron.tasks.question import Question

__all__ = ["PROMPT_TEMPLATES", "SECTIONS", "PromptTemplate", "RenderedPrompt", "find_prompt_template"]

# Lower case, because each word with its blank is then one token for SmolLM2 and Llama-2; " Objective" is two.
SECTIONS = ("background", "objective", "methods", "results", "conclusion")
"""Names of an abstract's sections, in their order in the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompt:
    """A question rendered as text for a model."""

    prompt: str
    continuations: tuple[str, ...]
    """Text of each option as a continuation of the prompt, in the options' order."""
    unconditional_prompt: str
    """The prompt without the question. The log-probability of an option after it is subtracted from the
    option's score for calibration (Holtzman et al. 2021, arXiv 2104.08315)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTemplate:
    """A template for prompts."""

    name: str
    version: int
    """Version, increased whenever a question gives another prompt or other continuations."""
    question_text: Callable[[Question], str]
    """Returns the question's part of the prompt: the text before the cue."""
    cue: str
    """Last line of the prompt, which asks for the answer: `Answer:`."""
    option_answers: Callable[[Question], tuple[str, ...]]
    """Returns the text of each option in an answer, such as its letter."""
    fixed_options: tuple[str, ...] | None = None
    """The options that all questions of this template must have; None if any options are allowed."""
    introduction: str = ""
    """Text at the beginning of the prompt, before all examples."""

    def render(self, question: Question, shots: Sequence[Question] = ()) -> RenderedPrompt:
        """Render a question, after its solved examples.

        Args:
            question: The question.
            shots: Solved examples.

        Raises:
            UsageError: the template has fixed options, and a question has other options.
        """
        before = self.introduction + "".join(f"{self._solved_example(shot)}\n\n" for shot in shots)
        return RenderedPrompt(
            prompt=before + self._unsolved_prompt(question),
            continuations=self._continuations(question),
            unconditional_prompt=before + self.cue,
        )

    def _unsolved_prompt(self, question: Question) -> str:
        # A template such as yes-no-maybe names the options in its text, so other options would be wrong.
        if self.fixed_options is not None and question.options != self.fixed_options:
            raise UsageError(
                f"question {question.id} has other options than the template '{self.name}', which asks for "
                f"{', '.join(self.fixed_options)}",
                hint=f"templates: {', '.join(PROMPT_TEMPLATES)}",
            )
        return f"{self.question_text(question)}\n{self.cue}"

    def _solved_example(self, question: Question) -> str:
        return self._unsolved_prompt(question) + self._continuations(question)[question.gold]

    def _continuations(self, question: Question) -> tuple[str, ...]:
        return tuple(f" {answer}" for answer in self.option_answers(question))


def find_prompt_template(name: str) -> PromptTemplate:
    """Return the template of this name; UsageError if there is none."""
    if name not in PROMPT_TEMPLATES:
        raise UsageError(f"no template '{name}'", hint=f"templates: {', '.join(PROMPT_TEMPLATES)}")
    return PROMPT_TEMPLATES[name]


def _option_letters(question: Question) -> tuple[str, ...]:
    return tuple(ascii_uppercase[: len(question.options)])


def _option_texts(question: Question) -> tuple[str, ...]:
    return question.options


def _lettered_options(question: Question) -> str:
    pairs = zip(_option_letters(question), question.options, strict=True)
    return "\n".join(f"{letter}. {option}" for letter, option in pairs)


def _text_with_context(question: Question) -> str:
    return f"{question.context}\n\n{question.text}" if question.context else question.text


_YES_NO_MAYBE = ("yes", "no", "maybe")
_ALL = (
    PromptTemplate(
        name="sections",
        version=1,
        question_text=lambda q: f"Sentence: {q.text}",
        cue="Section:",
        option_answers=_option_texts,
        fixed_options=SECTIONS,
        # Of eight texts tried, this one gives SmolLM2-135M-Instruct the best accuracy before training.
        introduction="Background, objective, methods, results or conclusion?\n",
    ),
    PromptTemplate(
        name="letters",
        version=1,
        question_text=lambda q: f"{_text_with_context(q)}\n{_lettered_options(q)}",
        cue="Answer:",
        option_answers=_option_letters,
    ),
    PromptTemplate(
        name="texts", version=1, question_text=_text_with_context, cue="Answer:", option_answers=_option_texts
    ),
    PromptTemplate(
        name="yes-no-maybe",
        version=1,
        question_text=_text_with_context,
        cue="Answer (yes, no or maybe):",
        option_answers=_option_texts,
        fixed_options=_YES_NO_MAYBE,
    ),
    # The same prompts, character by character, as lm-eval 0.4.13's tasks `medqa_4options` and `pubmedqa`.
    PromptTemplate(
        name="lm-eval-medqa",
        version=1,
        question_text=lambda q: f"Question: {q.text}\n{_lettered_options(q)}",
        cue="Answer:",
        option_answers=_option_letters,
    ),
    PromptTemplate(
        name="lm-eval-pubmedqa",
        version=1,
        question_text=lambda q: f"Abstract: {q.context}\nQuestion: {q.text}",
        cue="Answer:",
        option_answers=_option_texts,
        fixed_options=_YES_NO_MAYBE,
    ),
)
PROMPT_TEMPLATES: dict[str, PromptTemplate] = {template.name: template for template in _ALL}
"""Name of a template → the template."""
