"""The audit log: who did what and when, without any text of a conversation, as a chain of hashes.

Each line of `audit.jsonl` is a JSON object with its number, the SHA-256 of the line before it (`previous`)
and its own (`sha256`, over everything before that key). A changed, removed or inserted line breaks the chain.
Who can write the file can also write a new chain: the hash of the last line, printed at start, at stop and by
the verifier, proves a chain only if it was kept elsewhere.
"""

import fcntl
import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditron.core.errors import InputError, SourceError
from meditron.serve.state import Exchange
from meditron.store.file_lock import open_lock_file
from meditron.store.files import (
    fsync_path,
    make_folder,
    path_exists,
    translate_read_errors,
    translate_write_errors,
)
from meditron.store.prompts import LabelMove, utc_now

__all__ = [
    "AUDIT_FILE",
    "AuditHead",
    "AuditLog",
    "AuditReport",
    "EventFields",
    "audit_command",
    "label_event",
    "last_events",
    "request_event",
    "verify_audit",
]

AUDIT_FILE = "audit.jsonl"
EventFields = dict[str, str | float | bool | None]
"""Name → value of the fields of an event."""
_ROTATED = re.compile(r"audit\.(\d{12})\.jsonl")
_START = "0" * 64
_LINE = re.compile(rb'(\{.*"previous":"([0-9a-f]{64})"),"sha256":"([0-9a-f]{64})"\}', re.DOTALL)
_LONGEST = 1 << 16  # bytes of a line
_MAX_FIELD = 500  # characters of a value
_EVIDENCE = "keep the file as evidence: move it away, and a new log begins"
_FIELDS = frozenset(
    {
        *("person", "model", "request", "status", "endpoint", "address"),
        *("prompt", "label", "version", "previous_version", "rollback"),
        *("rows", "format", "setting", "value", "name", "bytes", "sha256_of_torn", "head", "lost"),
    }
)
"""Names of the fields that an event may have: none of them holds text of a conversation."""


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The end of a chain."""

    number: int
    """Number of the last line; 0 for an empty log."""
    sha256: str
    """SHA-256 of the last line; zeros for an empty log."""


class AuditLog:
    """The audit log of a folder. Threads and processes take turns for each group of lines."""

    def __init__(self, folder: Path, *, max_bytes: int = 64 << 20) -> None:
        """Use the log of a folder of data.

        Args:
            folder: The folder.
            max_bytes: Size after which a new file is begun; the chain goes on in it.
        """
        self.path = folder / AUDIT_FILE
        self._max_bytes = max_bytes

    def record(self, event: str, **fields: str | float | bool | None) -> AuditHead:
        """Append one event; errors are those of `record_all`."""
        return self.record_all([(event, fields)])

    def record_all(self, events: Sequence[tuple[str, EventFields]]) -> AuditHead:
        """Append events, and flush them to the disk.

        A last line that a killed process left incomplete is removed first, which is an event of its own.

        Args:
            events: Name and fields of each event; fields that are None are left out.

        Raises:
            ValueError: a field has an unknown name, which could hold text.
            StorageError: the disk is full, or the file is a link.
        """
        for _, fields in events:
            if unknown := fields.keys() - _FIELDS:
                raise ValueError(f"an audit event has no field {min(unknown)}")
        with self._locked() as descriptor:
            head, torn = self._end(descriptor)
            lines = [("repaired", torn)] if torn else []
            text = b""
            for event, fields in [*lines, *events]:
                line, head = _encode_line(head, event, fields)
                text += line
            self._append(descriptor, text)
            return head

    def head(self) -> AuditHead:
        """Return the number and hash of the last complete line."""
        with self._locked() as descriptor:
            return self._end(descriptor, repair=False)[0]

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the file for this process alone; begin a new one if it is large."""
        make_folder(self.path.parent)
        with open_lock_file(self.path.with_name(".audit.lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path_exists(self.path) and self.path.stat().st_size > self._max_bytes:
                self._rotate()
            with translate_write_errors(self.path):
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(self.path, flags, 0o600)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def _rotate(self) -> None:
        """Rename the file after the number of its last line, unless a torn line is to be recorded first."""
        with translate_write_errors(self.path), self.path.open("r+b") as file:
            head, torn = self._end(file.fileno(), repair=False)
            if torn:
                return
            os.fsync(file.fileno())
            self.path.rename(self.path.with_name(f"audit.{head.number:012}.jsonl"))
            fsync_path(self.path.parent)

    def _end(self, descriptor: int, *, repair: bool = True) -> tuple[AuditHead, EventFields]:
        """Return the head, and the fields of the event of a torn line if one was removed."""
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, 2 * _LONGEST, max(0, size - 2 * _LONGEST))
        complete, newline, torn = tail.rpartition(b"\n")
        if len(torn) > _LONGEST:
            raise InputError(self.path, "the last line is damaged: it has no end", hint=_EVIDENCE)
        if torn and repair:
            with translate_write_errors(self.path):
                os.ftruncate(descriptor, size - len(torn))
        line = complete.rpartition(b"\n")[2] if newline else b""
        head = _head_of(line, self.path) if line else self._head_of_rotated()
        digest = hashlib.sha256(torn).hexdigest()
        return head, {"bytes": len(torn), "sha256_of_torn": digest} if torn else {}

    def _head_of_rotated(self) -> AuditHead:
        earlier = _rotated_files(self.path.parent)
        if not earlier:
            return AuditHead(0, _START)
        with translate_read_errors(earlier[-1]), earlier[-1].open("rb") as file:
            file.seek(-min(_LONGEST, earlier[-1].stat().st_size), os.SEEK_END)
            return _head_of(file.read().rstrip(b"\n").rpartition(b"\n")[2], earlier[-1])

    def _append(self, descriptor: int, text: bytes) -> None:
        size = os.fstat(descriptor).st_size
        with translate_write_errors(self.path):
            try:
                while text:
                    text = text[os.write(descriptor, text) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)  # no half of a line stays if the disk is full
                raise


def audit_command(folder: Path, event: str, **fields: str | float | bool | None) -> None:
    """Record what a command did to a folder of data; only the folder of a server has an audit log."""
    if (folder / AUDIT_FILE).exists():
        AuditLog(folder).record(event, **fields)


def request_event(exchange: Exchange) -> EventFields:
    """Return the fields of the event of a request to a model, without its texts."""
    return {
        "person": exchange.person,
        "endpoint": exchange.endpoint,
        "model": exchange.model,
        "request": exchange.id,
        "status": exchange.status,
    }


def label_event(name: str, move: LabelMove) -> EventFields:
    """Return the fields of the event of a moved label."""
    return {
        "person": move.person,
        "prompt": name,
        "label": move.label,
        "version": move.version,
        "previous_version": move.previous,
        "rollback": move.rollback or None,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """The result of a verification."""

    ok: bool
    lines: int
    """Number of good lines, from the first one."""
    first: int
    """Number of the first line; above 1 if earlier files were removed."""
    head: AuditHead
    """The last good line."""
    problem: str | None = None
    """Place of the first bad line, and what is wrong with it."""
    torn_bytes: int = 0
    """Bytes after the last line, left by a killed process; the next event removes them."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return {
            "ok": self.ok,
            "lines": self.lines,
            "first": self.first,
            "last": self.head.number,
            "head": self.head.sha256,
            "problem": self.problem,
            "torn_bytes": self.torn_bytes,
        }


def verify_audit(folder: Path, *, expected_head: str | None = None) -> AuditReport:
    """Check every line of the audit log of a folder, with all earlier files.

    Args:
        folder: The folder of data.
        expected_head: The hash of a line, noted before, that must be in the chain.

    Raises:
        SourceError: there is no audit log.
        InputError: a file cannot be read.
    """
    files = _rotated_files(folder)
    if (folder / AUDIT_FILE).exists():
        files.append(folder / AUDIT_FILE)
    if not files:
        raise SourceError(f"{folder}: no audit log", hint="--data names the folder of the server's data")
    chain = _Chain(expected_head)
    for file in files:
        if problem := chain.read(file):
            return chain.report(problem)
    if expected_head and not chain.found:
        return chain.report(f"no line has the hash {expected_head}: lines were removed, or it is another log")
    return chain.report(None)


def last_events(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return the last events of the newest file, oldest first, without checking the chain.

    Raises:
        SourceError: there is no audit log.
    """
    path = folder / AUDIT_FILE
    if not path_exists(path):
        raise SourceError(f"{folder}: no audit log", hint="--data names the folder of the server's data")
    with translate_read_errors(path), path.open("rb") as lines:
        newest = deque((line for line in lines if line.endswith(b"\n")), maxlen=count)
    try:
        return [json.loads(line) for line in newest]
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"a line is damaged: {error}", hint="--verify names it") from error


class _Chain:
    """The lines read so far."""

    def __init__(self, expected_head: str | None) -> None:
        self.found = expected_head in (None, _START)
        self._expected, self._first, self._lines, self._torn = expected_head, 1, 0, 0
        self._head = AuditHead(0, _START)

    def read(self, file: Path) -> str | None:
        """Check a file; return the place and the problem of its first bad line."""
        with translate_read_errors(file), file.open("rb") as lines:
            for place, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    self._torn = len(line)
                    # Only the newest file can end in the middle of a line.
                    return None if file.name == AUDIT_FILE else f"{file} (line {place}): the line has no end"
                if problem := self._check(line[:-1]):
                    return f"{file} (line {place}): {problem}"
        return None

    def _check(self, line: bytes) -> str | None:
        try:
            head, previous = _parse_line(line)
        except ValueError as error:
            return str(error)
        if self._lines == 0:
            self._first = head.number
        elif previous != self._head.sha256:
            return "it does not follow the line before: a line was changed, removed or inserted"
        if self._lines and head.number != self._head.number + 1:
            return f"its number is {head.number}, after {self._head.number}"
        if head.number == 1 and previous != _START:
            return "the first line follows another one"
        self._lines, self._head = self._lines + 1, head
        self.found = self.found or head.sha256 == self._expected
        return None

    def report(self, problem: str | None) -> AuditReport:
        return AuditReport(
            ok=problem is None,
            lines=self._lines,
            first=self._first,
            head=self._head,
            problem=problem,
            torn_bytes=self._torn,
        )


def _encode_line(head: AuditHead, event: str, fields: EventFields) -> tuple[bytes, AuditHead]:
    values = {name: _shortened(value) for name, value in fields.items() if value is not None}
    record = {"number": head.number + 1, "time": utc_now(), "event": event, **values, "previous": head.sha256}
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=True)[:-1]
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text},"sha256":"{digest}"}}\n'.encode(), AuditHead(head.number + 1, digest)


def _shortened(value: str | float | bool) -> str | float | bool:
    return value[:_MAX_FIELD] if isinstance(value, str) else value


def _parse_line(line: bytes) -> tuple[AuditHead, str]:
    """Return a line's number and hash, and the hash it follows; ValueError for a bad line."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("not a line of an audit log")
    text, previous, digest = match.groups()
    if hashlib.sha256(text).hexdigest() != digest.decode():
        raise ValueError("its content does not have its hash: the line was changed")
    number = json.loads(line).get("number")
    if type(number) is not int or number < 1:
        raise ValueError("it has no number")
    return AuditHead(number, digest.decode()), previous.decode()


def _head_of(line: bytes, path: Path) -> AuditHead:
    try:
        return _parse_line(line)[0]
    except (ValueError, RecursionError) as error:
        raise InputError(
            path,
            f"the last line is damaged: {error}",
            hint=_EVIDENCE,
        ) from error


def _rotated_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with translate_read_errors(folder):
        return sorted(path for path in folder.iterdir() if _ROTATED.fullmatch(path.name))
