"""Rows of the request log: reading, search, and their names in OpenTelemetry's conventions."""

import json
import math
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from meditron.core.errors import SourceError, UsageError
from meditron.store.database import Database

__all__ = [
    "LogFilter",
    "LogRow",
    "LogScore",
    "check_score",
    "count_rows",
    "find_row",
    "parse_moment",
    "read_rows",
    "replays_of",
]

_SCORE_NAME = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_SCORES = {"thumbs": (-1.0, 1.0), "rating": (1.0, 2.0, 3.0, 4.0, 5.0)}
_WORD = re.compile(r'"([^"]*)"(\*?)|(\S+)')
_PAGE = 500
_AGE = re.compile(r"(\d{1,6})([mhd])")
_UNITS = {"m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class LogScore:
    """A score of a request."""

    name: str
    value: float
    person: str
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRow:
    """A request in the log."""

    REPLAY_KEY: ClassVar[str] = "replay_of"
    """Key of a replay's metadata with the id of the request that it repeats."""

    number: int
    id: str
    started: float
    seconds: float
    first_token_seconds: float | None
    endpoint: str
    model: str
    model_sha256: str | None
    person: str
    status: int
    input_tokens: int | None
    output_tokens: int | None
    finish: str | None
    error: str | None
    prompt_name: str | None
    prompt_version: str | None
    prompt_label: str | None
    sampling: Mapping[str, Any]
    tags: tuple[str, ...]
    metadata: Mapping[str, str]
    replay_of: str | None
    messages: Any
    """Content of the request: messages, or one text; None if it was not stored."""
    answers: tuple[str, ...] | None
    """Content of the answers; None if it was not stored."""
    scores: tuple[LogScore, ...] = ()

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> Self:
        """Return the row with these columns of the file."""
        values = dict(columns)
        for name in ("sampling", "tags", "metadata", "messages", "answers"):
            values[name] = None if values[name] is None else json.loads(values[name])
        values["tags"] = tuple(values["tags"])
        values["answers"] = None if values["answers"] is None else tuple(values["answers"])
        return cls(**values)

    @property
    def prompt(self) -> str | None:
        """Name and hash of the prompt: `NAME@HASH`; None without one."""
        return f"{self.prompt_name}@{self.prompt_version}" if self.prompt_name else None


@dataclass(frozen=True, kw_only=True)
class LogFilter:
    """Conditions that rows must meet, which are also flags of commands. Empty fields match everything."""

    search: str = ""
    """Words that all occur; "…" for a phrase, * for the beginning of a word."""
    model: str = ""
    """Model, as the request named it."""
    prompt: str = ""
    """Stored prompt: NAME or NAME@HASH."""
    person: str = ""
    """Who sent the request."""
    endpoint: str = ""
    """API path, chat, replay or review."""
    tag: str = ""
    """Tag of the request."""
    status: str = ""
    """ok, error, or an HTTP status."""
    since: str = ""
    """Requests since a time: 2026-11-30, or an age: 24h, 7d."""
    until: str = ""
    """Requests before a time."""

    def where(self) -> tuple[str, list[Any]]:
        """Return the condition in SQL and its values.

        Raises:
            UsageError: the status or a time is none.
        """
        parts, values, now = ["1"], list[Any](), time.time()
        for column in ("model", "person", "endpoint"):
            if wanted := getattr(self, column):
                parts.append(f"{column} = ?")
                values.append(wanted)
        if self.prompt:
            name, _, version = self.prompt.partition("@")
            parts.append("prompt_name = ? AND substr(prompt_version, 1, ?) = ?")
            values += [name, len(version), version]
        if self.tag:
            parts.append("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)")
            values.append(self.tag)
        for mark, moment in (("started >= ?", self.since), ("started < ?", self.until)):
            if moment:
                parts.append(mark)
                values.append(parse_moment(moment, now))
        if query := _search_query(self.search):
            parts.append("number IN (SELECT rowid FROM search WHERE search MATCH ?)")
            values.append(query)
        return " AND ".join([*parts, *self._status_part(values)]), values

    def _status_part(self, values: list[Any]) -> list[str]:
        if not self.status:
            return []
        if self.status in ("ok", "error"):
            return ["status < 400" if self.status == "ok" else "status >= 400"]
        if not re.fullmatch(r"[1-5]\d\d", self.status):
            raise UsageError(f"status '{self.status}': it is ok, error, or an HTTP status such as 429")
        values.append(int(self.status))
        return ["status = ?"]


def parse_moment(text: str, now: float) -> float:
    """Return a time in seconds since 1970: `2026-11-30`, `2026-11-30T08:00` (UTC), or an age such as `24h`.

    Earlier times are 0.

    Raises:
        UsageError: the text is no time.
    """
    if match := _AGE.fullmatch(text):
        return max(0.0, now - int(match[1]) * _UNITS[match[2]])
    try:
        moment = datetime.fromisoformat(text)
        return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"'{text}' is no time", hint="2026-11-30, 2026-11-30T08:00, or an age: 24h, 7d"
        ) from error


def read_rows(
    database: Database, rows: LogFilter, *, limit: int | None = None, before: int | None = None
) -> Iterator[LogRow]:
    """Yield the rows that match, newest first, in pages: rows written meanwhile are left out.

    Args:
        database: The open log.
        rows: What they must match.
        limit: Maximum number of rows.
        before: Yield rows with a lower number only.

    Raises:
        UsageError: the filter is invalid.
        StorageError: another process holds the file.
        InputError: the file is damaged.
    """
    where, values = rows.where()
    left = math.inf if limit is None else limit
    while left > 0:
        page = int(min(left, _PAGE))
        with database.snapshot() as connection:
            found = connection.execute(
                f"SELECT * FROM request WHERE {where} AND number < ? ORDER BY number DESC LIMIT ?",  # noqa: S608
                [*values, before if before is not None else 1 << 62, page],
            ).fetchall()
            shown = [_with_scores(connection, LogRow.from_columns(dict(row))) for row in found]
        yield from shown
        if len(shown) < page:
            return
        before, left = shown[-1].number, left - page


def count_rows(database: Database, rows: LogFilter) -> int:
    """Return the number of rows that match; errors are those of `read_rows`."""
    where, values = rows.where()
    return int(database.rows(f"SELECT count(*) FROM request WHERE {where}", values)[0][0])  # noqa: S608


def find_row(database: Database, request: str) -> LogRow:
    """Return the row of a request, by its id or the first characters of it.

    Raises:
        SourceError: there is no such request, or several.
    """
    with database.snapshot() as connection:
        found = connection.execute(
            "SELECT * FROM request WHERE id >= ? AND id < ? ORDER BY id LIMIT 2",
            (request, f"{request}\U0010ffff"),
        ).fetchall()
        if not found or not request:
            raise SourceError(f"no request '{request}' in the log")
        if len(found) == 2 and found[0]["id"] != request:
            raise SourceError(f"several requests have ids that begin with '{request}'")
        return _with_scores(connection, LogRow.from_columns(dict(found[0])))


def replays_of(database: Database, request: str) -> list[LogRow]:
    """Return the replays of a request, oldest first."""
    with database.snapshot() as connection:
        found = connection.execute("SELECT * FROM request WHERE replay_of = ? ORDER BY number", (request,))
        return [_with_scores(connection, LogRow.from_columns(dict(row))) for row in found.fetchall()]


def check_score(name: str, value: float) -> None:
    """Raise UsageError if a score has an invalid name or value."""
    if not _SCORE_NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be the name of a score", hint="thumbs, rating, or another word")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"the score {name} must be a number, got {value!r:.50}")
    if name in _SCORES and float(value) not in _SCORES[name]:
        allowed = ", ".join(f"{each:g}" for each in _SCORES[name])
        raise UsageError(f"the score {name} must be one of {allowed}, got {value:g}")


def _with_scores(connection: sqlite3.Connection, row: LogRow) -> LogRow:
    found = connection.execute(
        "SELECT name, value, person, time FROM score WHERE request = ? ORDER BY name, time", (row.id,)
    ).fetchall()
    return replace(row, scores=tuple(LogScore(*score) for score in found)) if found else row


def _search_query(text: str) -> str:
    """Return words as a query of SQLite's full-text search, in which no word is an operator."""
    terms = []
    for phrase, star, word in _WORD.findall(text):
        bare = word.rstrip("*") if word else phrase
        prefix = "*" if star or word.endswith("*") else ""
        if any(character.isalnum() for character in bare):
            terms.append('"' + bare.replace('"', '""').replace("\0", " ") + '"' + prefix)
    return " ".join(terms)
