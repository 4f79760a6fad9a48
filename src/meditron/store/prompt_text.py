"""Texts of prompts: messages with variables, their hash, and the TOML file of a version.

`{{name}}` in a text is a variable. A variable's value is inserted as it is: nothing in it is evaluated, and a
variable in it stays text.
"""

import difflib
import hashlib
import re
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from meditron.core.config import Config, first_problem
from meditron.core.errors import DigestError, InputError, UsageError
from meditron.store.files import canonical_json, translate_read_errors

__all__ = ["PromptMessage", "PromptText", "PromptVersion", "difference", "read_version", "short_version"]

_VARIABLE = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]{0,63})\s*\}\}")
_MAX_BYTES = 1 << 20
_MAX_MESSAGES = 200
_SHORT = 12  # digits of a hash that are shown
# Characters that a TOML string cannot hold as they are; a line break only in a string of several lines.
_ESCAPED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\\]")


class PromptMessage(Config):
    """A message of a prompt."""

    role: Literal["user", "assistant"]
    content: str


class PromptText(Config):
    """The text of a prompt: what a version's hash is computed from."""

    system: str = ""
    """System text."""
    messages: tuple[PromptMessage, ...] = Field(default=(), max_length=_MAX_MESSAGES)
    """Messages before the user's: solved examples, or a question with variables."""

    @classmethod
    def checked(cls, fields: Mapping[str, object]) -> Self:
        """Return the prompt with these fields, which a user gave; UsageError if there can be none."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            place, problem = first_problem(error, root="prompt")
            raise UsageError(f"{place}: {problem.removeprefix('Value error, ')}") from error

    @field_validator("system")
    @classmethod
    def _normalize_system(cls, text: str) -> str:
        return _normalized(text)

    @field_validator("messages")
    @classmethod
    def _normalize_messages(cls, messages: tuple[PromptMessage, ...]) -> tuple[PromptMessage, ...]:
        return tuple(
            PromptMessage(role=message.role, content=_normalized(message.content)) for message in messages
        )

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if not any(text.strip() for text in self._texts()):
            raise ValueError("a prompt needs a system text or a message")
        if sum(len(text.encode()) for text in self._texts()) > _MAX_BYTES:
            raise ValueError(f"a prompt has at most {_MAX_BYTES:,} bytes")
        return self

    def _texts(self) -> list[str]:
        return [self.system, *(message.content for message in self.messages)]

    @cached_property
    def version(self) -> str:
        """Hexadecimal SHA-256 of the text; equal texts are one version."""
        messages = [{"content": message.content, "role": message.role} for message in self.messages]
        return hashlib.sha256(canonical_json({"system": self.system, "messages": messages})).hexdigest()

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables, in the order of their first use."""
        return tuple(dict.fromkeys(name for text in self._texts() for name in _VARIABLE.findall(text)))

    def render(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """Return the prompt as chat messages, with the values of the variables.

        Raises:
            UsageError: a variable has no value, a value has no variable, or a value is no text.
        """
        for name in self.variables:
            if name not in values:
                raise UsageError(f"the prompt's variable {name} has no value")
        for name, value in values.items():
            if name not in self.variables:
                known = ", ".join(self.variables) or "none"
                raise UsageError(f"the prompt has no variable {name}; variables: {known}")
            if not isinstance(value, str):
                raise UsageError(f"the prompt's variable {name} must be text, got {type(value).__name__}")
        turns = [("system", self.system)] if self.system.strip() else []
        turns += [(message.role, message.content) for message in self.messages]
        return [
            {"role": role, "content": _VARIABLE.sub(lambda match: values[match[1]], text)}
            for role, text in turns
        ]

    def as_text(self) -> str:
        """Return the whole prompt as one text, with a line before each part that names its role."""
        parts = [("system", self.system)] if self.system else []
        parts += [(message.role, message.content) for message in self.messages]
        return "\n".join(f"[{role}]\n{text.rstrip()}\n" for role, text in parts)


class PromptVersion(PromptText):
    """A version of a prompt: its text, and who wrote it."""

    description: str = ""
    """What the version is for, or what it changes."""
    author: str = ""
    time: str = ""
    """Time of writing, ISO 8601 in UTC."""
    parent: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Hash of the version that it was edited from."""

    @property
    def text(self) -> PromptText:
        """The text alone."""
        return PromptText(system=self.system, messages=self.messages)

    def to_toml(self) -> str:
        """Return the version as a TOML file."""
        keys = ("description", "author", "time", "parent", "system")
        values = {key: getattr(self, key) for key in keys}
        lines = [f"{key} = {_toml_string(value)}\n" for key, value in values.items() if value]
        for message in self.messages:
            lines.append(f'\n[[messages]]\nrole = "{message.role}"\n')
            lines.append(f"content = {_toml_string(message.content)}\n")
        return "".join(lines)


def read_version(path: Path, *, version: str | None = None) -> PromptVersion:
    """Read the file of a version, or one that a user wrote in this form.

    Args:
        path: The TOML file.
        version: The hash that the text must have.

    Raises:
        SourceError: there is no such file.
        InputError: it is no prompt.
        DigestError: the text has another hash.
    """
    with translate_read_errors(path), path.open("rb") as file:
        content = file.read(2 * _MAX_BYTES + 1)
    try:
        if len(content) > 2 * _MAX_BYTES:
            raise InputError(path, f"more than {2 * _MAX_BYTES:,} bytes")
        found = PromptVersion(**tomllib.loads(content.decode()))
    except ValidationError as error:
        place, problem = first_problem(error)
        raise InputError(path, f"not a prompt: {problem}", place=place) from error
    except (ValueError, TypeError, RecursionError) as error:  # not UTF-8, or not TOML
        raise InputError(path, f"not a prompt: {error}") from error
    if version is not None and found.version != version:
        raise DigestError(
            path,
            f"the text was changed: its hash is {short_version(found.version)}",
            hint="a version never changes: restore the file, and write a new version with `prompts edit`",
        )
    return found


def difference(old: PromptText, new: PromptText) -> list[str]:
    """Return the lines of a unified diff of two prompts; empty for equal texts."""
    return list(
        difflib.unified_diff(
            old.as_text().splitlines(),
            new.as_text().splitlines(),
            short_version(old.version),
            short_version(new.version),
            lineterm="",
        )
    )


def short_version(version: str) -> str:
    """Return the digits of a version's hash that are shown."""
    return version[:_SHORT]


def _normalized(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text contains half of a surrogate pair") from error
    # The same text has the same hash, whatever system and editor it was written with.
    return text.replace("\r\n", "\n").rstrip("\n")


def _toml_string(text: str) -> str:
    escaped = _ESCAPED.sub(lambda match: "\\\\" if match[0] == "\\" else f"\\u{ord(match[0]):04x}", text)
    if "\n" not in text:
        return '"' + escaped.replace('"', '\\"') + '"'
    escaped = escaped.replace('"""', '""\\"')
    return '"""\n' + (f'{escaped[:-1]}\\"' if escaped.endswith('"') else escaped) + '"""'
