"""Types of the rows of rubric evaluations: one per answer, and one per judge and criterion of an answer."""

import hashlib
import re

from pydantic import Field

from meditron.evaluate.rows import EvalRow

__all__ = ["AnswerRow", "JudgementRow", "rubric_file_name", "text_sha256"]

_LONGEST_NAME = 200  # temporary and lock files have longer names, and a file system takes 255 bytes


def rubric_file_name(name: str, ending: str) -> str:
    """Return the name of a file of a set of rubrics, such as `rubrics-NAME.answers.jsonl`."""
    # A set is named after a user's file: characters that could lead out of the folder are replaced.
    return f"rubrics-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:_LONGEST_NAME]}{ending}"


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerRow(EvalRow):
    """The answer of one model to one conversation."""

    rows_name = "answers to rubrics"

    rubrics: str
    """Name of the set of rubrics."""

    rubrics_sha256: str
    """SHA-256 of the file of rubrics."""

    prompt_form: str
    """Form of the prompt: `raw`, or the name of a chat template."""

    messages_sha256: str
    """SHA-256 of the conversation."""

    prompt_sha256: str
    """SHA-256 of the prompt as text."""

    temperature: float = Field(ge=0)
    max_tokens: int = Field(ge=1)
    """Maximum number of tokens of the answer."""

    seed: int
    """Seed of the run."""

    answer: str
    answer_sha256: str
    """SHA-256 of the answer; labels and judgements are of an answer with this hash."""

    unfinished: bool
    """True if the answer reached `max_tokens`, or filled the context."""

    def item_key(self) -> tuple[str, ...]:
        """Return the row's id and the hash of its conversation."""
        return self.id, self.messages_sha256


class JudgementRow(EvalRow):
    """The verdict of one judge on one criterion of an answer. `model` is the model that answered."""

    rows_name = "judgements"

    rubrics: str
    """Name of the set of rubrics."""

    rubrics_sha256: str
    """SHA-256 of the file of rubrics."""

    answer_sha256: str
    criterion: str
    points: float

    judge: str
    """Name of the judge."""

    judge_digest: str
    """SHA-256 of the judge's files; for a judge behind a server, of its URL and name."""

    judge_engine: str
    judge_dtype: str
    judge_form: str
    """Form of the judge's prompt: `raw`, or the name of a chat template."""

    judge_prompt: str
    """Name and version of the judge's prompt."""

    judge_prompt_sha256: str
    """SHA-256 of the file of the judge's prompt."""

    prompt_sha256: str
    """SHA-256 of the judge's prompt with this conversation, answer and criterion."""

    temperature: float = Field(ge=0)
    max_tokens: int = Field(ge=1)
    attempts: int = Field(ge=1)
    """Maximum number of times that the judge was asked."""

    seed: int
    """Seed of the run."""

    outputs: tuple[str, ...]
    """The judge's texts, in the order of the attempts; empty if the prompt did not fit in its context."""

    met: bool | None
    """The verdict; None if no text has one."""

    def item_key(self) -> tuple[str, ...]:
        """Return the row's id and the hash of the judge's prompt."""
        return self.id, self.prompt_sha256
