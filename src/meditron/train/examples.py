"""Finetuning rows: conversations of files, and questions of tasks, tokenized with their roles.

`rows.jsonl.zst` in the artifact has all rows, as JSON objects {"id", "source", "split", "content",
"messages", "ids", "roles"}. `source` is the name of the file, task or training set, `content` the SHA-256 of
the normalized text of the question or the messages, `roles` a list of [role, tokens, in the loss], and
`split` is `train`, `heldout`, or `too-long` for a row longer than a sample. A row that is too long is left
out of training, because truncating it would remove the question or the answer.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from meditron.core.console import warn
from meditron.core.errors import InputError, SourceError
from meditron.sources.medquad import read_medquad
from meditron.store.identity import content_sha256
from meditron.store.jsonl import JsonlWriter, read_numbered_jsonl
from meditron.tasks.file_rows import read_source_rows
from meditron.tasks.prompt_template import PromptTemplate
from meditron.tasks.reasoning import reasoning_template
from meditron.tasks.task import Question, Task
from meditron.tasks.training_sets import TRAINING_SETS, training_set_files
from meditron.text.finetune_templates import TokenizedConversation, question_turns, tokenize_conversation
from meditron.text.messages import Turn, is_blank, parse_id, parse_row, row_format
from meditron.text.tokenizer import Tokenizer
from meditron.train.samples import IGNORE

__all__ = [
    "FILE_NAME",
    "SPLITS",
    "ConversationRow",
    "Example",
    "Split",
    "content_hash",
    "example_row",
    "file_rows",
    "held_out",
    "next_token_targets",
    "read_conversations",
    "refuse_unsupported_keys",
    "select_examples",
    "task_conversations",
    "user_text",
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
    question: str
    """What is asked, with its context and without the rest of the prompt; of a conversation, the user's
    messages."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row after tokenization."""

    id: str
    source: str
    """Name of the data that the row is from."""
    split: Split
    content_sha256: str
    """As in `ConversationRow`."""
    turns: tuple[Turn, ...]
    tokenized_turns: TokenizedConversation


def read_conversations(path: Path, training_set: str | None = None) -> Iterator[ConversationRow]:
    """Read the conversations of a file, of a folder's files or of a training set, in their order.

    A row without an id gets a hash of its messages.

    Args:
        path: A file (.jsonl, .json, .csv, .parquet) or a folder.
        training_set: Name in `TRAINING_SETS`; None for files of one's own.

    Raises:
        InputError: A row is damaged, has no answer, is in no known format, or is in another format than the
            first row of its file; names file and line.
        SourceError: The folder has no file of rows.
    """
    known = TRAINING_SETS[training_set] if training_set else None
    if known and known.kind == "medquad":
        yield from _medquad_conversations(path)
        return
    count = 0
    for file in training_set_files(known, path) if known else _row_files(path):
        for row in _file_conversations(file):
            count += 1
            yield row
    if known and known.count and count != known.count:
        warn(f"{known.name}: {count:,} of the {known.count:,} published rows")


_ROW_SUFFIXES = {".jsonl", ".json", ".csv", ".parquet"}


def _row_files(path: Path) -> list[Path]:
    """Return the files of rows of a folder and its subfolders, in the order of their paths."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and _ROW_SUFFIXES & set(file.suffixes))
    if not files:
        raise SourceError(f"{path}: no file of rows", hint=f"looked for {', '.join(sorted(_ROW_SUFFIXES))}")
    return files


def _file_conversations(path: Path) -> Iterator[ConversationRow]:
    first_format: str | None = None
    for place, row in file_rows(path):
        try:
            refuse_unsupported_keys(row)
            first_format = _require_same_format(row, first_format)
            turns = parse_row(row)
            name = _row_id(row, turns)
        except ValueError as error:
            raise InputError(path, str(error), place=place) from error
        yield _conversation_row(name, turns, path, place)


def _row_id(row: Mapping[str, Any], turns: Iterable[Turn]) -> str:
    """Return a row's id; a missing one is derived from the content, so that it is the same in another order.

    Raises:
        ValueError: The id is neither text nor a number, or is not valid Unicode.
    """
    name = row.get("id")
    if is_blank(name):
        # A row in another format is hashed as its equivalent messages. Parquet has dates and bytes, which
        # JSON lacks, in keys such as created_at.
        messages = row.get("messages")
        if is_blank(messages):
            messages = [[turn.role, turn.content] for turn in turns]
        return _sha256_hex(json.dumps(messages, sort_keys=True, default=str))[:16]
    return parse_id(name)


def file_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file with their places. JSON lines are streamed, other formats read at once.

    Raises:
        InputError: The file is damaged; names the line.
        SourceError: There is no such file.
    """
    if _ROW_SUFFIXES & set(path.suffixes) - {".jsonl"}:
        for row in read_source_rows(path):
            yield row.place, row.fields
    else:
        for number, fields in read_numbered_jsonl(path):
            yield f"line {number}", fields


def _medquad_conversations(path: Path) -> Iterator[ConversationRow]:
    skipped: Counter[str] = Counter()
    for pair in read_medquad(path, skipped):
        turns = Turn("user", pair.question), Turn("assistant", pair.answer)
        yield _conversation_row(pair.id, turns, path, pair.place)
    for reason, count in skipped.items():
        warn(f"{path}: {count:,} pairs left out: {reason}")


def _conversation_row(name: str, turns: tuple[Turn, ...], path: Path, place: str) -> ConversationRow:
    return ConversationRow(name, turns, path, place, content_hash(turns), user_text(turns))


def user_text(turns: Iterable[Turn]) -> str:
    """Return the user's messages of a conversation as one text."""
    return "\n".join(turn.content for turn in turns if turn.role == "user")


def _require_same_format(row: Mapping[str, Any], first_format: str | None) -> str:
    """Return the row's format; raise ValueError if the earlier rows have another format."""
    name = row_format(row)
    if name != (first_format or name):
        raise ValueError(f"has the format {name}, the rows before it {first_format}")
    return name


def refuse_unsupported_keys(
    row: Mapping[str, Any], *, also: Sequence[str] = (), method: str = "finetuning"
) -> None:
    """Refuse a row with a key that would change its meaning; unknown keys are metadata.

    Args:
        row: The row.
        also: Keys that only this method does not support.
        method: Name of the method in the error.

    Raises:
        ValueError: The row has such a key.
    """
    for key in (*_UNSUPPORTED_KEYS, *also):
        if (value := row.get(key)) not in ([], {}) and not is_blank(value):
            raise ValueError(f"the row has the key '{key}', which {method} does not support")


def task_conversations(
    task: Task, template: str, path: Path, *, reasoning: bool = False
) -> Iterator[ConversationRow]:
    """Render a task's training questions, each answered with its correct option.

    Args:
        task: The task.
        template: The finetuning template.
        path: The task's file or folder, for errors.
        reasoning: True to give the source's explanation before the answer; questions without one are left
            out, with a warning.

    Raises:
        InputError: A training question is also a test question, or no question has an explanation.
    """
    test = task.rows("test")
    # A file without splits gives the same questions as training and as test split, so there is no overlap to
    # check.
    has_splits = test != task.rows("train")
    test_ids = {question.content_sha256: question.id for question in test} if has_splits else {}
    ids = set(test_ids.values())
    prompt_template = reasoning_template(task.template) if reasoning else task.template
    questions = [question for question in task.rows("train") if question.explanation.strip() or not reasoning]
    if len(questions) < len(task.rows("train")):
        left_out = len(task.rows("train")) - len(questions)
        if not questions:
            raise InputError(path, "no question has an explanation, which reasoning = true needs")
        warn(f"{task.name}: {left_out:,} of {len(task.rows('train')):,} questions left out: no explanation")
    for question in questions:
        # Compared by id and by content: a question may occur again under another id, or its id with another
        # text.
        duplicate = question.id if question.id in ids else test_ids.get(question.content_sha256)
        if duplicate is not None:
            problem = f"a training question that is also a test question ({duplicate})"
            raise InputError(path, problem, place=question.id)
        yield ConversationRow(
            question.id,
            _question_turns(prompt_template, question, template, reasoning=reasoning),
            path,
            question.id,
            question.content_sha256,
            f"{question.context}\n{question.text}".strip(),
        )


def _question_turns(
    prompt_template: PromptTemplate, question: Question, template: str, *, reasoning: bool
) -> tuple[Turn, ...]:
    rendered = prompt_template.render(question)
    if not reasoning:
        return question_turns(rendered.prompt, rendered.continuations[question.gold], template)
    user, answer = question_turns(rendered.prompt, prompt_template.solved_answer(question), template)
    # Unlike a bare option, a chain of thought is a text after which the model must learn to stop.
    return user, replace(answer, learns_end=True)


def select_examples(
    conversations: Iterable[ConversationRow],
    tokenizer: Tokenizer,
    *,
    source: str,
    template: str,
    length: int,
    heldout: float,
    limit: int | None,
) -> list[Example]:
    """Tokenize the conversations of one source in order until `limit` of them are in the training split.

    A conversation of more than `length` tokens is never truncated: its split is `too-long`.

    A fraction `heldout` is held out by a hash of each row's own content: a row's split does not change when
    other rows are added, removed or renamed, and rows of equal content are never on both sides.

    Raises:
        InputError: A row cannot be tokenized, none of its tokens is in the loss, or the model's chat template
            does not fit it.
        UsageError: The tokenizer does not fit the template.
    """
    examples: list[Example] = []
    trained = 0
    for conversation in conversations:
        try:
            tokenized = tokenize_conversation(tokenizer, conversation.turns, template)
        except ValueError as error:
            raise InputError(conversation.path, str(error), place=conversation.place_in_file) from error
        except InputError as error:  # from the chat template, which may accept other rows
            hint = error.hint or "change the row to messages that the model's chat template accepts"
            raise InputError(
                conversation.path, error.message, place=conversation.place_in_file, hint=hint
            ) from error
        # A tokenizer may have no token for an answer, such as a letter that is not in its vocabulary.
        if not any(tokenized.in_loss):
            problem = "no token is in the loss: the tokenizer has no token for the answer"
            raise InputError(conversation.path, problem, place=conversation.place_in_file)
        split: Split = "train"
        if len(tokenized.ids) > length:
            split = "too-long"
        elif held_out(conversation.content_sha256, heldout):
            split = "heldout"
        trained += split == "train"
        examples.append(
            Example(
                conversation.id, source, split, conversation.content_sha256, conversation.turns, tokenized
            )
        )
        # The limit counts training rows only, not held-out rows and rows that are too long. No row after the
        # last one is read: a filter would count it.
        if trained == limit:
            break
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
            writer.write(example_row(example))


def example_row(example: Example) -> dict[str, Any]:
    """Return an example as a row of `rows.jsonl.zst`."""
    return {
        "id": example.id,
        "source": example.source,
        "split": example.split,
        "content": example.content_sha256,
        "messages": [
            {"role": turn.role, "content": turn.content} | ({} if turn.in_loss else {"weight": 0})
            for turn in example.turns
        ],
        "ids": example.tokenized_turns.ids,
        "roles": [[span.role, span.tokens, span.in_loss] for span in example.tokenized_turns.spans],
    }


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
