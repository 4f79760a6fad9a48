"""The request log: every request to a model, in a SQLite file, written in the background.

The text of requests and answers is stored only if the user asks for it (`log_content`). Without it, the
settings that could hold text, such as stop strings and schemas, are left out too.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from meditron.core.errors import SourceError
from meditron.serve.background import BackgroundWriter
from meditron.serve.log_rows import LogRow, check_score
from meditron.serve.state import Exchange
from meditron.store.database import Database

__all__ = ["LOG_FILE", "RequestLog", "add_exchanges", "add_score", "open_log_file", "row_of"]

LOG_FILE = "log.db"
_RETENTION_SECONDS = 3600.0  # between deletions of old rows
_DAY = 86_400.0
_MAX_ERROR, _MAX_WORD, _MAX_WORDS = 300, 1000, 64
_SAME_SETTING = {"max_completion_tokens": "max_tokens", "max_output_tokens": "max_tokens"}
# The settings that are stored without content: numbers and flags only.
_NUMBERS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "n", "stream"),
        *("max_tokens", *_SAME_SETTING),
        *("presence_penalty", "frequency_penalty", "repeat_penalty"),
    }
)
_MIGRATIONS = (
    """
    CREATE TABLE request (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        started REAL NOT NULL,
        seconds REAL NOT NULL,
        first_token_seconds REAL,
        endpoint TEXT NOT NULL,
        model TEXT NOT NULL,
        model_sha256 TEXT,
        person TEXT NOT NULL,
        status INTEGER NOT NULL,
        input_tokens INTEGER,
        output_tokens INTEGER,
        finish TEXT,
        error TEXT,
        prompt_name TEXT,
        prompt_version TEXT,
        prompt_label TEXT,
        sampling TEXT NOT NULL,
        tags TEXT NOT NULL,
        metadata TEXT NOT NULL,
        replay_of TEXT,
        messages TEXT,
        answers TEXT
    );
    CREATE INDEX request_started ON request (started);
    CREATE INDEX request_replay ON request (replay_of) WHERE replay_of IS NOT NULL;
    CREATE TABLE score (
        request TEXT NOT NULL REFERENCES request (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        person TEXT NOT NULL,
        value REAL NOT NULL,
        time REAL NOT NULL,
        PRIMARY KEY (request, name, person)
    );
    CREATE VIRTUAL TABLE search USING fts5 (
        model, prompt, tags, metadata, error, content, tokenize = 'unicode61 remove_diacritics 2'
    );
    """,
)


def open_log_file(data: Path) -> Database:
    """Open or create the log of a folder of data.

    Raises:
        InputError: the file is damaged, or of a newer version of the program.
        StorageError: it cannot be written.
    """
    return Database(data / LOG_FILE, _MIGRATIONS)


class RequestLog:
    """The writer of the request log; an observer of exchanges."""

    def __init__(
        self,
        data: Path,
        *,
        content: bool,
        retention_days: float | None,
        deleted: Callable[[int], None] = lambda count: None,
        every: float = _RETENTION_SECONDS,
    ) -> None:
        """Open the log, delete what is too old, and begin to write.

        Args:
            data: Folder of the server's data.
            content: Store the text of requests and answers.
            retention_days: Age at which rows are deleted; None: never.
            deleted: Called with the number of rows after a deletion.
            every: Seconds between deletions.

        Raises:
            InputError: the file is damaged, or of a newer version of the program.
            StorageError: it cannot be written.
        """
        self.content = content
        self._retention_days, self._deleted = retention_days, deleted
        self._database = open_log_file(data)
        self._compacted = False  # a process that was killed may have left deleted rows in the files
        try:
            self.delete_old()
            self._writer = BackgroundWriter[Exchange](
                "request log",
                lambda exchanges: add_exchanges(self._database, exchanges, content=content),
                every=(every, self.delete_old),
            )
        except BaseException:
            self._database.close()
            raise

    @property
    def lost(self) -> int:
        """Number of rows that could not be written."""
        return self._writer.lost

    @property
    def problem(self) -> str | None:
        """Why rows cannot be written now; None if they can."""
        return self._writer.problem

    def __call__(self, exchange: Exchange) -> None:
        """Record an exchange; returns at once."""
        self._writer.put(exchange)

    def flush(self) -> bool:
        """Wait until everything recorded so far is written, for a few seconds at most."""
        return self._writer.flush()

    def score(self, request: str, name: str, value: float, person: str) -> None:
        """Attach a score to a request; a person's later score of one name replaces the earlier one.

        Args:
            request: Id of the request.
            name: `thumbs` (−1 or 1), `rating` (1 to 5), or another name.
            value: The score.
            person: Who gives it.

        Raises:
            UsageError: the name or the value is invalid.
            SourceError: there is no such request.
            StorageError: the log cannot be written.
        """
        self.flush()  # the request may be a moment old
        add_score(self._database, request, name, value, person)

    def delete_old(self) -> None:
        """Delete the rows that are older than the retention time, so that no file has their content.

        Raises:
            StorageError: the log cannot be written.
        """
        count = 0
        if self._retention_days is not None:
            count = delete_before(self._database, time.time() - self._retention_days * _DAY)
        if count or not self._compacted:
            self._compacted = self._database.compact()
        if count:
            self._deleted(count)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._writer.close()
        self._database.close()

    def __enter__(self) -> Self:
        """Return the log."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the log."""
        self.close()


def add_exchanges(database: Database, exchanges: Iterable[Exchange], *, content: bool) -> None:
    """Write exchanges to an open log, all or none.

    Raises:
        StorageError: the log cannot be written.
    """
    with database.transaction() as connection:
        for exchange in exchanges:
            _insert_row(connection, _fields(exchange, content=content))


def add_score(database: Database, request: str, name: str, value: float, person: str) -> None:
    """Attach a score to a request of an open log; arguments and errors are those of `RequestLog.score`."""
    check_score(name, value)
    try:
        with database.transaction() as connection:
            connection.execute(
                "INSERT INTO score VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
                "SET value = excluded.value, time = excluded.time",
                (request, name, person, float(value), time.time()),
            )
    except sqlite3.IntegrityError as error:
        raise SourceError(f"no request '{request}' in the log") from error


def delete_before(database: Database, moment: float) -> int:
    """Delete the rows of requests that started before a time; return their number."""
    with database.transaction() as connection:
        old = "SELECT number FROM request WHERE started < ?"
        connection.execute(f"DELETE FROM search WHERE rowid IN ({old})", (moment,))  # noqa: S608  # constant
        count = connection.execute("DELETE FROM request WHERE started < ?", (moment,)).rowcount
        if count:
            # The index keeps the words of deleted rows until its segments are merged.
            connection.execute("INSERT INTO search (search) VALUES ('optimize')")
    return count


def row_of(exchange: Exchange, *, content: bool) -> LogRow:
    """Return an exchange as the row that the log would store, without its number."""
    fields = _fields(exchange, content=content)
    return LogRow.from_columns({"number": 0, **fields})


def _insert_row(connection: sqlite3.Connection, fields: Mapping[str, Any]) -> None:
    names = ", ".join(fields)
    marks = ", ".join(f":{name}" for name in fields)
    number = connection.execute(
        f"INSERT INTO request ({names}) VALUES ({marks})",  # noqa: S608  # names of columns
        fields,
    ).lastrowid
    prompt = f"{fields['prompt_name'] or ''} {fields['prompt_version'] or ''}"
    content = " ".join(
        text for key in ("messages", "answers") if fields[key] for text in _texts(json.loads(fields[key]))
    )
    connection.execute(
        "INSERT INTO search (rowid, model, prompt, tags, metadata, error, content) VALUES (?,?,?,?,?,?,?)",
        (
            number,
            fields["model"],
            prompt,
            " ".join(json.loads(fields["tags"])),
            " ".join(json.loads(fields["metadata"]).values()),
            fields["error"] or "",
            content,
        ),
    )


def _fields(exchange: Exchange, *, content: bool) -> dict[str, Any]:
    """Return the columns of an exchange."""
    sampling = {
        _SAME_SETTING.get(name, name): value
        for name, value in exchange.sampling.items()
        if content or (name in _NUMBERS and isinstance(value, int | float))
    }
    prompt = exchange.prompt
    metadata = {
        _clean(name, _MAX_WORD): _clean(value, _MAX_WORD)
        for name, value in list(exchange.metadata.items())[:_MAX_WORDS]
    }
    messages = exchange.messages
    return {
        "id": exchange.id,
        "started": exchange.started,
        "seconds": exchange.seconds,
        "first_token_seconds": exchange.first_token_seconds,
        "endpoint": exchange.endpoint,
        "model": _clean(exchange.model, _MAX_WORD),
        "model_sha256": exchange.model_sha256,
        "person": exchange.person,
        "status": exchange.status,
        "input_tokens": exchange.input_tokens,
        "output_tokens": exchange.output_tokens,
        "finish": exchange.finish,
        "error": None if exchange.error is None else _clean(exchange.error, _MAX_ERROR),
        "prompt_name": prompt.name if prompt else None,
        "prompt_version": prompt.version if prompt else None,
        "prompt_label": prompt.label if prompt else None,
        "sampling": _json(sampling),
        "tags": _json([_clean(tag, _MAX_WORD) for tag in exchange.tags[:_MAX_WORDS]]),
        "metadata": _json(metadata),
        "replay_of": metadata.get(LogRow.REPLAY_KEY) if exchange.endpoint == "replay" else None,
        "messages": _json(messages) if content and messages is not None else None,
        "answers": _json(list(exchange.answers)) if content and exchange.answers else None,
    }


def _json(value: object) -> str:
    # Half of a surrogate pair has no UTF-8 form.
    return json.dumps(value, ensure_ascii=False, default=_plain).encode(errors="replace").decode()


def _plain(value: object) -> object:
    """Return what JSON can hold: messages may be mappings of any kind."""
    return dict(value) if isinstance(value, Mapping) else str(value)


def _clean(text: str, limit: int) -> str:
    return str(text)[:limit].encode(errors="replace").decode()


def _texts(value: Any) -> Iterable[str]:  # noqa: ANN401  # any JSON value
    """Yield the texts of a value, without the names of its keys and roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in ("role", "type"):
                yield from _texts(item)
