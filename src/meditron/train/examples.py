"""What a finetune trains on: conversations, of a file or of a task's questions, as tokens with roles.

`rows.jsonl.zst` keeps every one in the artifact: {"id", "split", "content", "messages", "ids", "roles"}.
`content` is the SHA-256 of the question's or the messages' normalised text, `roles` are [role, tokens,
learned] one after another, and `split` is `train`, `heldout`, or `too-long` for a row that has more tokens
than a packed row: it is left out, as what is cut of it would be the question or the answer.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from meditron.core.errors import InputError
from meditron.store.identity import content_sha256
from meditron.store.jsonl import JsonlWriter, read_jsonl
from meditron.tasks.task import Question, Task
from meditron.text.dialogue import TokenizedConversation, Turn, answered, label, parse_messages
from meditron.text.tokenizer import Tokenizer

__all__ = ["FILE_NAME", "SPLITS", "Conversation", "Example", "choose", "of_file", "of_task", "write_rows"]

FILE_NAME = "rows.jsonl.zst"
# Keys of a row, in the datasets of other trainers, without which its messages mean something else.
_UNSUPPORTED = (
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
_Split = Literal["train", "heldout", "too-long"]
SPLITS: tuple[_Split, ...] = get_args(_Split)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A row before it is tokens."""

    id: str
    turns: tuple[Turn, ...]
    path: Path
    """The file it is from."""
    place: str
    """Where in it."""
    content: str
    """Hexadecimal SHA-256 of the row's content: the question's, or the messages'."""


@dataclass(frozen=True, slots=True)
class Example:
    """A row as the model meets it."""

    id: str
    split: _Split
    content: str
    """As the conversation's."""
    turns: tuple[Turn, ...]
    labelled: TokenizedConversation


def of_file(path: Path) -> Iterator[Conversation]:
    """The conversations of a JSONL file, in its order; without an id a row is known by its messages' hash.

    Raises:
        InputError: a line is damaged, or is no conversation with an answer.
    """
    for number, row in enumerate(read_jsonl(path), start=1):
        place = f"row {number}"
        try:
            _refuse_what_is_not_read(row)
            conversation = parse_messages(row.get("messages"))
        except ValueError as error:
            raise InputError(path, str(error), place=place) from error
        name = row.get("id", _hash(json.dumps(row["messages"], sort_keys=True))[:16])
        if not isinstance(name, str | int):
            raise InputError(path, f"an id is text or a number, not {name!r}", place=place)
        yield Conversation(str(name), conversation, path, place, _content(conversation))


def _refuse_what_is_not_read(row: Mapping[str, Any]) -> None:
    """Refuse a row with a key that would change what is learned from it; other keys are metadata."""
    for key in _UNSUPPORTED:
        if row.get(key) not in (None, [], {}, ""):
            raise ValueError(f"the row has the key '{key}', which finetuning cannot honour")


def of_task(task: Task, template: str, path: Path) -> Iterator[Conversation]:
    """A task's training questions as its template asks them, each answered with its gold option.

    `path`: where the task is from.

    Raises:
        InputError: a training question is also a test question.
    """
    test = task.rows("test")
    # A file without a split of its own gives the same questions twice: there is nothing that it keeps apart.
    apart = test != task.rows("train")
    held = {question.content_sha256: question.id for question in test} if apart else {}
    ids = set(held.values())
    for question in task.rows("train"):
        same = question.id if question.id in ids else held.get(question.content_sha256)
        if same is not None:
            problem = f"a training question that is also a test question ({same})"
            raise InputError(path, problem, place=question.id)
        asked = _asked(task, question, template)
        yield Conversation(question.id, asked, path, question.id, question.content_sha256)


def _asked(task: Task, question: Question, template: str) -> tuple[Turn, ...]:
    rendered = task.template.render(question)
    return answered(rendered.prompt, rendered.continuations[question.gold], template)


def choose(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    *,
    template: str,
    length: int,
    heldout: float,
    limit: int | None,
) -> list[Example]:
    """The examples, in order, until `limit` of them are to be trained on; a share `heldout` is held out.

    A hash of an example's own content decides that: it stays as it is when others come or go or are renamed,
    and rows of equal content are never on both sides.

    Raises:
        InputError: a row cannot be labelled, or the model's chat template does not fit.
        UsageError: the tokenizer does not fit the template.
    """
    found: list[Example] = []
    trained = 0
    for conversation in conversations:
        if trained == limit:
            break
        try:
            labelled = label(tokenizer, conversation.turns, template)
        except ValueError as error:
            raise InputError(conversation.path, str(error), place=conversation.place) from error
        except InputError as error:  # of the chat template, which may fit other rows
            hint = error.hint or "the row has to be one that the model's chat template takes"
            raise InputError(conversation.path, error.message, place=conversation.place, hint=hint) from error
        split: _Split = "train"
        if len(labelled.ids) > length:
            split = "too-long"
        elif int(_hash(f"heldout/{conversation.content}")[:16], 16) < heldout * 2**64:
            split = "heldout"
        trained += split == "train"
        found.append(Example(conversation.id, split, conversation.content, conversation.turns, labelled))
    return found


def write_rows(path: Path, examples: Iterable[Example]) -> None:
    """Write the examples as lines."""
    with JsonlWriter(path) as writer:
        for example in examples:
            writer.write(
                {
                    "id": example.id,
                    "split": example.split,
                    "content": example.content,
                    "messages": [
                        {"role": turn.role, "content": turn.content} | ({} if turn.in_loss else {"weight": 0})
                        for turn in example.turns
                    ],
                    "ids": example.labelled.ids,
                    "roles": [[span.role, span.tokens, span.learned] for span in example.labelled.spans],
                }
            )


def _content(conversation: Iterable[Turn]) -> str:
    """Identify a conversation by what its messages say, whoever names them."""
    return content_sha256("\x1f".join(f"{turn.role}: {turn.content}" for turn in conversation))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
