"""Finetuning data: conversations of a file, or the questions of a task, tokenized with their roles.

`rows.jsonl.zst` in the artifact has all rows, as JSON objects {"id", "split", "content", "messages", "ids",
"roles"}. `content` is the SHA-256 of the normalized text of the question or the messages, `roles` a list of
[role, tokens, in the loss], and `split` is `train`, `heldout`, or `too-long` for a row longer than a sample.
A row that is too long is left out of training, because truncating it would remove the question or the answer.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from meditron.core.errors import InputError
from meditron.store.identity import content_sha256
from meditron.store.jsonl import JsonlWriter, read_jsonl
from meditron.tasks.task import Question, Task
from meditron.text.finetune_templates import TokenizedConversation, question_turns, tokenize_conversation
from meditron.text.messages import Turn, parse_row, row_format
from meditron.text.tokenizer import Tokenizer
from meditron.train.samples import IGNORE

__all__ = [
    "FILE_NAME",
    "SPLITS",
    "ConversationRow",
    "Example",
    "Split",
    "content_hash",
    "held_out",
    "next_token_targets",
    "read_conversations",
    "select_examples",
    "task_conversations",
    "write_rows",
]

FILE_NAME = "rows.jsonl.zst"
# Keys of other trainers' datasets that change the meaning of a row's messages.
_UNSUPPORTED_KEYS = (
    "tools",
    "functions",
    "system",
    "weight",
    "train",
    "documents",
    "images",
    "image",
    "videos",
    "audios",
    "chat_template",
    "chat_template_kwargs",
)
Split = Literal["train", "heldout", "too-long"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class ConversationRow:
    """A row before tokenization."""

    id: str
    turns: tuple[Turn, ...]
    path: Path
    """File of the row."""
    place_in_file: str
    """Place of the row in the file, for errors."""
    content_sha256: str
    """Hexadecimal SHA-256 of the row's content: of the question, or of the messages."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row after tokenization."""

    id: str
    split: Split
    content_sha256: str
    """As in `ConversationRow`."""
    turns: tuple[Turn, ...]
    tokenized_turns: TokenizedConversation


def read_conversations(path: Path) -> Iterator[ConversationRow]:
    """Read the conversations of a JSONL file, in its order. A row without an id gets a hash of its messages.

    Raises:
        InputError: A line is damaged, has no answer, is in no known format, or is in another format than the
            first line.
    """
    first_format: str | None = None
    for number, row in enumerate(read_jsonl(path), start=1):
        place = f"row {number}"
        try:
            _refuse_unsupported_keys(row)
            first_format = _require_same_format(row, first_format)
            turns = parse_row(row)
        except ValueError as error:
            raise InputError(path, str(error), place=place) from error
        # A row in another format is hashed as its equivalent messages.
        messages = row.get("messages") or [[turn.role, turn.content] for turn in turns]
        # A missing id is derived from the content, so that it stays the same if rows are added or reordered.
        name = row.get("id")
        if name is None:
            name = _sha256_hex(json.dumps(messages, sort_keys=True))[:16]
        if not isinstance(name, str | int):
            raise InputError(path, f"an id must be text or a number, got {name!r}", place=place)
        yield ConversationRow(str(name), turns, path, place, content_hash(turns))


def _require_same_format(row: Mapping[str, Any], first_format: str | None) -> str:
    """Return the row's format; raise ValueError if the earlier rows have another format."""
    name = row_format(row)
    if name != (first_format or name):
        raise ValueError(f"has the format {name}, the rows before it {first_format}")
    return name


def _refuse_unsupported_keys(row: Mapping[str, Any]) -> None:
    """Refuse a row with a key that would change its meaning; unknown keys are metadata."""
    for key in _UNSUPPORTED_KEYS:
        if row.get(key) not in (None, [], {}, ""):
            raise ValueError(f"the row has the key '{key}', which finetuning does not support")


def task_conversations(task: Task, template: str, path: Path) -> Iterator[ConversationRow]:
    """Render a task's training questions, each answered with its correct option.

    Args:
        task: The task.
        template: The finetuning template.
        path: The task's file or folder, for errors.

    Raises:
        InputError: A training question is also a test question.
    """
    test = task.rows("test")
    # A file without splits gives the same questions as training and as test split, so there is no overlap to
    # check.
    has_splits = test != task.rows("train")
    test_ids = {question.content_sha256: question.id for question in test} if has_splits else {}
    ids = set(test_ids.values())
    for question in task.rows("train"):
        # Compared by id and by content: a question may occur again under another id, or its id with another
        # text.
        duplicate = question.id if question.id in ids else test_ids.get(question.content_sha256)
        if duplicate is not None:
            problem = f"a training question that is also a test question ({duplicate})"
            raise InputError(path, problem, place=question.id)
        turns = _question_turns(task, question, template)
        yield ConversationRow(question.id, turns, path, question.id, question.content_sha256)


def _question_turns(task: Task, question: Question, template: str) -> tuple[Turn, ...]:
    rendered = task.template.render(question)
    return question_turns(rendered.prompt, rendered.continuations[question.gold], template)


def select_examples(
    conversations: Iterable[ConversationRow],
    tokenizer: Tokenizer,
    *,
    template: str,
    length: int,
    heldout: float,
    limit: int | None,
) -> list[Example]:
    """Tokenize conversations in order until `limit` of them are in the training split.

    A fraction `heldout` is held out by a hash of each row's own content: a row's split does not change when
    other rows are added, removed or renamed, and rows of equal content are never on both sides.

    Raises:
        InputError: A row cannot be tokenized, or the model's chat template does not fit it.
        UsageError: The tokenizer does not fit the template.
    """
    examples: list[Example] = []
    trained = 0
    for conversation in conversations:
        # The limit counts training rows only, not held-out rows and rows that are too long.
        if trained == limit:
            break
        try:
            tokenized = tokenize_conversation(tokenizer, conversation.turns, template)
        except ValueError as error:
            raise InputError(conversation.path, str(error), place=conversation.place_in_file) from error
        except InputError as error:  # from the chat template, which may accept other rows
            hint = error.hint or "change the row to messages that the model's chat template accepts"
            raise InputError(
                conversation.path, error.message, place=conversation.place_in_file, hint=hint
            ) from error
        split: Split = "train"
        if len(tokenized.ids) > length:
            split = "too-long"
        elif held_out(conversation.content_sha256, heldout):
            split = "heldout"
        trained += split == "train"
        examples.append(
            Example(conversation.id, split, conversation.content_sha256, conversation.turns, tokenized)
        )
    return examples


def held_out(content_sha256: str, fraction: float) -> bool:
    """Return whether a row is held out, by a hash of its content."""
    # The first 64 bits of the hash are used as a uniform random number; the prefix `heldout/` makes it
    # independent of other hashes of the row.
    return int(_sha256_hex(f"heldout/{content_sha256}")[:16], 16) < fraction * 2**64


def write_rows(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as JSON lines."""
    with JsonlWriter(path) as writer:
        for example in examples:
            writer.write(
                {
                    "id": example.id,
                    "split": example.split,
                    "content": example.content_sha256,
                    "messages": [
                        {"role": turn.role, "content": turn.content} | ({} if turn.in_loss else {"weight": 0})
                        for turn in example.turns
                    ],
                    "ids": example.tokenized_turns.ids,
                    "roles": [
                        [span.role, span.tokens, span.in_loss] for span in example.tokenized_turns.spans
                    ],
                }
            )


def next_token_targets(tokenized: TokenizedConversation) -> np.ndarray:
    """Return the target of each token: the next token if that is in the loss, else `IGNORE`."""
    next_S = np.array([*tokenized.ids[1:], IGNORE])
    # `in_loss` is shifted by one, because a token is predicted at the position before it.
    return np.where([*tokenized.in_loss[1:], False], next_S, IGNORE)


def content_hash(turns: Iterable[Turn]) -> str:
    """Hash the roles and texts of a conversation; the id is left out."""
    return content_sha256("\x1f".join(f"{turn.role}: {turn.content}" for turn in turns))


def _sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
