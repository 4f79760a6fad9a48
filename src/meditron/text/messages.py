"""Parsing of conversations: the row formats that files may have, and their messages as turns."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["ASSISTANT", "ROLES", "Turn", "is_blank", "parse_id", "parse_messages", "parse_row", "row_format"]

ASSISTANT = "assistant"
ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "question": "user",
    "assistant": ASSISTANT,
    "answer": ASSISTANT,
}
"""Role name in a row → one of the three roles."""

_LOSS_KEYS: Mapping[str, tuple[object, object]] = {"weight": (0, 1), "train": (False, True)}
# Keys that a message may have. Any other key is refused unless its value is empty, because keys such as tool
# calls, reasoning or a name would change the model's input.
_MESSAGE_KEYS = (
    "role",
    "content",
    *_LOSS_KEYS,
    "id",
    "timestamp",
    "created_at",
    "source",
    "lang",
    "metadata",
)
_NOT_A_MESSAGE = "a message must be an object with a role and a content that is text"


@dataclass(frozen=True, slots=True)
class _FlatFormat:
    """A row format of one question and one answer under two keys."""

    user_key: str
    assistant_key: str
    context_key: str | None = None
    """Optional key whose text is appended to the question."""

    @property
    def name(self) -> str:
        return f"{self.user_key}/{self.assistant_key}"

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.user_key, self.assistant_key, *([self.context_key] if self.context_key else []))


_MESSAGES = "messages"
_SHAREGPT = "conversations"
_SHAREGPT_ROLES: Mapping[str, str] = {"human": "user", "gpt": ASSISTANT}
# Key of a row's chain of thought, which is written before its last answer.
_REASONING = "reasoning"
# Keys of other datasets without which a question and its answer mean something else: earlier turns (LLaMA
# Factory), the text that a question is about (SQuAD), the options of a multiple-choice question.
_LOST_KEYS = ("history", "context", "contexts", "passage", "options", "choices")
_FLAT_FORMATS = (
    _FlatFormat("instruction", "output", context_key="input"),  # Alpaca
    _FlatFormat("prompt", "completion"),  # TRL, OpenAI
    _FlatFormat("question", "answer"),
)
_REQUIRED_KEYS: Mapping[str, tuple[str, ...]] = {
    _MESSAGES: (_MESSAGES,),
    _SHAREGPT: (_SHAREGPT,),
    **{form.name: (form.user_key, form.assistant_key) for form in _FLAT_FORMATS},
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    learns_end: bool = True
    """False for an answer after which no stop token is learned, such as the option of a question: a model
    that learned to stop after one word would do so in every conversation."""
    in_loss: bool = True
    """False for an answer that adds no loss: a row excludes one by `"weight": 0` or `"train": false`."""


def row_format(row: Mapping[str, Any]) -> str:
    """Return the name of a row's format: `messages`, `conversations`, or the two keys of a flat one.

    Raises:
        ValueError: The row has no known format, the keys of several formats, or text that would be ignored.
    """
    # The formats with the most values under their keys: blank columns of another format count as absent, but
    # a row with an empty answer keeps its format, and the error names the answer.
    filled = {
        name: sum(_has_value(row, key) for key in keys) / len(keys)
        for name, keys in _REQUIRED_KEYS.items()
        if all(row.get(key) is not None for key in keys)
    }
    names = [name for name, share in filled.items() if share == max(filled.values())]
    flat = [form for form in _FLAT_FORMATS if form.name in names]
    if len(names) > 1:
        raise ValueError(f"has the keys of several formats: {' and '.join(names)}")
    if not names:
        known = ", ".join(_REQUIRED_KEYS)
        keys = ", ".join(map(str, row)) or "none"
        raise ValueError(f"has no known conversation format (keys: {keys}); formats are {known}")
    if flat:
        # In published datasets, rows with `messages` may have an additional column `prompt`, which is
        # ignored. A row of two keys is refused if it has a key of another format, which may be part of the
        # conversation.
        others = {key for form in _FLAT_FORMATS for key in form.keys} - {*flat[0].keys}
        if stray := sorted(key for key in others if _has_value(row, key)):
            raise ValueError(f"has the format {names[0]} and the key '{stray[0]}' of another format")
        if lost := [key for key in _LOST_KEYS if row.get(key) and _has_value(row, key)]:
            raise ValueError(
                f"has the format {names[0]} and the key '{lost[0]}', which would be ignored; write its text "
                f"into '{flat[0].user_key}', or the row as {_MESSAGES}"
            )
    return names[0]


def parse_row(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Return the turns of a row in any of the formats of `row_format`.

    The row's `reasoning`, a chain of thought, is written before its last answer, separated by an empty line.

    Raises:
        ValueError: The row is not a conversation with an answer.
    """
    turns = _parse_turns(row)
    if not _has_value(row, _REASONING):
        return turns
    reasoning = row[_REASONING]
    if not isinstance(reasoning, str):
        raise ValueError(f"'{_REASONING}' must be text, got {type(reasoning).__name__}")  # noqa: TRY004
    *before, last = turns
    if last.role != ASSISTANT:
        raise ValueError(f"'{_REASONING}' belongs to an answer, but the last message is the {last.role}'s")
    return (*before, replace(last, content=f"{reasoning.strip()}\n\n{last.content}"))


def _parse_turns(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    name = row_format(row)
    if name == _MESSAGES:
        return parse_messages(row[_MESSAGES])
    if name == _SHAREGPT:
        return parse_messages(_messages_of_sharegpt(row[_SHAREGPT]), _SHAREGPT)
    form = next(form for form in _FLAT_FORMATS if form.name == name)
    for key in form.keys:
        if _has_value(row, key) and not isinstance(row[key], str):
            raise ValueError(f"'{key}' must be text, got {type(row[key]).__name__}")
    question = row[form.user_key]
    if form.context_key and _has_value(row, form.context_key):
        question = f"{question}\n\n{row[form.context_key]}"
    return parse_messages(
        [{"role": "user", "content": question}, {"role": ASSISTANT, "content": row[form.assistant_key]}]
    )


def _messages_of_sharegpt(conversation: object) -> object:
    """Return ShareGPT's messages with role and content; what is none of them is left to `parse_messages`."""
    return list(map(_message_of_sharegpt, conversation)) if isinstance(conversation, list) else conversation


def _message_of_sharegpt(message: object) -> object:
    if not isinstance(message, dict) or not {"from", "value"} <= message.keys():
        return message
    others = {key: value for key, value in message.items() if key not in ("from", "value")}
    if both := sorted({"role", "content"} & others.keys()):
        raise ValueError(f"a message has 'from' and 'value', and '{both[0]}' of another format")
    role = _SHAREGPT_ROLES.get(str(message["from"]), message["from"])
    return {**others, "role": role, "content": message["value"]}


def _has_value(row: Mapping[str, Any], key: str) -> bool:
    return not is_blank(row.get(key))


def is_blank(value: object) -> bool:
    """Return whether a value is null, or text without any character but blanks.

    Exported tables have every column in every row, so such a value counts as absent. A CSV cell cannot be
    null: it is empty text.
    """
    return value is None or (isinstance(value, str) and not value.strip())


def parse_messages(messages: object, name: str = _MESSAGES) -> tuple[Turn, ...]:
    """Return the turns of a list of messages; `name` is its key in the row, for errors.

    Raises:
        ValueError: The messages are malformed, or none of the assistant's messages is in the loss.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"'{name}' must be a list of messages, not empty")
    turns = tuple(map(_parse_message, messages))
    if not any(turn.role == ASSISTANT for turn in turns):
        raise ValueError("no message of the assistant: there is nothing to learn")
    if not any(turn.role == ASSISTANT and turn.in_loss for turn in turns):
        raise ValueError(
            "every message of the assistant is excluded from the loss: there is nothing to learn"
        )
    return turns


def _parse_message(message: object) -> Turn:
    if not isinstance(message, dict):
        raise ValueError(_NOT_A_MESSAGE)  # noqa: TRY004
    for key, value in message.items():
        if key not in _MESSAGE_KEYS and value not in ([], {}) and not is_blank(value):
            raise ValueError(
                f"a message has the key '{key}', which finetuning does not support; supported keys are "
                f"{', '.join(_MESSAGE_KEYS)}"
            )
    if not isinstance(message.get("content"), str):
        raise ValueError(_NOT_A_MESSAGE)  # noqa: TRY004
    role = ROLES.get(str(message.get("role")))
    if role is None:
        raise ValueError(f"unknown role {message.get('role')!r}; roles are {', '.join(ROLES)}")
    _require_utf8(message["content"], "a message")
    if role == ASSISTANT and not message["content"].strip():
        raise ValueError("an answer is empty")
    in_loss = _read_loss_mark(message)
    if in_loss and role != ASSISTANT:
        raise ValueError(f"a message of the {role} is marked for the loss; only the assistant's can be")
    return Turn(role, message["content"], in_loss=in_loss is not False)


def parse_id(value: object) -> str:
    """Return a row's id as text.

    Raises:
        ValueError: The id is neither text nor a number, or is not valid Unicode.
    """
    if not isinstance(value, str | int):
        raise ValueError(f"an id must be text or a number, got {value!r:.60}")  # noqa: TRY004
    _require_utf8(str(value), "the id")
    return str(value)


def _require_utf8(text: str, name: str) -> None:
    """Raise ValueError if a text has no UTF-8 form, as JSON's escapes of half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} contains half of a surrogate pair, which is not valid UTF-8") from error


def _read_loss_mark(message: Mapping[str, object]) -> bool | None:
    """Return a message's mark for the loss: OpenAI's `weight` or axolotl's `train`; None without a mark."""
    marks = []
    for key, allowed in _LOSS_KEYS.items():
        if (value := message.get(key)) is None:
            continue
        if type(value) not in (bool, int, float) or value not in allowed:
            raise ValueError(f"a message has {key} {value!r}; it must be {' or '.join(map(str, allowed))}")
        marks.append(bool(value))
    if len(set(marks)) > 1:
        raise ValueError(f"{' and '.join(_LOSS_KEYS)} of a message contradict each other")
    return marks[0] if marks else None
