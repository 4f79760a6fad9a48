"""Prompt templates: rendering of a question as a prompt, and of its options as the continuations to score.

Each template is a TOML file in `prompts/`, named after it; a user's own file has the same keys. A prompt ends
without a blank and each continuation begins with one, because most tokenizers join a blank to the following
word: no token then spans the boundary. Solved examples before the question are rendered in the same form and
separated by empty lines.
"""

import hashlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Formatter, ascii_uppercase
from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from meditron.core.config import Config, first_problem
from meditron.core.errors import InputError, SourceError, UsageError
from meditron.store.files import translate_read_errors
from meditron.tasks.question import Question

__all__ = ["PROMPT_TEMPLATES", "SECTIONS", "PromptTemplate", "RenderedPrompt", "find_prompt_template"]

_FOLDER = Path(__file__).parent / "prompts"
SECTIONS = ("background", "objective", "methods", "results", "conclusion")
"""Names of an abstract's sections, in their order in the text."""
_QUESTION_PLACEHOLDERS = ("context", "question", "stripped_question", "closed_question", "subject")
_PLACEHOLDERS = {
    # Both are also in the prompt without the question, which calibrates.
    "introduction": ("subject",),
    "cue": ("subject",),
    "context": _QUESTION_PLACEHOLDERS,
    "question": (*_QUESTION_PLACEHOLDERS, "options", "answers"),
    "option": ("letter", "text"),
    "solution": ("answer", "explanation"),
}
"""Field of a template → the placeholders that rendering replaces in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPrompt:
    """A question rendered as text for a model."""

    prompt: str
    continuations: tuple[str, ...]
    """Text of each option as a continuation of the prompt, in the options' order."""
    unconditional_prompt: str
    """The prompt without the question. The log-probability of an option after it is subtracted from the
    option's score for calibration (Holtzman et al. 2021, arXiv 2104.08315)."""


class PromptTemplate(Config):
    """A template for prompts: the keys of a prompt file, and the file's name and hash.

    In every text with placeholders, a brace is written twice: `{{`.
    """

    name: str
    """Name of the file, without `.toml`."""

    sha256: str
    """SHA-256 of the file."""

    version: int = Field(ge=1)
    """Version, increased whenever a question gives another prompt or other continuations."""

    source: str = ""
    """Publication or software whose prompts these are."""

    introduction: str = ""
    """Text at the beginning of the prompt, before all examples; may contain `{subject}`."""

    context: str = "{context}"
    """Form of a question's context; a question without context has none of it."""

    question: str
    """The question's part of the prompt, with `{context}`, `{question}`, `{options}` or `{subject}`.
    `{stripped_question}` is the question without white space at its ends; `{closed_question}` has a question
    mark added if it ends with neither `?` nor `.`."""

    option: str = "{letter}. {text}"
    """Line of one option in `{options}`."""

    cue: str
    """Last line of the prompt, which asks for the answer: `Answer:`; may contain `{subject}`."""

    answer: Literal["letter", "text"]
    """Whether an answer is an option's letter or its text."""

    fixed_options: tuple[str, ...] | None = None
    """The options that all questions of this template must have; None if any options are allowed."""

    solution: str = " {answer}"
    """Text after the cue in a solved example, with `{answer}` and `{explanation}`. The latter begins with a
    blank, and is empty if the question has no explanation."""

    @field_validator(*_PLACEHOLDERS)
    @classmethod
    def _placeholders_are_known(cls, text: str, info: ValidationInfo) -> str:
        known = _PLACEHOLDERS[str(info.field_name)]
        for _, name, form, conversion in Formatter().parse(text):
            if name is not None and (name not in known or form or conversion):
                shown = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                raise ValueError(f"no placeholder {{{shown}}}; placeholders: {', '.join(sorted(known))}")
        return text

    @property
    def id(self) -> str:
        """Name and version in rows: `letters/1`."""
        return f"{self.name}/{self.version}"

    def example(self) -> str:
        """Return the prompt with placeholders for the question's texts, as documentation."""
        options = self.fixed_options or ("{option}", "{another option}")
        question = Question(
            id="", text="{question}", options=options, gold=0, context="{context}", group="{subject}"
        )
        return self.render(question).prompt

    def render(self, question: Question, shots: Sequence[Question] = ()) -> RenderedPrompt:
        """Render a question, after its solved examples.

        Args:
            question: The question.
            shots: Solved examples.

        Raises:
            UsageError: the template has fixed options, and a question has other options; or it names the
                subject, and a question has none.
        """
        introduction = self._with_subject(self.introduction, question)
        before = introduction + "".join(f"{self._solved_example(shot)}\n\n" for shot in shots)
        return RenderedPrompt(
            prompt=before + self._unsolved_prompt(question),
            continuations=self._continuations(question),
            unconditional_prompt=before + self._with_subject(self.cue, question),
        )

    def question_text(self, question: Question) -> str:
        """Return the question's part of the prompt: the text before the cue."""
        values = _placeholder_values(question)
        context = self.context.format(**values) if question.context else ""
        options = "\n".join(
            self.option.format(letter=letter, text=text)
            for letter, text in zip(ascii_uppercase, question.options, strict=False)
        )
        answers = ", ".join(self.option_answers(question)) if "{answers}" in self.question else ""
        return self.question.format(**values | {"context": context, "options": options, "answers": answers})

    def option_answers(self, question: Question) -> tuple[str, ...]:
        """Return the text of each option in an answer: its letter or its text."""
        letters = tuple(ascii_uppercase[: len(question.options)])
        return letters if self.answer == "letter" else question.options

    def _with_subject(self, text: str, question: Question) -> str:
        """Return the introduction or the cue for a question."""
        if not question.group and any(name == "subject" for _, name, _, _ in Formatter().parse(text)):
            raise UsageError(
                f"question {question.id} has no subject, which the template '{self.name}' names",
                hint="a row's subject is its field `subject` or `group`, or part of an MMLU file's name",
            )
        return text.format(subject=_placeholder_values(question)["subject"])

    def _unsolved_prompt(self, question: Question) -> str:
        # A template such as yes-no-maybe names the options in its text, so other options would be wrong.
        if self.fixed_options is not None and question.options != self.fixed_options:
            raise UsageError(
                f"question {question.id} has other options than the template '{self.name}', which asks for "
                f"{', '.join(self.fixed_options)}",
                hint=f"templates: {', '.join(PROMPT_TEMPLATES)}",
            )
        return f"{self.question_text(question)}\n{self._with_subject(self.cue, question)}"

    def _solved_example(self, question: Question) -> str:
        return self._unsolved_prompt(question) + self.solved_answer(question)

    def solved_answer(self, question: Question) -> str:
        """Return the text after the cue in a solved example; it begins with a blank."""
        explanation = " ".join(question.explanation.split())
        return self.solution.format(
            answer=self.option_answers(question)[question.gold],
            explanation=f" {explanation}" if explanation else "",
        )

    def _continuations(self, question: Question) -> tuple[str, ...]:
        return tuple(f" {answer}" for answer in self.option_answers(question))


def _placeholder_values(question: Question) -> dict[str, str]:
    closed = question.text if question.text.endswith(("?", ".")) else f"{question.text}?"
    return {
        "context": question.context,
        "question": question.text,
        "stripped_question": question.text.strip(),
        "closed_question": closed,
        # MMLU's subjects are in its file names, with underscores.
        "subject": (question.group or "").replace("_", " "),
    }


def find_prompt_template(name: str) -> PromptTemplate:
    """Return the template of this name, or that of a prompt file (`my-prompt.toml`).

    Raises:
        UsageError: there is no template of this name.
        SourceError: there is no such file.
        InputError: the file is not a prompt file.
    """
    if name in PROMPT_TEMPLATES:
        return PROMPT_TEMPLATES[name]
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise SourceError(f"{name}: no such prompt file", hint=_known_templates_hint())
        return _read_prompt_file(path)
    raise UsageError(f"no template '{name}'", hint=_known_templates_hint())


def _known_templates_hint() -> str:
    return f"templates: {', '.join(PROMPT_TEMPLATES)}; or a prompt file (.toml)"


def _read_prompt_file(path: Path) -> PromptTemplate:
    with translate_read_errors(path):
        content = path.read_bytes()
    try:
        fields = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, or not TOML
        raise InputError(path, f"not a prompt file: {error}") from error
    try:
        return PromptTemplate(**fields | {"name": path.stem, "sha256": hashlib.sha256(content).hexdigest()})
    except ValidationError as error:
        place, problem = first_problem(error)
        raise InputError(path, f"not a prompt file: {problem}", place=place) from error


class _PackagedTemplates(Mapping[str, PromptTemplate]):
    """The templates of the package, read on first use: `--help` must not read a dozen files."""

    def __getitem__(self, name: str) -> PromptTemplate:
        if name not in _template_names():
            raise KeyError(name)
        return _packaged_template(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_template_names())

    def __len__(self) -> int:
        return len(_template_names())


@cache
def _template_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


@cache
def _packaged_template(name: str) -> PromptTemplate:
    return _read_prompt_file(_FOLDER / f"{name}.toml")


PROMPT_TEMPLATES: Mapping[str, PromptTemplate] = _PackagedTemplates()
"""Name of a template → the template."""
