"""The prompt of a judge, a file with a hash, and the reading of its verdicts.

A verdict is read strictly: a text that does not end with one, or that has contradictory ones, has none.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from meditron.core.config import Config, first_problem
from meditron.core.errors import InputError, SourceError
from meditron.store.files import reject_duplicate_keys, translate_read_errors
from meditron.tasks.rubrics import Criterion
from meditron.text.chat import Message

__all__ = ["DEFAULT_PROMPT", "JudgePrompt", "parse_verdict", "plain_conversation", "read_judge_prompt"]

DEFAULT_PROMPT = Path(__file__).with_name("judge-prompt.toml")
"""The package's own prompt."""
AnswerForm = Literal["verdict", "json"]
_PLACEHOLDERS = {"conversation", "answer", "criterion", "points"}
_VERDICT = re.compile(r"[\s*_#>`]*verdict\s*:[\s*_`]*(met|not met)[\s*_`.]*", re.IGNORECASE)
_REASONING, _REASONING_END = "<think>", "</think>"  # around the hidden reasoning of reasoning models
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


class JudgePrompt(Config):
    """A prompt for judges: the keys of its file, and the file's name and hash."""

    name: str
    """Name of the file, without `.toml`."""

    sha256: str
    """SHA-256 of the file."""

    version: int = Field(ge=1)
    """Version, increased whenever the prompt changes."""

    source: str = ""
    """Publication or software whose prompt this is."""

    answer: AnswerForm
    """Form of the verdict: a last line `Verdict: met` or `Verdict: not met` (`verdict`), or a JSON object
    with the boolean `criteria_met` (`json`, as in HealthBench)."""

    text: str
    """The prompt, with `{conversation}`, `{answer}`, `{criterion}` and `{points}`."""

    @field_validator("text")
    @classmethod
    def _placeholders_are_known(cls, text: str) -> str:
        fields = [field for field in Formatter().parse(text) if field[1] is not None]
        names = [name for _, name, _, _ in fields]
        # A format such as `:>99999999` would make a text of any length.
        if formatted := [name for _, name, form, conversion in fields if form or conversion]:
            raise ValueError(f"the placeholder {{{formatted[0]}}} cannot have a format")
        if unknown := [name for name in names if name not in _PLACEHOLDERS]:
            raise ValueError(f"no placeholder {{{unknown[0]}}}; write literal braces as {{{{ and }}}}")
        if missing := [name for name in ("conversation", "answer", "criterion") if name not in names]:
            raise ValueError(f"the placeholder {{{missing[0]}}} is missing")
        return text

    @property
    def id(self) -> str:
        """Name and version in rows: `judge-prompt/1`."""
        return f"{self.name}/{self.version}"

    def render(self, messages: Sequence[Message], answer: str, criterion: Criterion) -> str:
        """Render the prompt for one criterion of an answer to a conversation."""
        return self.text.format(
            conversation=plain_conversation(messages),
            answer=answer,
            criterion=criterion.text,
            points=f"{criterion.points:g}",
        )


def plain_conversation(messages: Sequence[Message]) -> str:
    """Return messages as plain text: `User: …`, `Assistant: …`, separated by empty lines."""
    return "\n\n".join(f"{str(message['role']).title()}: {message['content']}" for message in messages)


def read_judge_prompt(path: Path = DEFAULT_PROMPT) -> JudgePrompt:
    """Read a prompt file (.toml).

    Raises:
        SourceError: there is no such file.
        InputError: the file is not a prompt for judges; names the key.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such prompt file")
    with translate_read_errors(path):
        content = path.read_bytes()
    try:
        fields = tomllib.loads(content.decode())
        named = {"name": path.stem, "sha256": hashlib.sha256(content).hexdigest()}
        return JudgePrompt(**fields | named)
    except ValidationError as error:
        key, problem = first_problem(error)
        raise InputError(path, f"not a prompt for judges: {problem}", place=key) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not TOML
        raise InputError(path, f"not a prompt for judges: {error}") from error


def parse_verdict(text: str, form: AnswerForm) -> bool | None:
    """Return the verdict of a judge's text: True for met, False for not met, None if it has none."""
    answer = text.rpartition(_REASONING_END)[2].strip()
    if _REASONING in answer:  # cut off within the reasoning
        return None
    return _parse_json(answer) if form == "json" else _parse_line(answer)


def _parse_line(answer: str) -> bool | None:
    lines = [line for line in answer.splitlines() if line.strip()]
    verdicts = [match and match[1].lower() for match in map(_VERDICT.fullmatch, lines)]
    # The last line must be the verdict, and all verdicts must be equal.
    if not verdicts or verdicts[-1] is None or len({*verdicts} - {None}) > 1:
        return None
    return verdicts[-1] == "met"


def _parse_json(answer: str) -> bool | None:
    fenced = _FENCED.fullmatch(answer)
    try:
        # A key that is given twice may be contradictory verdicts.
        value: Any = json.loads(fenced[1] if fenced else answer, object_pairs_hook=reject_duplicate_keys)
    except (ValueError, RecursionError):
        return None
    verdict = value.get("criteria_met") if isinstance(value, dict) else None
    return verdict if isinstance(verdict, bool) else None
