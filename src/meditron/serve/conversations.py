"""Conversations of the chat page: trees of messages in `chat.db`.

A message has a parent; editing a question and answering again add siblings, so nothing is overwritten. The
page shows the path from the first message to the `leaf`. A question is stored before its answer
is generated, and an answer's row before its first token: a crash loses no question.
"""

import json
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from meditron.core.errors import SourceError, UsageError
from meditron.store.database import Database

__all__ = ["Answer", "Conversation", "Conversations", "Match", "Message", "State"]

State = Literal["pending", "done", "stopped", "failed"]
"""pending: being generated, or interrupted by a crash; stopped: by the user or by closing the page."""

_TITLE = 80  # characters
_MARK = "\x02", "\x03"  # around a word that was searched for
_PAGE = 200  # conversations of a list
# The words are indexed by statements of this class, not by triggers: older versions of SQLite refuse triggers
# that write virtual tables, if the schema is not trusted.
_MIGRATIONS = (
    """
    CREATE TABLE conversation (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        title TEXT NOT NULL,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        settings TEXT NOT NULL,
        leaf INTEGER
    ) STRICT;
    CREATE INDEX conversation_of_owner ON conversation (owner, updated);
    CREATE TABLE message (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation INTEGER NOT NULL REFERENCES conversation (number) ON DELETE CASCADE,
        parent INTEGER REFERENCES message (id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
        text TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'done', 'stopped', 'failed')),
        created REAL NOT NULL,
        turn TEXT,
        answer TEXT
    ) STRICT;
    CREATE INDEX message_of_conversation ON message (conversation);
    CREATE INDEX message_of_parent ON message (parent);
    CREATE VIRTUAL TABLE title_words USING fts5 (title, tokenize = 'unicode61 remove_diacritics 2');
    CREATE VIRTUAL TABLE message_words USING fts5 (text, tokenize = 'unicode61 remove_diacritics 2');
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Model, settings and measurements of an answer. Numbers that are not known are None."""

    model: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system: str = ""
    prompt: Mapping[str, str] | None = None
    """Name, version and label of the stored prompt that the system prompt was taken from."""
    left_out: int = 0
    """Number of the oldest questions that the model did not get, because the context was full."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """The model's quantization, SHA-256, base model, knowledge cut-off, context length, at that time."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    seconds: float | None = None
    first_token_seconds: float | None = None
    finish: str | None = None
    error: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A question, or an answer."""

    id: int
    parent: int | None
    role: Literal["user", "assistant"]
    text: str
    state: State
    created: float
    """Seconds since 1970."""
    turn: str | None = None
    """The same for answers that were generated side by side."""
    answer: Answer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation, with its messages if they were asked for."""

    id: str
    title: str
    created: float
    updated: float
    settings: Mapping[str, Any]
    """Models, system prompt and sampling of its last question."""
    leaf: int | None
    messages: tuple[Message, ...] = ()
    """All messages, in the order of their creation."""

    def path(self, leaf: int | None = None) -> list[Message]:
        """Return the messages from the first one to a leaf; by default to the conversation's own."""
        by_id = {message.id: message for message in self.messages}
        path, next_id = [], self.leaf if leaf is None else leaf
        while next_id is not None:
            path.append(by_id[next_id])
            next_id = path[-1].parent
        return path[::-1]

    def message(self, message_id: int) -> Message:
        """Return a message of the conversation.

        Raises:
            SourceError: it has no such message.
        """
        for message in self.messages:
            if message.id == message_id:
                return message
        raise SourceError(f"the conversation has no message {message_id}")

    def last_below(self, message_id: int) -> int:
        """Return the leaf below a message that is reached by the newest messages."""
        newest = {message.parent: message.id for message in self.messages}
        while message_id in newest:
            message_id = newest[message_id]
        return message_id


@dataclass(frozen=True, slots=True)
class Match:
    """A conversation of a list or a search, and the place that was found."""

    conversation: Conversation
    snippet: tuple[tuple[str, bool], ...] = ()
    """Text of the place; True: a word that was searched for."""


class Conversations:
    """Every person's conversations. Nobody reads those of another person: each call names the owner."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Errors are those of `Database`."""
        self._database = Database(path, _MIGRATIONS)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def create(self, owner: str, title: str, settings: Mapping[str, Any]) -> str:
        """Add a conversation and return its id."""
        name, now, title = secrets.token_urlsafe(12), time.time(), _short_title(title)
        with self._database.transaction() as connection:
            number = connection.execute(
                "INSERT INTO conversation (id, owner, title, created, updated, settings)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (name, owner, title, now, now, json.dumps(settings)),
            ).lastrowid
            connection.execute("INSERT INTO title_words (rowid, title) VALUES (?, ?)", (number, title))
        return name

    def newest(self, owner: str) -> list[Match]:
        """Return a person's conversations without their messages, the last used first."""
        rows = self._database.rows(
            "SELECT * FROM conversation WHERE owner = ? ORDER BY updated DESC LIMIT ?", (owner, _PAGE)
        )
        return [Match(_conversation(row)) for row in rows]

    def search(self, owner: str, query: str) -> list[Match]:
        """Return the conversations with a title or a message that has all words; the last word may go on."""
        words = re.findall(r"\w+", query)
        if not words:
            return self.newest(owner)
        # Quoted, so that no word is an operator of FTS5.
        pattern = " ".join(f'"{word}"' for word in words) + "*"
        rows = self._database.rows(
            """
            SELECT c.*, snippet(message_words, 0, ?, ?, '…', 12) AS place FROM message_words
            JOIN message m ON m.id = message_words.rowid JOIN conversation c ON c.number = m.conversation
            WHERE message_words MATCH ? AND c.owner = ? ORDER BY c.updated DESC, m.id LIMIT 2000
            """,
            (*_MARK, pattern, owner),
        )
        titles = self._database.rows(
            """
            SELECT c.*, '' AS place FROM title_words JOIN conversation c ON c.number = title_words.rowid
            WHERE title_words MATCH ? AND c.owner = ? ORDER BY c.updated DESC LIMIT 200
            """,
            (pattern, owner),
        )
        matches: dict[str, Match] = {}
        for row in [*rows, *titles]:
            matches.setdefault(row["id"], Match(_conversation(row), _split_snippet(row["place"])))
        return sorted(matches.values(), key=lambda match: -match.conversation.updated)[:_PAGE]

    def get(self, owner: str, name: str) -> Conversation:
        """Return a conversation with its messages.

        Raises:
            SourceError: the person has no such conversation.
        """
        with self._database.snapshot() as connection:
            row = connection.execute(
                "SELECT * FROM conversation WHERE id = ? AND owner = ?", (name, owner)
            ).fetchone()
            if row is None:
                raise SourceError(f"no conversation {name!r:.40}", hint="it may have been deleted")
            messages = connection.execute(
                "SELECT * FROM message WHERE conversation = ? ORDER BY id", (row["number"],)
            ).fetchall()
        return _conversation(row, [_message(each) for each in messages])

    def each(self, owner: str) -> Iterator[Conversation]:
        """Return all conversations of a person, the oldest first. Each is read when it is its turn.

        Conversations that are deleted meanwhile are left out.
        """
        with self._database.snapshot() as connection:
            rows = connection.execute(
                "SELECT id FROM conversation WHERE owner = ? ORDER BY number", (owner,)
            ).fetchall()
        return self._read_each(owner, [row["id"] for row in rows])

    def _read_each(self, owner: str, names: Sequence[str]) -> Iterator[Conversation]:
        for name in names:
            with suppress(SourceError):
                yield self.get(owner, name)

    def rename(self, owner: str, name: str, title: str) -> None:
        """Change a conversation's title."""
        if not title.strip():
            raise UsageError("a title must not be empty")
        short = _short_title(title)
        with self._database.transaction() as connection:
            number = _change(connection, owner, name, "title = ?", short)
            connection.execute("UPDATE title_words SET title = ? WHERE rowid = ?", (short, number))

    def select(self, owner: str, name: str, leaf: int) -> None:
        """Make a message the end of the path that is shown.

        Raises:
            SourceError: the conversation has no such message.
        """
        self.get(owner, name).message(leaf)
        with self._database.transaction() as connection:
            _change(connection, owner, name, "leaf = ?", leaf)

    def configure(self, owner: str, name: str, settings: Mapping[str, Any]) -> None:
        """Store the settings of the last question."""
        with self._database.transaction() as connection:
            _change(connection, owner, name, "settings = ?", json.dumps(settings))

    def delete(self, owner: str, name: str) -> None:
        """Delete a conversation with its messages, from all files.

        Raises:
            SourceError: the person has no such conversation.
        """
        with self._database.transaction() as connection:
            number = _change(connection, owner, name, "updated = ?", time.time())
            connection.execute(
                "DELETE FROM message_words WHERE rowid IN (SELECT id FROM message WHERE conversation = ?)",
                (number,),
            )
            connection.execute("DELETE FROM title_words WHERE rowid = ?", (number,))
            connection.execute("DELETE FROM conversation WHERE number = ?", (number,))
            # The indexes keep the words of deleted rows until their segments are merged, and the log of
            # writes keeps whole pages until it is emptied.
            connection.execute("INSERT INTO message_words (message_words) VALUES ('optimize')")
            connection.execute("INSERT INTO title_words (title_words) VALUES ('optimize')")
        self._database.compact()

    def add_question(self, owner: str, name: str, parent: int | None, text: str) -> Message:
        """Store a question under a message, or as a first one.

        Raises:
            SourceError: the person has no such conversation, or it has no such message.
            UsageError: the parent is no answer.
        """
        if parent is not None and self.get(owner, name).message(parent).role != "assistant":
            raise UsageError("a question follows an answer")
        return self._add(owner, name, parent, "user", text, "done", None, None)

    def add_answer(self, owner: str, name: str, parent: int, answer: Answer, turn: str | None) -> Message:
        """Store the row of an answer that is going to be generated.

        Raises:
            SourceError: the person has no such conversation, or it has no such message.
            UsageError: the parent is no question.
        """
        if self.get(owner, name).message(parent).role != "user":
            raise UsageError("an answer follows a question")
        return self._add(owner, name, parent, "assistant", "", "pending", turn, answer)

    def save(self, message: Message) -> None:
        """Store the text and state of a pending answer. If it has ended or was deleted, do nothing."""
        answer = None if message.answer is None else json.dumps(asdict(message.answer))
        with self._database.transaction() as connection:
            changed = connection.execute(
                "UPDATE message SET text = ?, state = ?, answer = ? WHERE id = ? AND state = 'pending'",
                (message.text, message.state, answer, message.id),
            ).rowcount
            if changed:
                statement = "UPDATE message_words SET text = ? WHERE rowid = ?"
                connection.execute(statement, (message.text, message.id))

    def _add(
        self,
        owner: str,
        name: str,
        parent: int | None,
        role: Literal["user", "assistant"],
        text: str,
        state: State,
        turn: str | None,
        answer: Answer | None,
    ) -> Message:
        now = time.time()
        with self._database.transaction() as connection:
            number = _change(connection, owner, name, "updated = ?", now)
            stored = None if answer is None else json.dumps(asdict(answer))
            added = connection.execute(
                "INSERT INTO message (conversation, parent, role, text, state, created, turn, answer)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (number, parent, role, text, state, now, turn, stored),
            ).lastrowid
            connection.execute("INSERT INTO message_words (rowid, text) VALUES (?, ?)", (added, text))
            # Of answers side by side the first one is continued, unless the user chooses another.
            first = "SELECT min(id) FROM message WHERE turn = ? AND conversation = ?"
            leaf = connection.execute(first, (turn, number)).fetchone()[0] if turn else added
            connection.execute("UPDATE conversation SET leaf = ? WHERE number = ?", (leaf, number))
        return Message(
            id=int(added or 0),
            parent=parent,
            role=role,
            text=text,
            state=state,
            created=now,
            turn=turn,
            answer=answer,
        )


def _change(connection: sqlite3.Connection, owner: str, name: str, change: str, value: object) -> int:
    """Change a column of a conversation and return the conversation's number.

    Raises:
        SourceError: the person has no such conversation.
    """
    row = connection.execute(
        f"UPDATE conversation SET {change} WHERE id = ? AND owner = ? RETURNING number",  # noqa: S608  # a constant
        (value, name, owner),
    ).fetchone()
    if row is None:
        raise SourceError(f"no conversation {name!r:.40}", hint="it may have been deleted")
    return int(row["number"])


def _short_title(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TITLE else f"{line[: _TITLE - 1].rstrip()}…"


def _conversation(row: sqlite3.Row, messages: Sequence[Message] = ()) -> Conversation:
    return Conversation(
        id=row["id"],
        title=row["title"],
        created=row["created"],
        updated=row["updated"],
        settings=json.loads(row["settings"]),
        leaf=row["leaf"],
        messages=tuple(messages),
    )


def _message(row: Mapping[str, Any]) -> Message:
    return Message(
        id=row["id"],
        parent=row["parent"],
        role=row["role"],
        text=row["text"],
        state=row["state"],
        created=row["created"],
        turn=row["turn"],
        answer=Answer(**json.loads(row["answer"])) if row["answer"] else None,
    )


def _split_snippet(text: str) -> tuple[tuple[str, bool], ...]:
    """Return the parts of a snippet, and which of them are words that were searched for."""
    return tuple(_marked_parts(text))


def _marked_parts(text: str) -> Iterator[tuple[str, bool]]:
    for part in text.split(_MARK[0]):
        word, mark, rest = part.partition(_MARK[1])
        if not mark:
            word, rest = "", part
        if word:
            yield word, True
        if rest:
            yield rest, False
